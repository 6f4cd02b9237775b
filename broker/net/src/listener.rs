use std::net::SocketAddr;
use std::sync::Arc;

use rustls_pki_types::CertificateDer;

use crate::connection::{Connection, PeerInfo};
use crate::port::{Doorman, Guest, HandshakeError, Port, PortConfig};
use crate::receiving::ReceiveBudget;
use crate::transport::transport_config;
use crate::{BindError, LogBudget, NetConfig, NetLimits, ServerTls, TlsError};

/// The clients' QUIC endpoint: accepts connections.
#[derive(Debug)]
pub struct Listener {
    port: Port,
}

impl Listener {
    /// Binds the socket and begins to accept. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// The address, the certificates, or a limit that QUIC cannot express.
    pub fn bind(config: NetConfig) -> Result<Self, BindError> {
        let NetConfig { listen, tls, limits } = config;
        let (handshake, reset) = tls.quic_config()?;
        let transport = transport_config(&limits)?;
        let port = PortConfig {
            listen,
            handshake,
            reset,
            transport,
            gauge: || metrics::gauge!("tidemill_net_connections"),
        };
        let receiving = ReceiveBudget::new(limits.receiving_bytes_max, limits.connection_receiving_bytes_max);
        let clients = Clients { limits: limits.clone(), receiving };
        Ok(Self { port: Port::open(port, &limits, Arc::new(clients))? })
    }

    /// The next connection whose handshake is done; `None` after [`Self::close`].
    pub async fn accept(&self) -> Option<Connection> {
        self.port.accept().await
    }

    /// Where it listens, with the port that the system chose.
    #[must_use]
    pub const fn local_addr(&self) -> SocketAddr {
        self.port.local_addr()
    }

    /// Connections that are open now.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.port.connections()
    }

    /// Shows another certificate, and goes by another rule for clients, from the next handshake on. Connections that are open stay. The
    /// key should be the same: an earlier one's stateless resets are derived from it.
    ///
    /// # Errors
    /// The files can't be used; then everything stays as it was.
    pub fn renew(&self, tls: &ServerTls) -> Result<(), TlsError> {
        let (handshake, _reset) = tls.quic_config()?;
        self.port.renew(handshake);
        Ok(())
    }

    /// Closes every connection with `reason`, accepts no more, and waits a moment for the peers to hear of it.
    pub async fn close(&self, code: u32, reason: &str) {
        self.port.close(code, reason).await;
    }
}

/// Lets in every client that TLS lets in.
struct Clients {
    limits: NetLimits,
    receiving: ReceiveBudget,
}

impl Doorman for Clients {
    fn admit(&self, Guest { quinn, place }: Guest) -> Option<Connection> {
        metrics::counter!("tidemill_net_connections_total").increment(1);
        let peer = PeerInfo { address: quinn.remote_address(), identity: peer_subject(&quinn), peer: None };
        Some(Connection::new(quinn, peer, &self.limits, self.receiving.of_connection(), Some(place)))
    }

    fn asked_for_address(&self) {
        metrics::counter!("tidemill_net_retries_total").increment(1);
    }

    fn refused(&self, peer: SocketAddr, why: &'static str) {
        static LINES: LogBudget = LogBudget::new();
        metrics::counter!("tidemill_net_refused_connections_total").increment(1);
        if let Some(left_out) = LINES.take() {
            tracing::info!(%peer, left_out, "refused a connection: {why}");
        }
    }

    fn failed(&self, peer: SocketAddr, why: &HandshakeError) {
        static LINES: LogBudget = LogBudget::new();
        metrics::counter!("tidemill_net_failed_handshakes_total").increment(1);
        if let Some(left_out) = LINES.take() {
            tracing::info!(%peer, left_out, "a handshake failed: {why}");
        }
    }
}

/// The certificate that the other side showed and that TLS verified.
pub(crate) fn peer_certificate(connection: &quinn::Connection) -> Option<CertificateDer<'static>> {
    let chain = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    chain.into_iter().next()
}

/// Subject of the verified certificate, as `CN=..., O=...`.
pub(crate) fn subject_of(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
    Some(certificate.subject().to_string())
}

fn peer_subject(connection: &quinn::Connection) -> Option<String> {
    subject_of(&peer_certificate(connection)?)
}
