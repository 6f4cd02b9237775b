//! How QUIC is tuned, by brokers and clients alike: what both ends of a path must agree in to get the most of it.
//!
//! - **Packet size.** quinn sends up to ten packets as one segmented datagram (GSO) and does not check that ten fit
//!   the 65,507 bytes that UDP allows; above 6,550 bytes the kernel refuses the batch and quinn takes it for lost.
//!   So path MTU discovery ends at 6,500: a 1,500-byte network settles at its own size within a few probes, jumbo
//!   frames and loopback come close to the best that one system call can carry.
//! - **Acknowledgements.** The frequency extension lets the peer acknowledge every tenth packet instead of every
//!   second; bulk transfer spends less on both sides, and the delay bound keeps loss recovery as it was.
//! - **Black holes.** Loss by congestion looks like a path that swallows large packets: the search for them begins again after
//!   two seconds rather than after quinn's minute, in which every packet has 1,200 bytes, at twice the processor time per byte.
//! - **Congestion**: Cubic, bounded by what the path can hold.
//!
//! Windows, time limits and numbers of streams are each side's own.

mod congestion;

use std::sync::Arc;
use std::time::Duration;

use self::congestion::BoundedCubic;

/// Ten packets of this size fit one UDP datagram; see the crate's head.
pub const MTU_BYTES_MAX: u16 = 6_500;
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

/// Settings with which path MTU discovery goes up to `mtu_bytes_max` bytes of UDP payload, and no further than
/// [`MTU_BYTES_MAX`].
#[must_use]
pub fn tuned(mtu_bytes_max: u16) -> quinn::TransportConfig {
    let mut mtu = quinn::MtuDiscoveryConfig::default();
    mtu.upper_bound(mtu_bytes_max.clamp(INITIAL_MTU_BYTES, MTU_BYTES_MAX))
        .minimum_change(MTU_STEP_BYTES)
        .black_hole_cooldown(BLACK_HOLE_COOLDOWN);

    let mut acks = quinn::AckFrequencyConfig::default();
    acks.ack_eliciting_threshold(ACK_EVERY_PACKETS.into()).max_ack_delay(Some(ACK_DELAY));

    let mut transport = quinn::TransportConfig::default();
    transport
        .datagram_receive_buffer_size(None)
        .initial_rtt(INITIAL_RTT)
        .initial_mtu(INITIAL_MTU_BYTES)
        .mtu_discovery_config(Some(mtu))
        .ack_frequency_config(Some(acks))
        .congestion_controller_factory(Arc::new(BoundedCubic::new()));
    transport
}
