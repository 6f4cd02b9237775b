//! TLS 1.3 for the endpoints, and the authority that signs a cluster's certificates.

mod authority;
mod dev_ca;
mod files;
mod fingerprint;
mod identity;
mod peer;
mod pinned;
mod server;

pub use authority::{CERTIFICATE_LIFE, ClusterCa, IssuedFiles, PeerCertificate};
pub use dev_ca::DevCa;
pub(crate) use identity::PEER_NAME;
pub use identity::PeerIdentity;
pub(crate) use peer::joining;
pub use peer::{PEER_ALPN, PeerTls};
pub use server::{ClientAuthentication, ServerTls};

/// The application protocol that both sides of a client's connection name in the handshake.
pub const ALPN: &[u8] = b"tidemill/1";
