use std::net::SocketAddr;
use std::time::Duration;

use tidemill_protocol::frame::FrameLimits;

use crate::ServerTls;

/// What a [`crate::Listener`] needs to start.
#[derive(Debug, Clone)]
pub struct NetConfig {
    /// The UDP address to bind. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// Certificate, key, and who must show one in turn.
    pub tls: ServerTls,
    /// What a peer may make the broker hold.
    pub limits: NetLimits,
}

/// Bounds on everything that a peer controls, and the transport's tuning. Sizes in bytes.
#[derive(Debug, Clone)]
pub struct NetLimits {
    /// Connections whose handshake is done. Beyond it new ones are refused.
    pub connections_max: usize,
    /// Of these, from one IP address.
    pub connections_per_address_max: usize,
    /// Handshakes under way at once. Beyond it new ones are refused.
    pub handshakes_max: usize,
    /// From this many handshakes on, a peer must prove its address (a Retry packet) before it costs anything.
    pub retry_above_handshakes: usize,
    /// A handshake that takes longer is dropped.
    pub handshake_timeout: Duration,
    /// Connection attempts that wait to be looked at.
    pub incoming_max: usize,
    /// Bytes kept for one of them.
    pub incoming_bytes_max: u64,
    /// Bytes kept for all of them.
    pub incoming_bytes_total_max: u64,
    /// Streams that a peer may have open on one connection: a produce stream per partition, subscriptions, requests.
    pub streams_max: u32,
    /// Unread bytes on one stream. At least one frame's worth, or a large frame crawls.
    pub stream_window_bytes: u32,
    /// Unread bytes over all streams of a connection.
    pub connection_window_bytes: u32,
    /// Bytes written and not yet acknowledged by the peer, over all streams of a connection.
    pub send_window_bytes: u64,
    /// Length of one frame, and of its header.
    pub frames: FrameLimits,
    /// Bytes in buffers of frames that are being received or that a handler has not done with, over all connections.
    pub receiving_bytes_max: usize,
    /// Of these, for one connection. At least one frame.
    pub connection_receiving_bytes_max: usize,
    /// A frame that takes longer from its first byte to its last is given up, and its stream with it.
    pub frame_deadline: Duration,
    /// A packet goes out after this much silence.
    pub keep_alive: Duration,
    /// A connection that is silent for longer is lost.
    pub idle_timeout: Duration,
    /// Kernel buffers of the UDP socket, each way; the kernel may grant less.
    pub socket_buffer_bytes: usize,
    /// UDP payload up to which path MTU discovery searches. See `transport.rs` for why it ends at 6,500.
    pub mtu_bytes_max: u16,
}

impl Default for NetLimits {
    fn default() -> Self {
        Self {
            connections_max: 4096,
            connections_per_address_max: 2048,
            handshakes_max: 256,
            retry_above_handshakes: 32,
            handshake_timeout: Duration::from_secs(10),
            incoming_max: 1024,
            incoming_bytes_max: 64 << 10,
            incoming_bytes_total_max: 16 << 20,
            streams_max: 4096,
            stream_window_bytes: 8 << 20,
            connection_window_bytes: 32 << 20,
            send_window_bytes: 32 << 20,
            frames: FrameLimits::default(),
            receiving_bytes_max: 1 << 30,
            connection_receiving_bytes_max: 256 << 20,
            frame_deadline: Duration::from_secs(60),
            keep_alive: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(30),
            socket_buffer_bytes: 8 << 20,
            mtu_bytes_max: tidemill_transport::MTU_BYTES_MAX,
        }
    }
}
