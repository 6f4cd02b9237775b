//! What the log must know of an installed snapshot.
//!
//! ```text
//!  1  the log notes: a snapshot up to entry n takes the shard's place          synced
//!  2  the shard's place: the mark, the move                                    synced
//!  3  openraft has the log purged up to n                                      not awaited
//!  4  entries after n
//! ```
//! openraft truncates what contradicts the snapshot before 1 (awaited here), orders 3 once 2 is done, and answers the leader then. So a
//! crash finds one of these:
//!
//! - before 2: the old shard and its log, both whole. The note came to nothing and is forgotten.
//! - before 3 is on the disk: the new shard, and a log that ends before it, as if entries had been lost. The note says that they were not:
//!   the log is purged as it was about to be.
//! - later: the log begins after n. Without 2 before 3 the entries before n would be nowhere.

use std::io;

use bytes::Bytes;
use tidemill_log::wal::{EntryId, RecoveredShard, Wal};
use tidemill_protocol::ShardId;
use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;

use crate::codec::{self, CodecError};
use crate::types::{LogId, entry_id};

/// Says in the log that a snapshot up to `last` is about to take the shard's place; blocks until that is durable.
pub(crate) fn note_install(wal: &Wal, shard: ShardId, last: &LogId) -> io::Result<()> {
    let (done, mut synced) = oneshot::channel();
    wal.snapshot_installed(
        shard,
        codec::encode_log_id(last),
        Box::new(move |result| drop(done.send(result))),
    );
    let synced = match wal.background().one_thread() {
        None => synced.blocking_recv(),
        // What it waits for is done on this very thread.
        Some(one_thread) => loop {
            match synced.try_recv() {
                Err(TryRecvError::Empty) => one_thread.help(),
                Ok(done) => break Ok(done),
                Err(TryRecvError::Closed) => break synced.blocking_recv(),
            }
        },
    };
    match synced {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(io::Error::other(format!("write-ahead log: {error}"))),
        Err(_closed) => Err(io::Error::other("write-ahead log: it was closed before the write was done")),
    }
}

/// After a start: goes on where a crash cut an install short. `recovered` is what the log holds, `applied` what the shard does.
pub(crate) fn take_up_install(
    wal: &Wal,
    shard: ShardId,
    recovered: &mut RecoveredShard,
    applied: Option<EntryId>,
) -> Result<(), CodecError> {
    let Some(note) = recovered.snapshot_installed.as_deref() else { return Ok(()) };
    let noted = entry_id(&codec::decode_log_id(note)?);
    let last = recovered.last.max(recovered.purged);
    match applied {
        Some(applied) if applied == noted => {
            if last.is_none_or(|last| last.index < applied.index) {
                tracing::info!(%shard, applied = %applied.index, "the log goes on behind the snapshot that was installed");
                // Not awaited: undone by a crash, it is only done again.
                wal.purge(shard, applied, Box::new(|_| ()));
                recovered.purged = Some(applied);
                recovered.first = None;
                recovered.last = Some(applied);
            }
        }
        Some(applied) if applied.index > noted.index => {}
        // A shard that comes to this entry by itself must not pass for an installed one, should its log be lost.
        _ => {
            wal.snapshot_installed(shard, Bytes::new(), Box::new(|_| ()));
            recovered.snapshot_installed = None;
        }
    }
    Ok(())
}
