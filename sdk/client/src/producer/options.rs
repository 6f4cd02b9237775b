use std::time::Duration;

use tidemill_protocol::record_batch::Compression;

/// When a record counts as stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Acks {
    /// When a majority of the partition's replicas has it, synced as the cluster has it.
    #[default]
    Quorum,
    /// Never: handed to the network, and what the network loses is lost. What the broker refuses the next
    /// [`flush`](crate::Producer::flush) or [`close`](crate::Producer::close) tells, and
    /// [`ProducerStats::broken_streams`](crate::ProducerStats::broken_streams) counts.
    None,
}

#[derive(Debug, Clone)]
pub(super) struct Options {
    pub(super) linger: Duration,
    pub(super) eager: bool,
    pub(super) batch_bytes: usize,
    pub(super) compression: Compression,
    pub(super) compression_level: Option<i32>,
    pub(super) acks: Acks,
    pub(super) idempotent: bool,
    pub(super) routed: bool,
    pub(super) buffer_bytes_max: usize,
    pub(super) delivery_timeout: Duration,
    pub(super) in_flight_max: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            linger: Duration::from_millis(5),
            eager: true,
            batch_bytes: 256 << 10,
            compression: Compression::None,
            compression_level: None,
            acks: Acks::Quorum,
            idempotent: true,
            routed: false,
            buffer_bytes_max: 32 << 20,
            delivery_timeout: Duration::from_secs(60),
            in_flight_max: 64,
        }
    }
}
