//! Keeping what is old without keeping where it lies.
//!
//! A shard that stopped makes no more checkpoints, so its entries stay needed, for the day when it starts again, and each
//! may have been acknowledged. Left where they are they would keep every later segment too, of all shards, until the log
//! is at its bound. So they are copied to the log's end, like any other frame in the order of the log:
//!
//! ```text
//!   | 1: A1 B1 A2 ... | 2: B2 B3 ... | 3: B4 ...              |     shard A stopped at A2
//!   | 1: A1 B1 A2 ... | 2: B2 B3 ... | 3: B4 ... A1' A2'      |     copied
//!                     | 2: B2 B3 ... | 3: B4 ... A1' A2' R(2) |     once that is flushed, 1 is released
//! ```
//!
//! A copy says: *as of here the shard's entry at this index is this one.* Recovery may find the original, the copy, or
//! both, and the entry once in either case (`fold`). A crash in between loses nothing: until the copies are flushed the
//! segment is not released, and a copy is never made of what a truncation or purge before it in the log took away.
//!
//! What can't be copied stays where it is and keeps its segment, and with it the log: an entry that can't be read, and one
//! that today's segments do not take, because they were larger when it was written. Neither stops the log.

use tidemill_protocol::ShardId;

use super::error::WalCarryError;
use super::queue::{Completion, Queued};
use super::read;
use super::writer::Shared;

/// See [`super::Wal::carry_forward`]. An entry of more than `entry_bytes_max` would have no room in a new segment.
pub(super) fn carry_forward(
    shared: &Shared,
    shard: ShardId,
    bytes_max: usize,
    entry_bytes_max: usize,
    done: Completion,
) -> Result<usize, WalCarryError> {
    let old = shared.state.lock().in_oldest(shard, bytes_max);
    let mut window = None;
    let mut copies = Vec::with_capacity(old.len());
    for (id, position) in old {
        let Some(entry) = read::read_one(&shared.state, &mut window, shard, id)? else {
            continue;
        };
        let bytes = entry.payload.len();
        if bytes > entry_bytes_max {
            return Err(WalCarryError::TooLarge { shard, index: id.index, bytes, limit: entry_bytes_max });
        }
        copies.push((entry, position));
    }
    let mut queue = shared.queue.queue.lock();
    if let Some(error) = queue.refusal() {
        drop(queue);
        done(Err(error));
        return Ok(copies.len());
    }
    // Both locks, as for every operation: what was purged or truncated meanwhile must not come back behind it.
    let state = shared.state.lock();
    copies.retain(|(entry, position)| state.is_still(shard, entry.id, *position));
    drop(state);
    let count = copies.len();
    metrics::counter!("tidemill_wal_carried_bytes_total")
        .increment(copies.iter().map(|(entry, _)| entry.payload.len() as u64).sum());
    for (entry, position) in copies {
        queue.admit(Queued::carried(shard, entry, position));
    }
    queue.admit_flush(done);
    if queue.urge() {
        shared.queue.wake_writer(&mut queue);
    }
    Ok(count)
}
