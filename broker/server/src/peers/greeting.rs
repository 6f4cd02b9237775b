//! What two brokers tell each other first, and whether they go on from there.

use bytes::Bytes;
use tidemill_net::PeerIdentity;
use tidemill_protocol::messages::Error;
use tidemill_protocol::{BrokerId, ClusterId, ErrorCode};

use super::messages::{KnownBroker, PEER_PROTOCOL_MAX, PEER_PROTOCOL_MIN, PeerHello, PeerWelcome};
use super::{Myself, Peers};

/// No log is set to take less: what a peer says must not stop all writing.
const UNIT_BYTES_LEAST: usize = 1 << 20;

/// What this broker says of itself.
pub(crate) fn own_hello(myself: &Myself, known: Vec<KnownBroker>) -> PeerHello {
    PeerHello {
        protocol_min: PEER_PROTOCOL_MIN,
        protocol_max: PEER_PROTOCOL_MAX,
        cluster_id: Bytes::copy_from_slice(&myself.cluster.bytes()),
        broker: Some(myself.entry().said()),
        known,
        software: concat!("tidemill/", env!("CARGO_PKG_VERSION")).to_owned(),
        unit_bytes_max: myself.unit_bytes_max as u64,
    }
}

/// A hello that was checked as far as it can be without knowing anybody.
#[derive(Debug, Clone)]
pub(crate) struct Hello {
    pub(crate) cluster: ClusterId,
    pub(crate) broker: KnownBroker,
    pub(crate) known: Vec<KnownBroker>,
    /// The version that both speak.
    pub(crate) protocol: u32,
    pub(crate) software: String,
    pub(crate) unit_bytes_max: usize,
}

pub(crate) fn decode_hello(hello: PeerHello) -> Result<Hello, Error> {
    let protocol = PEER_PROTOCOL_MAX.min(hello.protocol_max);
    if protocol < PEER_PROTOCOL_MIN.max(hello.protocol_min) {
        return Err(refused(format!(
            "it speaks versions {} to {} of the brokers' protocol ({}), and this broker {PEER_PROTOCOL_MIN} to {PEER_PROTOCOL_MAX}; \
             upgrade brokers one release at a time",
            hello.protocol_min, hello.protocol_max, hello.software
        )));
    }
    let cluster = uuid::Uuid::from_slice(&hello.cluster_id).map(ClusterId::new);
    let (Ok(cluster), Some(broker)) = (cluster, hello.broker) else {
        return Err(refused("its hello lacks the cluster or the broker".to_owned()));
    };
    let unit_bytes_max = match hello.unit_bytes_max {
        0 => usize::MAX,
        said => usize::try_from(said).unwrap_or(usize::MAX).max(UNIT_BYTES_LEAST),
    };
    Ok(Hello { cluster, broker, known: hello.known, protocol, software: hello.software, unit_bytes_max })
}

/// An error of whoever is not talked to any further.
pub(crate) fn refused(reason: impl Into<String>) -> Error {
    Error::new(ErrorCode::PeerRefused, reason)
}

/// Why a hello does not stand.
#[derive(Debug, Clone)]
pub(super) struct Refusal {
    pub(super) error: Error,
    /// Whoever said it is over for good, by what a formed cluster knows.
    pub(super) is_over: bool,
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self { error, is_over: false }
    }
}

impl Refusal {
    /// The answer to who is refused.
    pub(super) fn welcome(&self) -> PeerWelcome {
        PeerWelcome { error: Some(self.error.clone()), is_over: self.is_over, ..PeerWelcome::default() }
    }
}

impl Peers {
    pub(super) fn hello(&self) -> PeerHello {
        own_hello(&self.0.myself, self.0.book.said())
    }

    /// Decides on a hello, and remembers whom it is from.
    pub(super) async fn meet(
        &self,
        hello: Option<PeerHello>,
        identity: &PeerIdentity,
    ) -> Result<Hello, Refusal> {
        let hello = decode_hello(hello.ok_or_else(|| refused("it said no hello"))?)?;
        let myself = &self.0.myself;
        if hello.cluster != myself.cluster {
            return Err(refused(format!(
                "it belongs to cluster {}, and this broker to cluster {}; is a seed's address wrong, or a data directory another's?",
                hello.cluster, myself.cluster
            ))
            .into());
        }
        let said = BrokerId::new(hello.broker.broker_id);
        if (identity.cluster, identity.broker) != (hello.cluster, said) {
            return Err(refused(format!(
                "it calls itself broker {said}, and its certificate is broker {}'s of cluster {}",
                identity.broker, identity.cluster
            ))
            .into());
        }
        let me = myself.entry();
        if hello.broker == me.said() {
            // It dialled its own address; that end sees it, too.
            return Ok(hello);
        }
        let mut is_formed = false;
        if let Some(services) = &*self.0.services.borrow() {
            let standing = services.check_standing(said, hello.broker.incarnation);
            standing.map_err(|error| Refusal { error, is_over: true })?;
            is_formed = services.is_formed();
        }
        if said == me.broker {
            let refusal = me.refuse_twin(&hello.broker);
            let is_over = is_formed && refusal.is_over();
            return Err(Refusal { error: refused(refusal.to_string()), is_over });
        }
        let peers = self.clone();
        let (broker, known) = (hello.broker.clone(), hello.known.clone());
        let met = tokio::task::spawn_blocking(move || {
            let met = peers.0.book.meet(&broker);
            if met.is_ok() {
                peers.0.book.hear(&known);
            }
            met
        });
        match met.await {
            Ok(Ok(_)) => {
                self.note_unit_bytes(said, hello.unit_bytes_max);
                Ok(hello)
            }
            Ok(Err(refusal)) => {
                // Brokers that form a cluster only now have nothing that could be lost.
                let is_over = is_formed && refusal.is_over();
                Err(Refusal { error: refused(refusal.to_string()), is_over })
            }
            Err(_) => Err(refused("the broker is stopping").into()),
        }
    }

    pub(super) fn welcome(&self, protocol: u32) -> PeerWelcome {
        PeerWelcome { protocol, hello: Some(self.hello()), ..PeerWelcome::default() }
    }
}

#[cfg(test)]
mod tests {
    use tidemill_protocol::ErrorCode;

    use super::*;

    fn hello(protocol_min: u32, protocol_max: u32) -> PeerHello {
        let cluster_id = Bytes::from_static(&[7; 16]);
        let broker = Some(KnownBroker { broker_id: 2, ..KnownBroker::default() });
        let software = "tidemill/9.9".to_owned();
        PeerHello { protocol_min, protocol_max, cluster_id, broker, software, ..PeerHello::default() }
    }

    #[test]
    fn whoever_speaks_only_newer_or_older_versions_is_refused_and_told_which_there_are() {
        let spoken = |min, max| decode_hello(hello(min, max));
        assert_eq!(
            spoken(PEER_PROTOCOL_MIN, PEER_PROTOCOL_MAX + 5).expect("both speak it").protocol,
            PEER_PROTOCOL_MAX
        );
        for (min, max) in [(PEER_PROTOCOL_MAX + 1, PEER_PROTOCOL_MAX + 5), (0, PEER_PROTOCOL_MIN - 1)] {
            let error = spoken(min, max).expect_err("no version in common");
            assert_eq!(error.error_code(), Some(ErrorCode::PeerRefused));
            let versions = format!("versions {min} to {max}");
            assert!(error.message.contains(&versions) && error.message.contains("tidemill/9.9"), "{error:?}");
        }
        assert!(decode_hello(PeerHello { broker: None, ..hello(1, 1) }).is_err(), "nobody in particular");
    }
}
