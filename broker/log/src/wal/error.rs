//! What can go wrong, per operation.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use tidemill_protocol::{LogIndex, ShardId};

/// Why an operation on the log did not become durable.
#[derive(Debug, Clone, thiserror::Error)]
pub enum WalError {
    /// A write or a sync failed, now or earlier. Nothing is retried and nothing further is acknowledged: what the
    /// device holds is known only after a restart.
    #[error("the write-ahead log stopped: {action} failed: {source}; fix the disk and restart the broker")]
    Poisoned {
        /// What was being done.
        action: &'static str,
        /// What the file system said.
        source: Arc<io::Error>,
    },
    /// The log was closed.
    #[error("the write-ahead log is closed")]
    Closed,
    /// An entry is larger than a segment takes.
    #[error("an entry of {bytes} bytes for shard {shard} is over the log's limit of {limit}")]
    TooLarge {
        /// Whose entry.
        shard: ShardId,
        /// Its size.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// An entry does not follow the shard's last one.
    #[error("entry {got} of shard {shard} does not follow the last one; expected {expected}")]
    OutOfOrder {
        /// Whose entry.
        shard: ShardId,
        /// Index of the entry.
        got: LogIndex,
        /// The index that would follow.
        expected: LogIndex,
    },
}

/// Why a log can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum WalOpenError {
    /// The settings contradict each other.
    #[error("the write-ahead log's settings are wrong: {0}")]
    Config(String),
    /// A file can't be read or written. Nothing was cut.
    #[error("cannot open the write-ahead log: {action} {path}: {source}", path = path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// To which file.
        path: PathBuf,
        /// What the file system said.
        source: io::Error,
    },
    /// A thread could not be started.
    #[error("cannot start the write-ahead log's threads: {0}")]
    Thread(io::Error),
    /// A segment was written by a newer release.
    #[error("{path} has format version {version}, which this release does not know; use the newer release", path = path.display())]
    Version {
        /// The segment file.
        path: PathBuf,
        /// Its version.
        version: u16,
    },
}

/// Why a shard's entries can't be carried forward. They stay where they are, and the log goes on.
#[derive(Debug, Clone, thiserror::Error)]
pub enum WalCarryError {
    /// One of them can't be read.
    #[error(transparent)]
    Read(#[from] WalReadError),
    /// One of them is larger than a segment takes: it was written when segments were larger.
    #[error(
        "entry {index} of shard {shard} has {bytes} bytes, over the log's limit of {limit}; \
         segments were larger when it was written"
    )]
    TooLarge {
        /// Which shard.
        shard: ShardId,
        /// Which entry.
        index: LogIndex,
        /// Its size.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
}

/// Why entries can't be read back.
#[derive(Debug, Clone, thiserror::Error)]
pub enum WalReadError {
    /// The range begins where the shard has no entries: purged, truncated, or not appended yet.
    #[error("shard {shard} has no entry {index} in the log")]
    NotFound {
        /// Which shard.
        shard: ShardId,
        /// The first index asked for.
        index: LogIndex,
    },
    /// The file holds something else than was written.
    #[error("entry {index} of shard {shard} is damaged in {path}", path = path.display())]
    Damaged {
        /// Which shard.
        shard: ShardId,
        /// Which entry.
        index: LogIndex,
        /// Where it should be.
        path: PathBuf,
    },
    /// The file can't be read.
    #[error("cannot read entry {index} of shard {shard}: {source}")]
    Io {
        /// Which shard.
        shard: ShardId,
        /// Which entry.
        index: LogIndex,
        /// What the file system said.
        source: Arc<io::Error>,
    },
}
