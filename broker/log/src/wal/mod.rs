//! The write-ahead log: one stream of writes for all shards of a broker.
//!
//! fdatasync on a growing file costs several times what it does on a file whose blocks are settled, and a file per
//! partition costs a sync per partition. So everything that must be durable goes into one log, in files that are
//! written full once and recycled for ever.
//!
//! ```text
//!   wal/0000000001.wal   | header | preamble | data ...                              |   recycled, oldest first
//!   wal/0000000002.wal   | header | preamble | data ...                              |
//!   wal/0000000003.wal   | header | preamble | data ... | bytes of its earlier life  |   being written
//!   wal/0000000004.wal   | zeros                                                     |   ready
//!
//!   data: blocks of 4 KiB (`block`), which carry frames (`frame`) that span them:
//!
//!   | write           | write | write                   |     one write, one fdatasync; each begins a block
//!   | 4 KiB  | 4 KiB  | 4 KiB | 4 KiB | 4 KiB  | 4 KiB  |
//!   |frame|frame   |.|frame|.|frame                 |fr|
//! ```
//!
//! Rules, each of which closes a hole:
//!
//! - Physically append-only. Votes, truncations and purges are frames in order with the entries. A write begins at a
//!   fresh block, so no block that may have been flushed is ever written again, but by a recovery, with the bytes that it has
//!   (`rewrite`); one write is in flight.
//! - A block proves by salt, sequence and crc that it belongs to this life of its file and to this place in it. After
//!   a recovery the log goes on in a new segment with sequences that were never given, so that what a torn write left
//!   behind can't be taken for its continuation.
//! - A frame names the crc of the frame before it, through all segments. A segment's header names the one before it
//!   and exactly where that ends.
//! - Each block says how far the log was known to be flushed. Recovery cuts a tail that nothing later proves to have
//!   been flushed; otherwise every shard is in [`Doubt`], which outlives restarts until it is answered.
//! - A segment is reused only after a flushed frame has released it and its header has been durably erased. That frame
//!   counts also where recovery finds it behind damage: what was released is not missing.
//! - A failed write or sync poisons the log.
//! - What keeps the oldest segment and will not be purged may be copied to the end (`carry`); the copy is flushed before
//!   the segment is released.
//!
//! # Use
//!
//! ```text
//! Wal::open(Arc<dyn Storage>, &WalConfig) -> Result<(Wal, Recovery), WalOpenError>
//! append(shard, Vec<WalEntry>, Completion)         is_full() -> bool    when_room(WhenRoom)
//! save_vote(shard, Bytes, Completion)              save_committed(shard, Bytes): lazy, rides with the next write
//! snapshot_installed(shard, Bytes, Completion)     truncate_after(shard, Option<EntryId>, Completion)
//! purge(shard, EntryId, Completion)                forget(shard, Completion)    accept_doubt(shard, Completion)
//! flush(Completion)                                flushed(shard) -> Option<EntryId>
//! read(shard, from, to_exclusive, bytes_max) -> Result<Vec<WalEntry>, WalReadError>
//! is_cached(shard, from, to_exclusive) -> bool     applied(shard, LogIndex)
//! range(shard) -> LogRange { purged, first, last } entry_id(shard, LogIndex) -> Option<EntryId>
//! vote(shard), committed(shard) -> Option<Bytes>   bytes(), files_bytes() -> u64    queued_bytes() -> usize
//! pinning_shards() -> Vec<ShardId>                 bytes_held(shard) -> u64
//! carry_forward(shard, bytes_max, Completion) -> Result<usize, WalCarryError>
//! poisoned() -> Option<WalError>                   close() -> Result
//! inspect(&dyn Storage, dir, &mut dyn FnMut(&InspectedFrame)) -> Result<Inspection, WalOpenError>
//! ```
//!
//! ```
//! use std::sync::{Arc, mpsc};
//! use tidemill_log::fs::MemoryStorage;
//! use tidemill_log::wal::{EntryId, Wal, WalConfig, WalEntry};
//! use tidemill_protocol::{LogIndex, ShardId, Term};
//!
//! let config = WalConfig { segment_bytes: 1 << 20, write_bytes_max: 64 << 10, ..WalConfig::new("wal") };
//! let (wal, recovery) = Wal::open(Arc::new(MemoryStorage::new()), &config)?;
//! assert!(recovery.shards.is_empty());
//!
//! let id = EntryId { term: Term::new(1), leader_node: 1, index: LogIndex::new(1) };
//! let entry = WalEntry { id, payload: bytes::Bytes::from("hello").into() };
//! let (done, durable) = mpsc::channel();
//! wal.append(ShardId::new(0), vec![entry.clone()], Box::new(move |result| drop(done.send(result))));
//! durable.recv()??;
//! assert_eq!(wal.read(ShardId::new(0), LogIndex::new(1), LogIndex::new(2), 1 << 20)?, [entry]);
//! wal.close()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod block;
mod carry;
mod config;
mod crc;
mod doubt;
mod entry;
mod error;
mod fold;
mod frame;
mod gather;
mod handle;
mod header;
mod inspect;
mod notes;
mod pool;
mod queue;
mod read;
mod recovery;
mod rewrite;
mod scan;
mod shard_log;
mod state;
#[cfg(test)]
mod tests;
mod writer;

use block::BLOCK_BYTES;

pub use config::{DirectIo, Durability, WalConfig};
pub use doubt::{Doubt, DoubtReason};
pub use entry::{EntryBytes, EntryId, WalEntry};
pub use error::{WalCarryError, WalError, WalOpenError, WalReadError};
pub use frame::FrameKind;
pub use handle::{LogRange, Wal};
pub use inspect::{InspectedEnd, InspectedFrame, InspectedSegment, Inspection, inspect};
pub use queue::{Completion, WhenRoom};
pub use recovery::{RecoveredShard, Recovery};
