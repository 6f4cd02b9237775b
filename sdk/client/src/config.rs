use std::path::PathBuf;
use std::time::Duration;

/// Whose certificates are trusted to be the broker's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trust {
    /// The authorities that the operating system trusts.
    System,
    /// The authorities of a PEM file, such as the `ca.pem` that a development broker makes.
    File(PathBuf),
    /// Anybody: whoever answers at the address can read and forge everything. For experiments only.
    Anyone,
}

/// A certificate of one's own to show to the broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// PEM: the certificate, then those between it and its authority.
    pub certificate: PathBuf,
    /// PEM: its private key.
    pub key: PathBuf,
}

/// How to reach a cluster, and as whom.
///
/// ```
/// # use tidemill_client::ClientConfig;
/// let config = ClientConfig::new(["localhost:4433"]).trust_file("tls/ca.pem").client_id("billing");
/// ```
#[derive(Clone)]
pub struct ClientConfig {
    pub(crate) addresses: Vec<String>,
    pub(crate) trust: Trust,
    pub(crate) identity: Option<Identity>,
    pub(crate) server_name: Option<String>,
    pub(crate) client_id: String,
    pub(crate) connect_timeout: Duration,
    pub(crate) request_timeout: Duration,
    pub(crate) backoff_min: Duration,
    pub(crate) backoff_max: Duration,
    pub(crate) receive_window_bytes: u32,
    pub(crate) rack: Option<String>,
}

impl std::fmt::Debug for ClientConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientConfig")
            .field("addresses", &self.addresses)
            .field("trust", &self.trust)
            .field("identity", &self.identity)
            .field("client_id", &self.client_id)
            .finish_non_exhaustive()
    }
}

impl ClientConfig {
    /// A cluster of which at least one of `addresses` (`host:port`) is a broker. The others are found from there.
    #[must_use]
    pub fn new<A: Into<String>>(addresses: impl IntoIterator<Item = A>) -> Self {
        Self {
            addresses: addresses.into_iter().map(Into::into).collect(),
            trust: Trust::System,
            identity: None,
            server_name: None,
            client_id: String::new(),
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(30),
            backoff_min: Duration::from_millis(20),
            backoff_max: Duration::from_secs(1),
            receive_window_bytes: 64 << 20,
            rack: None,
        }
    }

    /// The addresses as configured.
    #[must_use]
    pub fn addresses(&self) -> &[String] {
        &self.addresses
    }

    /// Whose certificates are trusted. By default [`Trust::System`].
    #[must_use]
    pub fn trust(mut self, trust: Trust) -> Self {
        self.trust = trust;
        self
    }

    /// [`Trust::File`].
    #[must_use]
    pub fn trust_file(self, path: impl Into<PathBuf>) -> Self {
        self.trust(Trust::File(path.into()))
    }

    /// [`Trust::Anyone`]: no protection against whoever sits between. For experiments only.
    #[must_use]
    pub fn insecure(self) -> Self {
        self.trust(Trust::Anyone)
    }

    /// The certificate and key files (PEM) to show to brokers that ask.
    #[must_use]
    pub fn identity(mut self, certificate: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        self.identity = Some(Identity { certificate: certificate.into(), key: key.into() });
        self
    }

    /// The name that the broker's certificate must carry. By default the host of the address.
    #[must_use]
    pub fn server_name(mut self, name: impl Into<String>) -> Self {
        self.server_name = Some(name.into());
        self
    }

    /// What to be called in the broker's logs.
    #[must_use]
    pub fn client_id(mut self, client_id: impl Into<String>) -> Self {
        self.client_id = client_id.into();
        self
    }

    /// Where this client runs, as the brokers name their racks: consumers read from a replica in it, where there is one. By
    /// default they read where a partition is led.
    #[must_use]
    pub fn rack(mut self, rack: impl Into<String>) -> Self {
        self.rack = Some(rack.into());
        self
    }

    /// How long one attempt to connect may take. By default 5 s.
    #[must_use]
    pub const fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Deadline of a request with all its attempts. By default 30 s.
    #[must_use]
    pub const fn request_timeout(mut self, timeout: Duration) -> Self {
        self.request_timeout = timeout;
        self
    }

    /// Pause after the first failure and the longest one; it doubles in between, with jitter. By default 20 ms, 1 s.
    #[must_use]
    pub const fn backoff(mut self, min: Duration, max: Duration) -> Self {
        self.backoff_min = min;
        self.backoff_max = max;
        self
    }

    /// Bytes that one connection may hold before they are read. By default 64 MiB.
    #[must_use]
    pub const fn receive_window_bytes(mut self, bytes: u32) -> Self {
        self.receive_window_bytes = bytes;
        self
    }
}
