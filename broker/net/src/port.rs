//! What every endpoint that accepts connections stands on: its socket, its places, its door. Who may come in and how they are
//! treated, a [`Doorman`] says.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use metrics::Gauge;
use parking_lot::Mutex;
use quinn::Runtime as _;
use quinn::crypto::rustls::QuicServerConfig;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::garbage::CountingSocket;
use crate::places::{Place, Places};
use crate::reset::ResetKey;
use crate::transport::{bind_socket, server_endpoint_config};
use crate::{BindError, Connection, NetLimits};

/// How long [`Port::close`] waits for peers to take notice.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// Connections whose handshake is done and that nobody has taken yet.
const READY_CONNECTIONS_MAX: usize = 128;

/// Decides about those who come to a [`Port`], and keeps count of them in its own words.
pub(crate) trait Doorman: Send + Sync + 'static {
    /// The handshake is done: the connection to hand out; `None` where it was turned away.
    fn admit(&self, guest: Guest) -> Option<Connection>;
    /// Somebody was asked to prove its address.
    fn asked_for_address(&self);
    /// Somebody was turned away before the handshake.
    fn refused(&self, peer: SocketAddr, why: &'static str);
    /// A handshake came to nothing.
    fn failed(&self, peer: SocketAddr, why: &HandshakeError);
}

/// Somebody whose handshake is done.
pub(crate) struct Guest {
    pub(crate) quinn: quinn::Connection,
    pub(crate) place: Place,
}

/// Why a handshake came to nothing.
pub(crate) enum HandshakeError {
    Failed(quinn::ConnectionError),
    TookTooLong,
}

impl fmt::Display for HandshakeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(error) => error.fmt(f),
            Self::TookTooLong => f.write_str("it took too long"),
        }
    }
}

/// What a [`Port`] needs to open.
pub(crate) struct PortConfig {
    pub(crate) listen: SocketAddr,
    pub(crate) handshake: QuicServerConfig,
    pub(crate) reset: Arc<ResetKey>,
    /// Of connections that come in.
    pub(crate) transport: quinn::TransportConfig,
    /// The metric that shows how many connections are open.
    pub(crate) gauge: fn() -> Gauge,
}

/// A QUIC endpoint that accepts connections.
#[derive(Debug)]
pub(crate) struct Port {
    endpoint: quinn::Endpoint,
    accepting: Mutex<quinn::ServerConfig>,
    local: SocketAddr,
    ready: tokio::sync::Mutex<mpsc::Receiver<Connection>>,
    places: Arc<Places>,
}

impl Port {
    /// Binds the socket and begins to accept. Must be called inside a tokio runtime.
    pub(crate) fn open(
        config: PortConfig,
        limits: &NetLimits,
        doorman: Arc<dyn Doorman>,
    ) -> Result<Self, BindError> {
        let PortConfig { listen, handshake, reset, transport, gauge } = config;
        let socket_error = |source| BindError::Socket { address: listen, source };

        let mut server = quinn::ServerConfig::with_crypto(Arc::new(handshake));
        server
            .transport_config(Arc::new(transport))
            .max_incoming(limits.incoming_max)
            .incoming_buffer_size(limits.incoming_bytes_max)
            .incoming_buffer_size_total(limits.incoming_bytes_total_max);
        let socket = bind_socket(listen, limits.socket_buffer_bytes).map_err(socket_error)?;
        let local = socket.local_addr().map_err(socket_error)?;
        let runtime = Arc::new(quinn::TokioRuntime);
        let socket = runtime.wrap_udp_socket(socket).map_err(socket_error)?;
        let endpoint = quinn::Endpoint::new_with_abstract_socket(
            server_endpoint_config(limits, reset),
            Some(server.clone()),
            CountingSocket::new(socket),
            runtime,
        )
        .map_err(socket_error)?;

        let (hand_over, ready) = mpsc::channel(READY_CONNECTIONS_MAX);
        let places = Places::new(limits.connections_max, limits.connections_per_address_max, gauge);
        let door = Door {
            endpoint: endpoint.clone(),
            handshakes: Arc::new(Semaphore::new(limits.handshakes_max)),
            handshakes_max: limits.handshakes_max,
            retry_above_handshakes: limits.retry_above_handshakes,
            handshake_timeout: limits.handshake_timeout,
            places: Arc::clone(&places),
            doorman,
            hand_over,
        };
        tokio::spawn(door.run());
        let (accepting, ready) = (Mutex::new(server), tokio::sync::Mutex::new(ready));
        Ok(Self { endpoint, accepting, local, ready, places })
    }

