//! One shard's state machine: what its log's entries do, and how that is kept.
//!
//! ```text
//!  Entry [unit, unit, ...]
//!     |  apply: pure, in memory                                   readers: fetch, watch, task state, groups
//!     v                                                              |
//!  State (objects + rows) --- Effects ---> PartitionLog (tail in memory)
//!     |                                       |  write-behind: coalesced, in the background
//!     |  checkpoint: generation N is written  v
//!     +--> state file (one commit)         segment files
//! ```
//!
//! [`Shard`] is the door: [`Shard::apply`] for the log, [`Shard::checkpoint`] for whoever decides when,
//! [`Shard::fetch`] and the other readers for everybody else. What stands on disk after a crash is the last
//! checkpoint; the write-ahead log brings the entries after it again, and they do again what they did.
//!
//! Architecture invariants:
//! - Apply depends on the state and the entry alone; two replicas that applied the same entries have the same
//!   [`Shard::state_hash`].
//! - A checkpoint never names an entry that the write-ahead log has not flushed.
//! - After a failed write or sync nothing is applied or recorded any more: see [`Shard::poisoned`].

// A core: see clippy.toml.
#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

mod apply;
mod batch;
mod codec;
mod keys;
mod partition_log;
mod result;
mod result_codec;
mod shard;
mod snapshot;
mod state;
mod store;
#[cfg(test)]
mod testing;
mod unit;
mod watched;
mod wire;

pub use apply::{LOG_TIME_STEP_MAX_MS, TASK_KEY_BYTES_MAX};
pub use batch::BatchFault;
pub use codec::EntryError;
pub use partition_log::{Batches, DiskRead, Fetch, FetchError, PartitionView};
pub use result::{ProgressRefusal, UnitError, UnitResult};
pub use result_codec::ResultError;
pub use shard::{
    AdoptedDeployment, AdoptedTopic, AppliedState, CheckpointDone, CheckpointError, ClosedShard, MarkedState,
    NoCopy, OutboxItem, RoutedAttempt, SegmentRepair, SegmentRepairError, Shard, ShardConfig, ShardOpenError,
    ShardStopped, StateEntry, StatePage, TaskView,
};
pub use snapshot::{
    ChunkRef, InstallError, ManifestError, SegmentRef, Snapshot, SnapshotError, SnapshotInstall,
    SnapshotManifest,
};
pub use store::{StillOpen, StoreError};
pub use unit::{
    AdoptDeployment, AdoptTopic, AdoptedStatus, Entry, FilterPass, OutboxStream, PositionStep, Progress,
    RoutedAppend, StartAt, StateHash, StateWrite, TaskAssignment, TaskOutput, TaskStatus, TimerWrite, Unit,
};
