//! openraft's log over the broker's write-ahead log.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

use openraft::OptionalSend;
use openraft::storage::{LogState, RaftLogStorage};
use tidemill_log::wal::{EntryBytes, WalEntry};
use tokio::sync::oneshot;

use crate::codec;
use crate::log_reader::LogReader;
use crate::shared_log::SharedLog;
use crate::types::{IoFlushed, LogId, RaftLogEntry, TypeConfig, Vote, entry_id};

/// The log of one shard, as openraft writes it.
#[derive(Debug, Clone)]
pub(crate) struct LogStore(Arc<SharedLog>);

impl LogStore {
    pub(crate) fn new(log: Arc<SharedLog>) -> Self {
        Self(log)
    }

    /// While the log's queue is full this replica waits, and the runtime's threads go on with the others.
    async fn wait_for_room(&self) {
        while self.0.wal().is_full() {
            let (ready, room) = oneshot::channel();
            self.0.wal().when_room(Box::new(move || {
                let _gone = ready.send(());
            }));
            if room.await.is_err() {
                return;
            }
        }
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = LogReader;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        let ends = self.0.ends();
        Ok(LogState { last_purged_log_id: ends.purged, last_log_id: ends.last })
    }

    async fn get_log_reader(&mut self) -> LogReader {
        LogReader::new(Arc::clone(&self.0))
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        let (done, synced) = oneshot::channel();
        let bytes = codec::encode_vote(vote);
        self.0.wal().save_vote(self.0.shard(), bytes, Box::new(move |result| drop(done.send(result))));
        wait(synced).await?;
        self.0.set_vote(*vote);
        Ok(())
    }

    /// Rides along with the next write: after a crash an older value merely means more to apply after the election.
    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        if let Some(id) = committed {
            self.0.set_committed(id);
            self.0.wal().save_committed(self.0.shard(), codec::encode_log_id(&id));
        }
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        Ok(self.0.ends().committed)
    }

    /// Readable when this returns, durable when `callback` is called.
    async fn append<I>(&mut self, entries: I, callback: IoFlushed) -> io::Result<()>
    where
        I: IntoIterator<Item = RaftLogEntry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        self.wait_for_room().await;
        let mut last = None;
        let frames: Vec<WalEntry> = entries
            .into_iter()
            .map(|entry| {
                let parts = codec::encode_payload(&entry.payload);
                let bytes = parts.iter().map(bytes::Bytes::len).sum();
                let id = entry.log_id;
                last = Some(id);
                self.0.push(entry, bytes);
                WalEntry { id: entry_id(&id), payload: EntryBytes::from_pieces(parts) }
            })
            .collect();
        let log = Arc::clone(&self.0);
        let done = move |result: Result<(), _>| {
            let result = result.map_err(|error| io::Error::other(format!("write-ahead log: {error}")));
            log.flushed(last, result.as_ref().err());
            callback.io_completed(result);
        };
        self.0.wal().append(self.0.shard(), frames, Box::new(done));
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        let (done, synced) = oneshot::channel();
        self.0.truncate_after(last);
        let after = last.as_ref().map(entry_id);
        self.0.wal().truncate_after(self.0.shard(), after, Box::new(move |result| drop(done.send(result))));
        // A follower says that it holds what a new leader sent only when what stood there before is gone for good.
        wait(synced).await?;
        self.0.cut();
        Ok(())
    }

    async fn purge(&mut self, id: LogId) -> io::Result<()> {
        self.0.purge(id);
        // Not awaited: a purge that a crash undoes is only done again.
        self.0.wal().purge(self.0.shard(), entry_id(&id), Box::new(|_| ()));
        Ok(())
    }
}

async fn wait<E: std::fmt::Display>(done: oneshot::Receiver<Result<(), E>>) -> io::Result<()> {
    match done.await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(io::Error::other(format!("write-ahead log: {error}"))),
        Err(_closed) => Err(io::Error::other("write-ahead log: it was closed before the write was done")),
    }
}

/// The half-open form of a range, from 0 and to the end where it has no bounds.
pub(crate) fn half_open(range: &(impl RangeBounds<u64> + Debug)) -> (u64, u64) {
    let from = match range.start_bound() {
        Bound::Included(index) => *index,
        Bound::Excluded(index) => index.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let to = match range.end_bound() {
        Bound::Included(index) => index.saturating_add(1),
        Bound::Excluded(index) => *index,
        Bound::Unbounded => u64::MAX,
    };
    (from, to)
}

#[cfg(test)]
mod tests {
    use super::half_open;

    #[test]
    fn ranges_of_every_shape() {
        assert_eq!(half_open(&(3..5)), (3, 5));
        assert_eq!(half_open(&(3..=5)), (3, 6));
        assert_eq!(half_open(&(..)), (0, u64::MAX));
        assert_eq!(half_open(&(7..)), (7, u64::MAX));
    }
}