    /// Who connects from here on is shown another certificate; whoever is connected stays.
    pub(crate) fn renew(&self, handshake: QuicServerConfig) {
        let mut accepting = self.accepting.lock();
        accepting.crypto = Arc::new(handshake);
        self.endpoint.set_server_config(Some(accepting.clone()));
    }

    /// For those who connect from this port.
    pub(crate) const fn endpoint(&self) -> &quinn::Endpoint {
        &self.endpoint
    }

    pub(crate) async fn accept(&self) -> Option<Connection> {
        self.ready.lock().await.recv().await
    }

    pub(crate) const fn local_addr(&self) -> SocketAddr {
        self.local
    }

    pub(crate) fn connections(&self) -> usize {
        self.places.taken()
    }

    pub(crate) async fn close(&self, code: u32, reason: &str) {
        self.endpoint.close(code.into(), reason.as_bytes());
        if tokio::time::timeout(CLOSE_TIMEOUT, self.endpoint.wait_idle()).await.is_err() {
            tracing::debug!("some peers did not acknowledge the close in time");
        }
    }
}

/// Looks at each connection attempt: refuses it, asks it to prove its address, or shakes hands.
struct Door {
    endpoint: quinn::Endpoint,
    handshakes: Arc<Semaphore>,
    handshakes_max: usize,
    retry_above_handshakes: usize,
    handshake_timeout: Duration,
    places: Arc<Places>,
    doorman: Arc<dyn Doorman>,
    hand_over: mpsc::Sender<Connection>,
}

impl Door {
    async fn run(self) {
        while let Some(incoming) = self.endpoint.accept().await {
            self.look_at(incoming);
        }
    }

    fn look_at(&self, incoming: quinn::Incoming) {
        let under_way = self.handshakes_max.saturating_sub(self.handshakes.available_permits());
        if !incoming.remote_address_validated()
            && incoming.may_retry()
            && under_way >= self.retry_above_handshakes
        {
            self.doorman.asked_for_address();
            // Refused only where a token was shown already, which `may_retry` excludes.
            let _ = incoming.retry();
            return;
        }
        let peer = incoming.remote_address();
        let Ok(permit) = Arc::clone(&self.handshakes).try_acquire_owned() else {
            self.doorman.refused(peer, "too many handshakes are under way");
            incoming.refuse();
            return;
        };
        let Some(place) = self.places.take(peer.ip()) else {
            self.doorman.refused(peer, "too many connections are open");
            incoming.refuse();
            return;
        };
        tokio::spawn(shake_hands(
            incoming,
            (place, permit),
            self.handshake_timeout,
            Arc::clone(&self.doorman),
            self.hand_over.clone(),
        ));
    }
}

async fn shake_hands(
    incoming: quinn::Incoming,
    (place, permit): (Place, OwnedSemaphorePermit),
    timeout: Duration,
    doorman: Arc<dyn Doorman>,
    hand_over: mpsc::Sender<Connection>,
) {
    let peer = incoming.remote_address();
    let outcome = tokio::time::timeout(timeout, incoming.into_future()).await;
    drop(permit);
    let quinn = match outcome {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => return doorman.failed(peer, &HandshakeError::Failed(error)),
        Err(_) => return doorman.failed(peer, &HandshakeError::TookTooLong),
    };
    if let Some(connection) = doorman.admit(Guest { quinn, place }) {
        // Nobody accepts any more: dropping the connection closes it.
        let _ = hand_over.send(connection).await;
    }
}
