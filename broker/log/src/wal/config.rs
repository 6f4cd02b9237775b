//! How a log is set up.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::block::{BLOCK_BYTES, PAYLOAD_BYTES};
use crate::background::{Background, Threads};

/// Smallest segment: less makes the header and the repeated state outweigh the entries.
pub(super) const SEGMENT_BYTES_MIN: u64 = 16 * BLOCK_BYTES as u64;

/// Settings of a log. Start from [`WalConfig::new`].
#[derive(Debug, Clone)]
pub struct WalConfig {
    /// Directory of the segment files, relative to the storage's root.
    pub dir: PathBuf,
    /// Size of each segment file, a multiple of 4 KiB. Half of it bounds an entry. A change applies to new files;
    /// older ones are read at their own size.
    pub segment_bytes: u64,
    /// Most bytes of frames in one write, a single larger frame apart.
    pub write_bytes_max: usize,
    /// Recent entries are kept in memory up to this, and beyond it while they are not applied or not written.
    pub cache_bytes: usize,
    /// Whoever appends should wait while more than this is queued or being written.
    pub queue_bytes_max: usize,
    /// Recycled and prepared segment files beyond this are deleted.
    pub spare_bytes_max: u64,
    /// Segments are made ahead of time only while so many bytes of the file system are free: what a log may need one
    /// day must not take the last room.
    pub prepare_free_min_bytes: u64,
    /// Whether to try direct I/O.
    pub direct: DirectIo,
    /// When an append counts as done.
    pub durability: Durability,
    /// Identity of the machine's current boot, where known. Under [`Durability::Replicated`] it tells a killed
    /// process, whose writes the kernel still has, from a power loss.
    pub boot_id: Option<[u8; 16]>,
    /// Where segments' salts come from: a seed in tests, the system's randomness for `None`.
    pub salt_seed: Option<u64>,
    /// On what the log writes and prepares its files.
    pub background: Arc<dyn Background>,
}

impl WalConfig {
    /// The defaults: 64 MiB segments, writes of at most 1 MiB, fsync before completion.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            segment_bytes: 64 << 20,
            write_bytes_max: 1 << 20,
            cache_bytes: 128 << 20,
            queue_bytes_max: 64 << 20,
            spare_bytes_max: 2 << 30,
            prepare_free_min_bytes: 0,
            direct: DirectIo::Auto,
            durability: Durability::Fsync,
            boot_id: None,
            salt_seed: None,
            background: Arc::new(Threads),
        }
    }

    /// Largest payload of one entry that a segment of this size takes.
    #[must_use]
    pub fn entry_bytes_max(&self) -> usize {
        let half_blocks = usize::try_from(self.segment_bytes).unwrap_or(usize::MAX) / BLOCK_BYTES / 2;
        half_blocks.saturating_mul(PAYLOAD_BYTES).saturating_sub(super::frame::FRAME_OVERHEAD_BYTES)
    }

    pub(super) fn check(&self) -> Result<(), String> {
        if self.segment_bytes < SEGMENT_BYTES_MIN || !self.segment_bytes.is_multiple_of(BLOCK_BYTES as u64) {
            return Err(format!(
                "segment_bytes is {}; it must be a multiple of {BLOCK_BYTES}, at least {SEGMENT_BYTES_MIN}",
                self.segment_bytes
            ));
        }
        if self.write_bytes_max > self.entry_bytes_max() {
            return Err(format!(
                "write_bytes_max is {}; with segments of {} bytes it may be at most {}",
                self.write_bytes_max,
                self.segment_bytes,
                self.entry_bytes_max()
            ));
        }
        Ok(())
    }
}

/// Whether the page cache is passed by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DirectIo {
    /// Where the file system allows it, found out once at open. Never under [`Durability::Replicated`], whose point
    /// is the page cache.
    Auto,
    /// Buffered writes and fdatasync.
    Never,
}

/// When an append counts as done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// When the device has it: fdatasync returned.
    Fsync,
    /// When the kernel has it; the device gets it at most `flush_interval` later. A power loss of a majority at the
    /// same moment loses acknowledged entries. Votes are synced all the same.
    Replicated {
        /// Longest time from a write to its fdatasync.
        flush_interval: Duration,
    },
}
