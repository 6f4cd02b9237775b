use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use quinn::Runtime as _;
use rustls_pki_types::CertificateDer;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::garbage::CountingSocket;
use crate::receiving::ReceiveBudget;
use crate::transport::{bind_socket, server_endpoint_config, transport_config};
use crate::{BindError, Connection, LogBudget, NetConfig, NetLimits};

/// How long [`Listener::close`] waits for peers to take notice.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// Connections whose handshake is done and that nobody has taken yet.
const READY_CONNECTIONS_MAX: usize = 128;

/// A QUIC endpoint that accepts connections.
#[derive(Debug)]
pub struct Listener {
    endpoint: quinn::Endpoint,
    local: SocketAddr,
    ready: tokio::sync::Mutex<mpsc::Receiver<Connection>>,
    places: Arc<Places>,
}

impl Listener {
    /// Binds the socket and begins to accept. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// The address, the certificates, or a limit that QUIC cannot express.
    pub fn bind(config: NetConfig) -> Result<Self, BindError> {
        let NetConfig { listen, tls, limits } = config;
        let socket_error = |source| BindError::Socket { address: listen, source };

        let (handshake, reset) = tls.quic_config()?;
        let mut server = quinn::ServerConfig::with_crypto(Arc::new(handshake));
        server
            .transport_config(Arc::new(transport_config(&limits)?))
            .max_incoming(limits.incoming_max)
            .incoming_buffer_size(limits.incoming_bytes_max)
            .incoming_buffer_size_total(limits.incoming_bytes_total_max);
        let socket = bind_socket(listen, limits.socket_buffer_bytes).map_err(socket_error)?;
        let local = socket.local_addr().map_err(socket_error)?;
        let runtime = Arc::new(quinn::TokioRuntime);
        let socket = runtime.wrap_udp_socket(socket).map_err(socket_error)?;
        let endpoint = quinn::Endpoint::new_with_abstract_socket(
            server_endpoint_config(&limits, reset),
            Some(server),
            CountingSocket::new(socket),
            runtime,
        )
        .map_err(socket_error)?;

        let (hand_over, ready) = mpsc::channel(READY_CONNECTIONS_MAX);
        let places = Arc::new(Places::new(&limits));
        let door = Door {
            endpoint: endpoint.clone(),
            handshakes: Arc::new(Semaphore::new(limits.handshakes_max)),
            places: Arc::clone(&places),
            receiving: ReceiveBudget::new(limits.receiving_bytes_max, limits.connection_receiving_bytes_max),
            limits: Arc::new(limits),
            hand_over,
        };
        tokio::spawn(door.run());
        Ok(Self { endpoint, local, ready: tokio::sync::Mutex::new(ready), places })
    }

    /// The next connection whose handshake is done; `None` after [`Self::close`].
    pub async fn accept(&self) -> Option<Connection> {
        self.ready.lock().await.recv().await
    }

    /// Where it listens, with the port that the system chose.
    #[must_use]
    pub const fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Connections that are open now.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.places.taken.lock().total
    }

    /// Closes every connection with `reason`, accepts no more, and waits a moment for the peers to hear of it.
    pub async fn close(&self, code: u32, reason: &str) {
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
    places: Arc<Places>,
    receiving: ReceiveBudget,
    limits: Arc<NetLimits>,
    hand_over: mpsc::Sender<Connection>,
}

impl Door {
    async fn run(self) {
        while let Some(incoming) = self.endpoint.accept().await {
            self.look_at(incoming);
        }
    }

