//! TLS 1.3 for the endpoint, and a certificate authority of one's own for development.

mod dev_ca;
mod files;
mod server;

pub use dev_ca::{DevCa, IssuedFiles};
pub use server::{ClientAuthentication, ServerTls};

/// The application protocol that both sides name in the handshake.
pub const ALPN: &[u8] = b"tidemill/1";
