//! QUIC endpoint, TLS, connections, streams.
//!
//! The room between quinn and the broker's handlers: a [`Listener`] hands out [`Connection`]s whose handshake is
//! done, a connection hands out [`Stream`]s, and a stream reads and writes whole frames. Everything that a peer
//! controls has a named bound in [`NetLimits`].
//!
//! Architecture invariant: this crate and the client are the only ones that name quinn. What a frame carries is
//! not looked at here.

mod config;
mod connection;
mod error;
mod frame_reader;
mod frame_writer;
mod garbage;
mod listener;
mod log_budget;
mod receiving;
mod reset;
mod tls;
mod transport;

pub use config::{NetConfig, NetLimits};
pub use connection::{Connection, ConnectionStats, PeerInfo, Stream};
pub use error::{BindError, ConnectionLost, ReadError, TlsError, WriteError};
pub use frame_reader::FrameReader;
pub use frame_writer::FrameWriter;
pub use listener::Listener;
pub use log_budget::LogBudget;
pub use tidemill_protocol::frame::{FrameError, FrameLimits, RawFrame as Frame};
pub use tls::{ALPN, ClientAuthentication, DevCa, IssuedFiles, ServerTls};
pub use transport::{bind_socket, endpoint_config, transport_config};
