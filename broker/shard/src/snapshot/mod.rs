//! A checkpoint as a Raft snapshot: a manifest of segment ranges, and the state as ordered, checksummed chunks.
//!
//! ```text
//!  sender                                   receiver, beside its own shard's directory
//!  Shard::snapshot()  --- manifest --->     SnapshotInstall::begin: what is here already is not asked for
//!    pins files and rows  <-- chunk n ---      put_chunk
//!                         <-- bytes from --    put_segment, finish_segment
//!                                           finish: staging is complete = the one commit
//!                                           Shard::open moves it into place, again after a crash if need be
//! ```

mod chunk;
mod install;
mod manifest;
mod pinned;
#[cfg(test)]
mod tests;

pub(crate) use install::complete_install;
pub use install::{InstallError, SnapshotInstall};
pub use manifest::{ChunkRef, ManifestError, SegmentRef, SnapshotManifest};
pub use pinned::{Snapshot, SnapshotError};
