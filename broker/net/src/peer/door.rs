use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tidemill_protocol::ErrorCode;

use super::WELCOME;
use super::limits::PeerLimits;
use super::refusal::Fault;
use crate::connection::{Connection, PeerInfo, StreamQuota};
use crate::listener::{peer_certificate, subject_of};
use crate::places::{Place, Places};
use crate::port::{Doorman, Guest, HandshakeError};
use crate::receiving::ReceiveBudget;
use crate::{LogBudget, NetLimits, PeerIdentity};

/// Streams that who joins may use.
const JOINER_STREAMS: u32 = 1;

/// Lets in brokers of the cluster, and who would become one on narrow terms.
pub(super) struct PeerDoor {
    own: PeerIdentity,
    limits: PeerLimits,
    receiving: ReceiveBudget,
    joiner_limits: NetLimits,
    joiners: Arc<Places>,
    joiners_receiving: ReceiveBudget,
}

impl PeerDoor {
    pub(super) fn new(own: PeerIdentity, limits: PeerLimits, receiving: ReceiveBudget) -> Self {
        let joiner_limits = limits.of_joiners();
        Self {
            own,
            receiving,
            joiners: Places::new(limits.joiners_max, limits.joiners_max, || {
                metrics::gauge!("tidemill_peer_joiners")
            }),
            joiners_receiving: ReceiveBudget::new(
                joiner_limits.receiving_bytes_max,
                joiner_limits.connection_receiving_bytes_max,
            ),
            joiner_limits,
            limits,
        }
    }

    fn admit_peer(&self, guest: Guest, peer: PeerInfo) -> Connection {
        let Guest { quinn, place } = guest;
        let limits = &self.limits.net;
        // It came on a joiner's terms.
        quinn.set_receive_window(limits.connection_window_bytes.into());
        quinn.set_max_concurrent_bi_streams(limits.streams_max.into());
        metrics::counter!("tidemill_peer_connections_total").increment(1);
        welcome(quinn.clone(), limits.handshake_timeout);
        Connection::new(quinn, peer, limits, self.receiving.of_connection(), Some(place))
    }

    fn admit_joiner(&self, guest: Guest, peer: PeerInfo) -> Option<Connection> {
        let Guest { quinn, place } = guest;
        let Some(joiner_place) = self.joiners.take(peer.address.ip()) else {
            let why = "too many brokers are joining at this moment, or others that show no certificate; try again in some seconds";
            turn_away(&quinn, "joiners", ErrorCode::Overloaded, why);
            return None;
        };
        metrics::counter!("tidemill_peer_joiners_total").increment(1);
        welcome(quinn.clone(), self.limits.net.handshake_timeout);
        tokio::spawn(end_in_time(quinn.clone(), self.limits.joiner_life, (place, joiner_place)));
        let budget = self.joiners_receiving.of_connection();
        let connection = Connection::new(quinn, peer, &self.joiner_limits, budget, None);
        Some(connection.with_quota(StreamQuota::new(JOINER_STREAMS, |quinn| {
            turn_away(quinn, "streams", ErrorCode::TooManyStreams, "who joins has one stream");
        })))
    }
}

impl Doorman for PeerDoor {
    fn admit(&self, guest: Guest) -> Option<Connection> {
        let address = guest.quinn.remote_address();
        let Some(certificate) = peer_certificate(&guest.quinn) else {
            return self.admit_joiner(guest, PeerInfo { address, identity: None, peer: None });
        };
        let identity = subject_of(&certificate);
        let why = match PeerIdentity::from_certificate(&certificate) {
            Some(peer) if peer.cluster == self.own.cluster => {
                return Some(self.admit_peer(guest, PeerInfo { address, identity, peer: Some(peer) }));
            }
            Some(peer) => format!("it is {peer}, and this is {}", self.own),
            None => format!(
                "the certificate of {} is signed by the cluster's authority, but not a broker's for its peers",
                identity.as_deref().unwrap_or("an unreadable subject")
            ),
        };
        turn_away(&guest.quinn, "certificate", ErrorCode::Unauthenticated, &why);
        None
    }

    fn asked_for_address(&self) {
        metrics::counter!("tidemill_peer_retries_total").increment(1);
    }

    fn refused(&self, peer: SocketAddr, why: &'static str) {
        note("crowded", peer, why);
    }

    fn failed(&self, peer: SocketAddr, why: &HandshakeError) {
        let (reason, why) = match why {
            HandshakeError::TookTooLong => ("handshake", why.to_string()),
            HandshakeError::Failed(error) => match Fault::from(error) {
                Fault::TheirCertificate(said) => (
                    "certificate",
                    format!(
                        "its certificate will not do: {said}; does it have this cluster's ca.pem, and are both clocks right?"
                    ),
                ),
                Fault::OurCertificate(said) => (
                    "not_accepted",
                    format!(
                        "it does not accept this broker's certificate: {said}; does it have this cluster's ca.pem or join token?"
                    ),
                ),
                Fault::Protocol => (
                    "protocol",
                    "it does not speak the peers' protocol: a client belongs at the clients' port".to_owned(),
                ),
                _ => ("handshake", error.to_string()),
            },
        };
        note(reason, peer, &why);
    }
}

/// Closes a connection with the reason, and says it here too.
fn turn_away(quinn: &quinn::Connection, reason: &'static str, code: ErrorCode, why: &str) {
    note(reason, quinn.remote_address(), why);
    quinn.close(code.code().into(), why.as_bytes());
}

fn note(reason: &'static str, peer: SocketAddr, why: &str) {
    static LINES: LogBudget = LogBudget::new();
    metrics::counter!("tidemill_peer_refused_total", "reason" => reason).increment(1);
    if let Some(left_out) = LINES.take() {
        tracing::warn!(%peer, reason, left_out, "turned a peer away: {why:.1000}");
    }
}

/// Tells who dialled that it is let in.
fn welcome(quinn: quinn::Connection, timeout: Duration) {
    tokio::spawn(async move {
        let saying = async {
            let mut stream = quinn.open_uni().await.ok()?;
            stream.write_all(&[WELCOME]).await.ok()?;
            stream.finish().ok()
        };
        // Who grants no stream for it, or is gone, has not dialled as a peer does, and waits for nothing.
        let _ = tokio::time::timeout(timeout, saying).await;
    });
}

/// Keeps the places of who joins until it is gone, which it is when its time is over: streams may outlive the handle to the connection.
async fn end_in_time(quinn: quinn::Connection, life: Duration, _places: (Place, Place)) {
    if tokio::time::timeout(life, quinn.closed()).await.is_err() {
        let why = format!("joining took longer than {} s; begin anew", life.as_secs());
        turn_away(&quinn, "joining", ErrorCode::Deadline, &why);
    }
}
