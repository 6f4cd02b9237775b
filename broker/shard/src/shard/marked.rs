//! The state as of one entry, held until it is hashed.
//!
//! ```text
//!  apply of entry N; mark_state      a generation ends here: O(what changed), and apply goes on with N+1
//!   nothing newer goes to segments   until the checkpoint has taken their ends
//!  the next checkpoint               writes that generation, and keeps its version of the state file
//!  MarkedState::hash                 reads all rows of that version, beside apply and later checkpoints
//! ```
//! So a hash costs apply what a checkpoint costs it, however large the state is. Why so:
//! docs/decisions/0020.

use std::ops::Bound;

use tidemill_log::wal::EntryId;

use super::checkpoint::Generation;
use super::{Inner, Shard};
use crate::keys::space;
use crate::store::{BaseRows, StoreError};

/// Where a marked state is on its way.
#[derive(Default)]
pub(super) enum Marked {
    #[default]
    Nothing,
    /// The next checkpoint is to write it.
    Ended(Box<Generation>),
    /// It is in the state file.
    Written(MarkedState),
}

/// A version of the state file that holds the state as of one entry. The file keeps it as long as this is held.
pub struct MarkedState {
    applied: EntryId,
    rows: BaseRows,
}

impl Shard {
    /// Marks the state as it is now, after the entry applied last: the next checkpoint writes just this. `false` where a checkpoint or
    /// another mark is under way. To be called by who applies, so that no other entry comes between.
    #[must_use]
    pub fn mark_state(&self) -> bool {
        let mut state = self.inner.state.write();
        let is_free = !state.rows.is_frozen() && self.inner.poison.check().is_ok();
        if is_free {
            let generation = self.inner.end_generation(&mut state);
            *self.inner.marked.lock() = Marked::Ended(Box::new(generation));
        }
        is_free
    }

    /// Whether a marked state waits for its checkpoint: not for long, since nothing newer is written behind until then.
    #[must_use]
    pub fn has_marked_state(&self) -> bool {
        self.inner.has_marked_state()
    }

    /// The state that was marked, once a checkpoint has written it; it is handed out once.
    #[must_use]
    pub fn take_marked_state(&self) -> Option<MarkedState> {
        let mut marked = self.inner.marked.lock();
        match std::mem::take(&mut *marked) {
            Marked::Written(state) => Some(state),
            other => {
                *marked = other;
                None
            }
        }
    }

    /// Stops the shard for good: nothing more is applied, recorded or acknowledged. `reason` says why, and what to do.
    pub fn give_up(&self, reason: &str) {
        self.inner.stop(reason);
    }
}

impl Inner {
    pub(super) fn has_marked_state(&self) -> bool {
        matches!(*self.marked.lock(), Marked::Ended(_))
    }

    /// What was marked, for the checkpoint that writes it.
    pub(super) fn take_ended(&self) -> Option<Generation> {
        let mut marked = self.marked.lock();
        match std::mem::take(&mut *marked) {
            Marked::Ended(generation) => Some(*generation),
            other => {
                *marked = other;
                None
            }
        }
    }

    pub(super) fn marked_is_written(&self, applied: EntryId, rows: BaseRows) {
        *self.marked.lock() = Marked::Written(MarkedState { applied, rows });
    }
}

impl MarkedState {
    /// The last entry in it.
    #[must_use]
    pub fn applied(&self) -> EntryId {
        self.applied
    }

    /// blake3 over all rows of the replicated state: equal on replicas that applied the same entries, whatever their checkpoints. What is
    /// each broker's own, the ends of its segments, is left out. Blocking, and reads all of it.
    ///
    /// # Errors
    /// The state file can't be read.
    pub fn hash(&self) -> Result<[u8; 32], StoreError> {
        let mut hasher = blake3::Hasher::new();
        for row in self.rows.range(Bound::Unbounded, Bound::Unbounded)? {
            let (key, value) = row.map_err(|error| StoreError::new("can't be read", error))?;
            let (key, value) = (key.value(), value.value());
            if key.first() == Some(&space::SEGMENT_END) {
                continue;
            }
            for part in [key, value] {
                hasher.update(&(part.len() as u64).to_le_bytes());
                hasher.update(part);
            }
        }
        Ok(*hasher.finalize().as_bytes())
    }
}

impl std::fmt::Debug for MarkedState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MarkedState").field("applied", &self.applied).finish_non_exhaustive()
    }
}
