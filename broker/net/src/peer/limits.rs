use std::net::SocketAddr;
use std::time::Duration;

use tidemill_protocol::frame::FrameLimits;

use crate::{NetLimits, PeerTls};

/// Streams that who joins may have open at once as far as QUIC goes: one more than it may use, so that who opens too many is
/// told, where QUIC would let it wait without a word.
const JOINER_STREAMS_MAX: u32 = 2;

/// What a [`crate::PeerEndpoint`] needs to start.
#[derive(Debug, Clone)]
pub struct PeerNetConfig {
    /// The UDP address to bind. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// Certificate, key, and the authority of the cluster.
    pub tls: PeerTls,
    /// What peers, and who would be one, may make the broker hold.
    pub limits: PeerLimits,
}

/// Bounds on what peers control, and the transport's tuning. Sizes in bytes.
#[derive(Debug, Clone)]
pub struct PeerLimits {
    /// For brokers of the cluster.
    pub net: NetLimits,
    /// For resolving a host name, and again for each of its addresses until the peer has let this broker in.
    pub dial_timeout: Duration,
    /// Connections of those who show no certificate.
    pub joiners_max: usize,
    /// From the end of its handshake until such a connection is closed.
    pub joiner_life: Duration,
    /// Length of a frame on such a connection, either way.
    pub joiner_frame_bytes_max: usize,
    /// Unread bytes on such a connection.
    pub joiner_window_bytes: u32,
}

impl Default for PeerLimits {
    fn default() -> Self {
        Self {
            net: NetLimits {
                // Three of each broker, and as many again that linger.
                connections_max: 2048,
                connections_per_address_max: 2048,
                handshakes_max: 64,
                retry_above_handshakes: 16,
                handshake_timeout: Duration::from_secs(5),
                incoming_max: 128,
                incoming_bytes_total_max: 4 << 20,
                streams_max: 8192,
                // Twice what is in flight to a near peer at most, and 32 of these for the connection: see `peer/mod.rs`.
                stream_window_bytes: 8 << 20,
                connection_window_bytes: 256 << 20,
                send_window_bytes: 256 << 20,
                // An entry of 16 MiB with all that stands around it.
                frames: FrameLimits { frame_bytes_max: 32 << 20, ..FrameLimits::default() },
                frame_deadline: Duration::from_secs(30),
                keep_alive: Duration::from_millis(500),
                idle_timeout: Duration::from_secs(2),
                ..NetLimits::default()
            },
            dial_timeout: Duration::from_secs(3),
            joiners_max: 8,
            joiner_life: Duration::from_secs(10),
            joiner_frame_bytes_max: 64 << 10,
            joiner_window_bytes: 128 << 10,
        }
    }
}

impl PeerLimits {
    /// For who joins, and for every connection until it is known whose it is.
    pub(super) fn of_joiners(&self) -> NetLimits {
        let frame_bytes_max = self.joiner_frame_bytes_max;
        NetLimits {
            streams_max: JOINER_STREAMS_MAX,
            connection_window_bytes: self.joiner_window_bytes,
            frames: FrameLimits { frame_bytes_max, header_bytes_max: frame_bytes_max },
            receiving_bytes_max: frame_bytes_max.saturating_mul(self.joiners_max),
            connection_receiving_bytes_max: frame_bytes_max,
            ..self.net.clone()
        }
    }
}
