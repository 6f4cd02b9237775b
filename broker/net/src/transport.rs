//! How QUIC is tuned. Shared with benchmarks, so that a bare quinn peer runs under the same settings.
//!
//! - **Packets, acknowledgements and congestion** are [`tidemill_transport`]'s, as for clients.
//! - **Windows** are those of [`NetLimits`]: the product of a fast link and its delay, and what a slow reader
//!   makes the other side hold.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;

use socket2::{Domain, Protocol, Socket, Type};
use tidemill_transport::MTU_BYTES_MAX;

use crate::reset::{RandomIds, ResetKey};
use crate::{BindError, NetLimits};

/// The transport settings of every Tidemill connection, from `limits`.
///
/// # Errors
/// A limit that QUIC cannot express.
pub fn transport_config(limits: &NetLimits) -> Result<quinn::TransportConfig, BindError> {
    let idle = quinn::IdleTimeout::try_from(limits.idle_timeout).map_err(|_| BindError::Limit {
        name: "idle_timeout",
        value: u64::try_from(limits.idle_timeout.as_millis()).unwrap_or(u64::MAX),
    })?;

    let mut transport = tidemill_transport::tuned(limits.mtu_bytes_max);
    transport
        .max_concurrent_bidi_streams(limits.streams_max.into())
        // Nothing in the protocol lets a client open a one-way stream.
        .max_concurrent_uni_streams(0u32.into())
        .stream_receive_window(limits.stream_window_bytes.into())
        .receive_window(limits.connection_window_bytes.into())
        .send_window(limits.send_window_bytes)
        .max_idle_timeout(Some(idle))
        .keep_alive_interval(Some(limits.keep_alive));
    Ok(transport)
}

/// Endpoint settings that go with [`transport_config`]: accepts packets as large as discovery may find.
#[must_use]
pub fn endpoint_config(limits: &NetLimits) -> quinn::EndpointConfig {
    let mut endpoint = quinn::EndpointConfig::default();
    tune_endpoint(&mut endpoint, limits);
    endpoint
}

/// As [`endpoint_config`], for a server whose stateless resets stay valid when it is started again.
pub(crate) fn server_endpoint_config(limits: &NetLimits, reset: Arc<ResetKey>) -> quinn::EndpointConfig {
    let mut endpoint = quinn::EndpointConfig::new(reset);
    endpoint.cid_generator(|| Box::new(RandomIds));
    tune_endpoint(&mut endpoint, limits);
    endpoint
}

fn tune_endpoint(endpoint: &mut quinn::EndpointConfig, limits: &NetLimits) {
    let payload = limits.mtu_bytes_max.clamp(1_472, MTU_BYTES_MAX);
    // Cannot fail: the clamp keeps it inside what QUIC allows, and the default stands otherwise.
    let _ = endpoint.max_udp_payload_size(payload);
}

/// A UDP socket for `address` with large kernel buffers: a burst of packets that the endpoint has no time to read
/// yet waits there instead of being lost.
///
/// # Errors
/// What the system says about the address. Buffers that it does not grant are no error.
pub fn bind_socket(address: SocketAddr, buffer_bytes: usize) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if let Err(error) = socket.set_recv_buffer_size(buffer_bytes) {
        tracing::debug!(%error, "the receive buffer keeps its size");
    }
    if let Err(error) = socket.set_send_buffer_size(buffer_bytes) {
        tracing::debug!(%error, "the send buffer keeps its size");
    }
    socket.bind(&address.into())?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}
