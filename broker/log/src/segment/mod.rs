//! A partition's segments: the files that consumers read.
//!
//! ```text
//!   <dir>/00000000000000000000.log      +--------+-------+-------+-------+--- - - -
//!                                       | header | frame | frame | frame |             see `frame`, `header`
//!                                       +--------+-------+-------+-------+--- - - -
//!   <dir>/00000000000000000000.index    +--------+-------+-------+--- - -
//!                                       | header | entry | entry |                     see `index`
//!                                       +--------+-------+-------+--- - -
//!   <dir>/00000000000000481516.log      named after the first offset that may stand in it
//!   <dir>/00000000000000481516.index
//! ```
//!
//! [`SegmentStore`] is one partition; [`SegmentFiles`] is what all partitions of a broker share: a bounded number of
//! open files, and a bound on the page cache.
//!
//! The files are not a log of their own: the write-ahead log is, and segments are written behind it. So an append
//! is not synced, [`SegmentStore::sync`] belongs to a checkpoint, and what it returns ([`PartitionEnds`]) is recorded
//! in the state store together with the applied index. On restart that record is the truth: [`SegmentStore::open`]
//! cuts the files back to it without reading them, and the write-ahead log brings the rest again.
//!
//! Invariants:
//! - Readers see a batch after all of it was written, and never see an end go back, save by opening again.
//! - Sealed segments are byte-identical on every replica: their contents and where they end are decided by the log.
//!   (Indexes need not be: their density is this broker's business.)
//! - Offsets rise from batch to batch; gaps are allowed.
//! - Nothing read is handed out unchecked: the frame's checksum covers the partition's identity, the head, the body.
//! - A file is deleted only when the last durable checkpoint does not name it and nobody holds it.
//! - After a failed sync nothing is written or recorded any more: what is on the disk is unknown.

mod buffers;
mod cursors;
mod ends;
mod files;
mod frame;
mod header;
mod import;
mod index;
mod inspect;
mod key;
mod open;
mod page_cache;
mod pin;
mod read;
mod rebuild;
mod repair;
mod scrub;
mod single;
mod store;
mod stored;
mod survey;
mod sync;
#[cfg(test)]
mod tests;
mod time;
mod walk;

pub use ends::{EndsError, PartitionEnds, SegmentEnd};
pub use files::{SegmentFiles, SegmentFilesConfig};
pub use frame::FrameFault;
pub use header::HeaderError;
pub use import::SegmentImport;
pub use inspect::{InspectError, InspectedBatch, SegmentInspection};
pub use key::StreamKey;
pub use open::{OpenError, OpenReport};
pub use pin::SegmentPin;
pub use read::{Batches, Damage, ReadError};
pub use repair::CheckedSegment;
pub use scrub::{Scrub, ScrubStep};
pub use store::{AppendError, Deleted, Dropped, SegmentConfig, SegmentStore};
pub use stored::{StoredBatch, StoredBatchError};
pub use sync::{Flush, SyncError};
pub use time::FoundByTime;
