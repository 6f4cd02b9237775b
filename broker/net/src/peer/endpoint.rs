use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use quinn::crypto::rustls::QuicClientConfig;
use tidemill_protocol::ErrorCode;

use super::dial::reach;
use super::door::PeerDoor;
use super::error::DialError;
use super::limits::{PeerLimits, PeerNetConfig};
use crate::connection::{Connection, PeerInfo};
use crate::listener::{peer_certificate, subject_of};
use crate::port::{Port, PortConfig};
use crate::receiving::ReceiveBudget;
use crate::transport::transport_config;
use crate::{BindError, LogBudget, NetLimits, PeerIdentity, PeerTls, TlsError};

/// A broker's QUIC endpoint among its peers: accepts connections, and dials.
#[derive(Debug)]
pub struct PeerEndpoint {
    port: Port,
    identity: PeerIdentity,
    limits: PeerLimits,
    dialing: Mutex<quinn::ClientConfig>,
    receiving: ReceiveBudget,
}

impl PeerEndpoint {
    /// Binds the socket and begins to accept. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// The address, the certificates, or a limit that QUIC cannot express.
    pub fn bind(config: PeerNetConfig) -> Result<Self, BindError> {
        let PeerNetConfig { listen, tls, limits } = config;
        let handshakes = tls.load()?;
        let identity = handshakes.identity;
        let port = PortConfig {
            listen,
            handshake: handshakes.accepting,
            reset: handshakes.reset,
            transport: transport_config(&limits.of_joiners())?,
            gauge: || metrics::gauge!("tidemill_peer_connections"),
        };
        let dialing = Mutex::new(client_config(handshakes.dialing, &limits.net)?);
        let net = &limits.net;
        let receiving = ReceiveBudget::new(net.receiving_bytes_max, net.connection_receiving_bytes_max);
        let door = PeerDoor::new(identity, limits.clone(), receiving.clone());
        let port = Port::open(port, net, Arc::new(door))?;
        Ok(Self { port, identity, limits, dialing, receiving })
    }

    /// Which broker this is, by its own certificate.
    #[must_use]
    pub const fn identity(&self) -> PeerIdentity {
        self.identity
    }

    /// Where it listens, with the port that the system chose.
    #[must_use]
    pub const fn local_addr(&self) -> SocketAddr {
        self.port.local_addr()
    }

    /// Connections that came in and are open now, those of joiners included.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.port.connections()
    }

    /// The next connection that a peer dialled, or somebody who wants to join: then its [`PeerInfo::peer`] is `None`, it takes
    /// one stream and small frames, and is closed when its time is over, or when it is closed here. `None` after [`Self::close`].
    pub async fn accept(&self) -> Option<Connection> {
        self.port.accept().await
    }

    /// Connects to the broker at `address` (`host:port` of its peers' port): one of this cluster, which has let this one in.
    /// Which one it is, is in [`PeerInfo::peer`].
    ///
    /// # Errors
    /// See [`DialError`]: its text says what to do.
    pub async fn dial(&self, address: &str) -> Result<Connection, DialError> {
        let outcome = self.dial_as_peer(address).await;
        outcome.inspect_err(|error| note(address, error))
    }

    async fn dial_as_peer(&self, address: &str) -> Result<Connection, DialError> {
        let dialing = self.dialing.lock().clone();
        let quinn = reach(self.port.endpoint(), &dialing, address, self.limits.dial_timeout).await?;
        let info = peer_info(&quinn);
        if info.peer.is_none_or(|peer| peer.cluster != self.identity.cluster) {
            let error = DialError::stranger(address, &self.identity, info.peer);
            quinn.close(ErrorCode::Unauthenticated.code().into(), error.to_string().as_bytes());
            return Err(error);
        }
        Ok(Connection::new(quinn, info, &self.limits.net, self.receiving.of_connection(), None))
    }

    /// Shows another certificate of the same broker, to those who dial and where it dials, from the next handshake on. Connections that
    /// are open stay.
    ///
    /// # Errors
    /// The files can't be used, or are another broker's; then everything stays as it was.
    pub fn renew(&self, tls: &PeerTls) -> Result<(), BindError> {
        let handshakes = tls.load()?;
        if handshakes.identity != self.identity {
            let reason = format!("the certificate of {}, and this is {}", handshakes.identity, self.identity);
            return Err(TlsError::Content { path: tls.certificate.clone(), reason }.into());
        }
        let dialing = client_config(handshakes.dialing, &self.limits.net)?;
        *self.dialing.lock() = dialing;
        self.port.renew(handshakes.accepting);
        Ok(())
    }

    /// Closes every connection with `reason`, accepts no more, and waits a moment for the peers to hear of it.
    pub async fn close(&self, code: u32, reason: &str) {
        self.port.close(code, reason).await;
    }
}

/// Settings of connections that are dialled here.
pub(super) fn client_config(
    tls: QuicClientConfig,
    limits: &NetLimits,
) -> Result<quinn::ClientConfig, BindError> {
    let mut transport = transport_config(limits)?;
    // The welcome's.
    transport.max_concurrent_uni_streams(1_u32.into());
    let mut config = quinn::ClientConfig::new(Arc::new(tls));
    config.transport_config(Arc::new(transport));
    Ok(config)
}

pub(super) fn peer_info(quinn: &quinn::Connection) -> PeerInfo {
    let certificate = peer_certificate(quinn);
    PeerInfo {
        address: quinn.remote_address(),
        identity: certificate.as_ref().and_then(subject_of),
        peer: certificate.as_ref().and_then(PeerIdentity::from_certificate),
    }
}

pub(super) fn note(address: &str, error: &DialError) {
    static LINES: LogBudget = LogBudget::new();
    metrics::counter!("tidemill_peer_failed_dials_total", "reason" => error.kind()).increment(1);
    if error.is_transient() {
        // A broker that is down is dialled again and again: whoever does that says so once.
        tracing::debug!(%address, "could not dial a peer: {error}");
    } else if let Some(left_out) = LINES.take() {
        tracing::warn!(%address, left_out, "could not dial a peer: {error:.1000}");
    }
}