    fn look_at(&self, incoming: quinn::Incoming) {
        let under_way = self.limits.handshakes_max.saturating_sub(self.handshakes.available_permits());
        if !incoming.remote_address_validated()
            && incoming.may_retry()
            && under_way >= self.limits.retry_above_handshakes
        {
            metrics::counter!("tidemill_net_retries_total").increment(1);
            // Refused only where a token was shown already, which `may_retry` excludes.
            let _ = incoming.retry();
            return;
        }
        let address = incoming.remote_address().ip();
        let Ok(permit) = Arc::clone(&self.handshakes).try_acquire_owned() else {
            refuse(incoming, "too many handshakes are under way");
            return;
        };
        let Some(slot) = Places::take(&self.places, address) else {
            refuse(incoming, "too many connections are open");
            return;
        };
        let hand_over = self.hand_over.clone();
        let limits = Arc::clone(&self.limits);
        let receiving = self.receiving.of_connection();
        tokio::spawn(shake_hands(incoming, (slot, permit), receiving, limits, hand_over));
    }
}

fn refuse(incoming: quinn::Incoming, why: &'static str) {
    static LINES: LogBudget = LogBudget::new();
    metrics::counter!("tidemill_net_refused_connections_total").increment(1);
    if let Some(left_out) = LINES.take() {
        tracing::info!(peer = %incoming.remote_address(), left_out, "refused a connection: {why}");
    }
    incoming.refuse();
}

async fn shake_hands(
    incoming: quinn::Incoming,
    (slot, permit): (ConnectionSlot, OwnedSemaphorePermit),
    receiving: ReceiveBudget,
    limits: Arc<NetLimits>,
    hand_over: mpsc::Sender<Connection>,
) {
    let peer = incoming.remote_address();
    let outcome = tokio::time::timeout(limits.handshake_timeout, incoming.into_future()).await;
    drop(permit);
    let connection = match outcome {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => return handshake_failed(peer, &error),
        Err(_) => return handshake_failed(peer, &"it took too long"),
    };
    metrics::counter!("tidemill_net_connections_total").increment(1);
    let identity = peer_subject(&connection);
    let connection = Connection::new(connection, identity, &limits, receiving, slot);
    // Nobody accepts any more: dropping the connection closes it.
    let _ = hand_over.send(connection).await;
}

fn handshake_failed(peer: SocketAddr, why: &dyn std::fmt::Display) {
    static LINES: LogBudget = LogBudget::new();
    metrics::counter!("tidemill_net_failed_handshakes_total").increment(1);
    if let Some(left_out) = LINES.take() {
        tracing::info!(%peer, left_out, "a handshake failed: {why}");
    }
}

/// Subject of the verified client certificate, as `CN=..., O=...`.
fn peer_subject(connection: &quinn::Connection) -> Option<String> {
    let chain = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    let (_, certificate) = x509_parser::parse_x509_certificate(chain.first()?).ok()?;
    Some(certificate.subject().to_string())
}

/// How many connections there may be, and how many there are.
#[derive(Debug)]
struct Places {
    total_max: usize,
    per_address_max: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    total: usize,
    by_address: HashMap<IpAddr, usize>,
}

impl Places {
    fn new(limits: &NetLimits) -> Self {
        Self {
            total_max: limits.connections_max,
            per_address_max: limits.connections_per_address_max,
            taken: Mutex::default(),
        }
    }

    fn take(this: &Arc<Self>, address: IpAddr) -> Option<ConnectionSlot> {
        let mut taken = this.taken.lock();
        if taken.total >= this.total_max {
            return None;
        }
        let here = taken.by_address.entry(address).or_default();
        if *here >= this.per_address_max {
            return None;
        }
        *here += 1;
        taken.total += 1;
        drop(taken);
        metrics::gauge!("tidemill_net_connections").increment(1);
        Some(ConnectionSlot { places: Arc::clone(this), address })
    }
}

/// One connection's place, from its handshake until the last handle to it is gone.
#[derive(Debug)]
pub(crate) struct ConnectionSlot {
    places: Arc<Places>,
    address: IpAddr,
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        let mut taken = self.places.taken.lock();
        taken.total -= 1;
        if let Some(here) = taken.by_address.get_mut(&self.address) {
            *here -= 1;
            if *here == 0 {
                taken.by_address.remove(&self.address);
            }
        }
        drop(taken);
        metrics::gauge!("tidemill_net_connections").decrement(1);
    }
}
