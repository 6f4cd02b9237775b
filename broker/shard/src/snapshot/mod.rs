//! A checkpoint as a Raft snapshot: a manifest of segment ranges, and the state as ordered, checksummed chunks.
//!
//! ```text
//!  sender                                   receiver, beside its own shard, which goes on
//!  Shard::snapshot()  --- manifest --->     SnapshotInstall::begin: what is here already is pinned, and not asked for
//!    pins files and rows  <-- chunk n ---      put_chunk
//!                         <-- bytes from --    received, put_segment, finish_segment
//!                                           Shard::close: nothing writes any more
//!                                           finish: staging is complete = the one commit; moved into place, opened
//!                                           ClosedShard::give_way: who follows the old shard turns to the new one
//! ```

mod chunk;
mod install;
mod manifest;
mod pinned;
mod staging;
#[cfg(test)]
mod tests;

pub use install::{InstallError, SnapshotInstall};
pub use manifest::{ChunkRef, ManifestError, SegmentRef, SnapshotManifest};
pub use pinned::{Snapshot, SnapshotError};
pub(crate) use staging::complete_install;
