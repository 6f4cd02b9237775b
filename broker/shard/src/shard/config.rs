//! How one broker runs a shard. Nothing here changes what entries do.

use std::path::PathBuf;
use std::sync::Arc;

use tidemill_log::background::{Background, Threads};
use tidemill_log::segment::SegmentConfig;
use tidemill_protocol::ShardId;

/// Settings of a shard on this broker.
#[derive(Debug, Clone)]
pub struct ShardConfig {
    /// Which shard.
    pub shard: ShardId,
    /// Its directory, relative to the storage's root.
    pub dir: PathBuf,
    /// Bytes of records that the shard keeps in memory for readers of the tail, over all its partitions. Where nobody has read there
    /// for a while, an eighth.
    pub tail_cache_bytes: u64,
    /// Write-behind begins when so many bytes wait, over all partitions.
    pub write_behind_bytes: u64,
    /// A partition with so many bytes waiting is written before those with fewer.
    pub write_coalesce_bytes: u64,
    /// Memory for pages of the state file.
    pub state_cache_bytes: usize,
    /// How segments are written.
    pub segment: SegmentConfig,
    /// On what batches are moved to segments.
    pub background: Arc<dyn Background>,
}

impl ShardConfig {
    /// The defaults, in directory `shard-NN`.
    #[must_use]
    pub fn new(shard: ShardId) -> Self {
        Self {
            shard,
            dir: PathBuf::from(format!("shard-{:02}", shard.get())),
            tail_cache_bytes: 32 << 20,
            write_behind_bytes: 4 << 20,
            write_coalesce_bytes: 512 << 10,
            state_cache_bytes: 16 << 20,
            segment: SegmentConfig::default(),
            background: Arc::new(Threads),
        }
    }
}
