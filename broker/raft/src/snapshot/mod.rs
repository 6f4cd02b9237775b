//! A checkpoint as a Raft snapshot, and its way from one broker to another.
//!
//! ```text
//!  leader                                              follower, whose shard is open and goes on
//!  openraft: full_snapshot -> send                     serve_peer -> receive
//!    pins its checkpoint   --- offer: vote, manifest --->   an older vote, or nothing newer: answered at once
//!                                                         takes its turn: one transfer at a time, the newest first
//!                                                         what is here or staged already is not asked for
//!                          <--- want: ranges ---            at most WINDOW_BYTES of them unanswered
//!    limiter               --- part --->                    checked against the manifest, staged
//!                                                         all there: openraft's install_full_snapshot -> Machine::install
//!                          <--- answer: vote ---
//! ```
//! Both sides hold one piece of [`PIECE_BYTES_MAX`] and one chunk of the state; the sender sends only what was asked for, and gives up
//! where the receiver does nothing for [`send::RECEIVER_PATIENCE`]. Break it off anywhere: what was staged is not asked for again. The
//! messages are in [`message`], what the log must know of an install in [`installed`].

mod installed;
mod limiter;
mod message;
mod receive;
mod send;
mod staged;

use std::io;

use tidemill_shard::Shard;

use crate::types::{LogId, log_id};

pub(crate) use installed::{note_install, take_up_install};
pub use limiter::SnapshotLimiter;
#[cfg(test)]
pub(crate) use message::{Message, Part, Range};
pub(crate) use receive::receive;
#[cfg(test)]
pub(crate) use receive::{ReceiveError, receive_with};
#[cfg(test)]
pub(crate) use send::RECEIVER_PATIENCE;
pub(crate) use send::send;
pub(crate) use staged::{Staged, StagingTurns};

/// The most bytes of a part, or of the manifest, in one message.
pub(crate) const PIECE_BYTES_MAX: usize = 256 << 10;
/// The most bytes that the receiver has asked for and not got yet.
pub(crate) const WINDOW_BYTES: usize = 4 << 20;

/// What openraft hands around as a snapshot.
///
/// openraft asks for the current snapshot at every start and after every checkpoint, only to read its position; to pin
/// it each time would read all of the state.
#[derive(Debug)]
pub(crate) enum Snapshot {
    /// At the source: its latest checkpoint, pinned only when somebody fetches it.
    Source {
        /// Whose.
        shard: Shard,
        /// The last entry in it; a newer checkpoint may have taken its place by the time it is pinned.
        last: Option<LogId>,
    },
    /// At the receiver: all there, checked, beside the shard.
    Staged(Staged),
}

impl Snapshot {
    pub(crate) fn source(shard: Shard, last: Option<LogId>) -> Self {
        Self::Source { shard, last }
    }
}

/// Stages the checkpoint of a shard in this process beside another.
pub(crate) fn stage_here(
    source: &Shard,
    last: Option<LogId>,
    live: &Shard,
    turns: &StagingTurns,
) -> io::Result<Staged> {
    let turn = turns.take_blocking();
    let pinned = source.snapshot().map_err(io::Error::other)?;
    if Some(log_id(&pinned.manifest().applied())) != last {
        return Err(io::Error::other(
            "the source made a newer checkpoint meanwhile; ask for the snapshot again",
        ));
    }
    let staged = Staged::begin(live, pinned.manifest().clone(), turn).map_err(io::Error::other)?;
    staged.copy(&pinned).map_err(io::Error::other)?;
    Ok(staged)
}
