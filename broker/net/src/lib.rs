//! QUIC endpoint, TLS, connections, streams.
//!
//! The room between quinn and the broker's handlers: a [`Listener`] hands out clients' [`Connection`]s whose handshake is
//! done, a [`PeerEndpoint`] those of other brokers and to them, a connection hands out [`Stream`]s, and a stream reads and
//! writes whole frames. Everything that the other side controls has a named bound in [`NetLimits`] or [`PeerLimits`].
//!
//! Architecture invariant: of the broker, this crate alone names quinn; beside it the client, and what both share (`sdk/transport`). What a
//! frame carries is not looked at here.

mod config;
mod connection;
mod error;
mod frame_reader;
mod frame_writer;
mod garbage;
mod listener;
mod log_budget;
mod peer;
mod places;
mod port;
mod receiving;
mod reset;
mod tls;
mod transport;

pub use config::{NetConfig, NetLimits};
pub use connection::{Connection, PeerInfo, Stream};
pub use error::{BindError, ConnectionLost, ReadError, TlsError, WriteError};
pub use frame_reader::FrameReader;
pub use frame_writer::FrameWriter;
pub use listener::Listener;
pub use log_budget::LogBudget;
pub use peer::{DialError, JoinToken, JoinTokenError, PeerEndpoint, PeerLimits, PeerNetConfig, dial_to_join};
pub use tidemill_protocol::frame::{FrameError, FrameLimits, RawFrame as Frame};
pub use tls::{
    ALPN, CERTIFICATE_LIFE, ClientAuthentication, ClusterCa, DevCa, IssuedFiles, PEER_ALPN, PeerCertificate,
    PeerIdentity, PeerTls, ServerTls,
};
pub use transport::{bind_socket, endpoint_config, transport_config};
