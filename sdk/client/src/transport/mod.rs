//! QUIC as this client uses it: settings, TLS, frames.

mod endpoint;
mod frames;
mod order;
mod tls;

pub(crate) use endpoint::Dialer;
pub(crate) use frames::{FrameReader, FrameWriter, ReadError, Wire, WriteError, decode};
pub(crate) use order::SendOrder;
