//! How QUIC is tuned. Shared with benchmarks, so that a bare quinn peer runs under the same settings.
//!
//! - **Packet size.** quinn sends up to ten packets as one segmented datagram (GSO) and does not check that ten fit
//!   the 65,507 bytes that UDP allows; above 6,550 bytes the kernel refuses the batch and quinn takes it for lost.
//!   So path MTU discovery ends at 6,500: a 1,500-byte network settles at its own size within a few probes, jumbo
//!   frames and loopback come close to the best that one system call can carry.
//! - **Acknowledgements.** The frequency extension lets the peer acknowledge every tenth packet instead of every
//!   second; bulk transfer spends less on both sides, and the delay bound keeps loss recovery as it was.
//! - **Windows** are those of [`NetLimits`]: the product of a fast link and its delay, and what a slow reader
//!   makes the other side hold.
//! - **Black holes.** Loss by congestion looks like a path that swallows large packets: the search for them begins again after
//!   [`BLACK_HOLE_COOLDOWN`] rather than after quinn's minute, in which every packet has 1,200 bytes, at twice the processor time
//!   per byte.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use crate::congestion::BoundedCubic;
use crate::reset::{RandomIds, ResetKey};
use crate::{BindError, NetLimits};

/// Ten packets of this size fit one UDP datagram; see the module's head.
pub(crate) const MTU_BYTES_MAX: u16 = 6_500;
/// What a connection starts with: safe on every path, tunnels included.
const INITIAL_MTU_BYTES: u16 = 1_200;
/// A search for a larger packet stops when it could win less than this.
const MTU_STEP_BYTES: u16 = 64;
/// How long a connection keeps to the smallest packets once the large ones seem to be swallowed.
const BLACK_HOLE_COOLDOWN: Duration = Duration::from_secs(2);
/// Packets that may arrive before the peer must acknowledge.
const ACK_EVERY_PACKETS: u32 = 10;
/// Longest that the peer may sit on an acknowledgement.
const ACK_DELAY: Duration = Duration::from_millis(5);
/// Round-trip time assumed before the first sample: paces the first flight and its retransmission.
const INITIAL_RTT: Duration = Duration::from_millis(100);

/// The transport settings of every Tidemill connection, from `limits`.
///
/// # Errors
/// A limit that QUIC cannot express.
pub fn transport_config(limits: &NetLimits) -> Result<quinn::TransportConfig, BindError> {
    let mut mtu = quinn::MtuDiscoveryConfig::default();
    mtu.upper_bound(limits.mtu_bytes_max.clamp(INITIAL_MTU_BYTES, MTU_BYTES_MAX))
        .minimum_change(MTU_STEP_BYTES)
        .black_hole_cooldown(BLACK_HOLE_COOLDOWN);

    let mut acks = quinn::AckFrequencyConfig::default();
    acks.ack_eliciting_threshold(ACK_EVERY_PACKETS.into()).max_ack_delay(Some(ACK_DELAY));

    let idle = quinn::IdleTimeout::try_from(limits.idle_timeout).map_err(|_| BindError::Limit {
        name: "idle_timeout",
        value: u64::try_from(limits.idle_timeout.as_millis()).unwrap_or(u64::MAX),
    })?;

    let mut transport = quinn::TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(limits.streams_max.into())
        // Nothing in the protocol lets a client open a one-way stream.
        .max_concurrent_uni_streams(0u32.into())
        .stream_receive_window(limits.stream_window_bytes.into())
        .receive_window(limits.connection_window_bytes.into())
        .send_window(limits.send_window_bytes)
        .max_idle_timeout(Some(idle))
        .keep_alive_interval(Some(limits.keep_alive))
        .datagram_receive_buffer_size(None)
        .initial_rtt(INITIAL_RTT)
        .initial_mtu(INITIAL_MTU_BYTES)
        .mtu_discovery_config(Some(mtu))
        .ack_frequency_config(Some(acks))
        .congestion_controller_factory(Arc::new(BoundedCubic::new()));
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
