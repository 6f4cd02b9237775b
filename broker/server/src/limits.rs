//! Limits that follow from others, so that all of them agree.

use tidemill_log::wal::WalConfig;
use tidemill_net::{NetLimits, PeerLimits};
use tidemill_protocol::frame::FrameLimits;
use tidemill_raft::ReplicaLimits;

use crate::config::BrokerConfig;

/// Streams of one connection that may be on their way to a refusal.
const REFUSED_STREAMS_MAX: u32 = 16;

/// The largest unit that a shard takes. A log of small segments takes small entries only: what does not fit is refused
/// before it is proposed.
pub(crate) fn unit_bytes_max(config: &BrokerConfig) -> usize {
    const ENTRY_OVERHEAD_BYTES: usize = 64 << 10;
    let wal = WalConfig { segment_bytes: config.wal.segment_bytes, ..WalConfig::new("wal") };
    ReplicaLimits::default().unit_bytes_max.min(wal.entry_bytes_max().saturating_sub(ENTRY_OVERHEAD_BYTES))
}

/// The largest batch that this broker takes: it must fit a frame and a unit.
pub(crate) fn batch_bytes_max(config: &BrokerConfig, unit_bytes_max: usize) -> usize {
    const FRAME_OVERHEAD_BYTES: usize = 64 << 10;
    const UNIT_OVERHEAD_BYTES: usize = 1 << 10;
    let of_frame = config.limits.frame_bytes_max.saturating_sub(FRAME_OVERHEAD_BYTES);
    of_frame.min(unit_bytes_max.saturating_sub(UNIT_OVERHEAD_BYTES))
}

/// What the network lets a peer do.
pub(crate) fn net_limits(config: &BrokerConfig) -> NetLimits {
    NetLimits {
        connections_max: config.limits.connections_max,
        // A few more than may be in use: who opens too many is told, where QUIC would let him wait without a word.
        streams_max: config.limits.streams_max.saturating_add(REFUSED_STREAMS_MAX),
        frames: FrameLimits { frame_bytes_max: config.limits.frame_bytes_max, ..FrameLimits::default() },
        receiving_bytes_max: config.limits.receiving_bytes_max,
        connection_receiving_bytes_max: (config.limits.receiving_bytes_max / 4)
            .max(config.limits.frame_bytes_max),
        ..NetLimits::default()
    }
}

/// What the network lets other brokers do. They were configured alike, more or less: what one takes from a client, another must take from it.
pub(crate) fn peer_limits(config: &BrokerConfig) -> PeerLimits {
    let defaults = PeerLimits::default();
    let frames = defaults.net.frames;
    let frame_bytes_max = frames.frame_bytes_max.max(config.limits.frame_bytes_max);
    PeerLimits {
        net: NetLimits { frames: FrameLimits { frame_bytes_max, ..frames }, ..defaults.net },
        ..defaults
    }
}
