//! What is known of one shard's log, shared by its writer, its readers and the checkpoint.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use tidemill_log::wal::{EntryId, RecoveredShard, Wal, WalEntry};
use tidemill_protocol::{LogIndex, ShardId};
use tokio::sync::Notify;

use crate::codec::{self, CodecError};
use crate::recent::RecentEntries;
use crate::types::{LogId, RaftLogEntry, Vote, log_id};

/// How often a checkpoint that waits for the log looks whether it still has to.
const FLUSH_RECHECK: Duration = Duration::from_millis(100);

/// One shard's part of the write-ahead log.
pub(crate) struct SharedLog {
    shard: ShardId,
    wal: Wal,
    read_bytes_max: usize,
    state: Mutex<State>,
    flushed: Mutex<Flushed>,
    flush: Condvar,
    /// Told whenever entries were applied.
    applied: Notify,
}

struct State {
    vote: Option<Vote>,
    ends: LogEnds,
    recent: RecentEntries,
    /// One past the last entry that is known to be applied.
    applied: u64,
}

/// The positions that delimit a log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct LogEnds {
    /// The last entry that is no longer in the log.
    pub(crate) purged: Option<LogId>,
    /// The first index that is; meaningless while the log is empty.
    pub(crate) first: u64,
    /// The last entry ever appended and not truncated; `purged` where the log is empty.
    pub(crate) last: Option<LogId>,
    /// What was last known to be committed.
    pub(crate) committed: Option<LogId>,
}

impl LogEnds {
    /// One past the last index.
    pub(crate) fn next_index(&self) -> u64 {
        self.last.map_or(0, |id| id.index + 1)
    }

    fn is_empty(&self) -> bool {
        self.last == self.purged
    }
}

#[derive(Debug, Default)]
struct Flushed {
    last: Option<u64>,
    failed: Option<String>,
}

impl SharedLog {
    /// Takes up what recovery found.
    pub(crate) fn open(
        shard: ShardId,
        wal: Wal,
        recovered: &RecoveredShard,
        read_bytes_max: usize,
        decoded_cache_bytes_max: usize,
    ) -> Result<Arc<Self>, CodecError> {
        let vote = recovered.vote.as_deref().map(codec::decode_vote).transpose()?;
        let committed = recovered.committed.as_deref().map(codec::decode_log_id).transpose()?;
        let purged = recovered.purged.as_ref().map(log_id);
        let last = recovered.last.as_ref().map(log_id).max(purged);
        let first = recovered.first.map_or_else(|| purged.map_or(0, |id| id.index + 1), LogIndex::get);
        let ends = LogEnds { purged, first, last, committed: committed.filter(|id| Some(*id) <= last) };
        let state = State { vote, ends, recent: RecentEntries::new(decoded_cache_bytes_max), applied: 0 };
        let flushed = Flushed { last: last.map(|id| id.index), failed: None };
        Ok(Arc::new(Self {
            shard,
            wal,
            read_bytes_max,
            state: Mutex::new(state),
            flushed: Mutex::new(flushed),
            flush: Condvar::new(),
            applied: Notify::new(),
        }))
    }

    pub(crate) fn shard(&self) -> ShardId {
        self.shard
    }

    pub(crate) fn wal(&self) -> &Wal {
        &self.wal
    }

    pub(crate) fn read_bytes_max(&self) -> usize {
        self.read_bytes_max
    }

    pub(crate) fn ends(&self) -> LogEnds {
        self.state.lock().ends
    }

    pub(crate) fn vote(&self) -> Option<Vote> {
        self.state.lock().vote
    }

    pub(crate) fn set_vote(&self, vote: Vote) {
        self.state.lock().vote = Some(vote);
    }

    pub(crate) fn set_committed(&self, id: LogId) {
        self.state.lock().ends.committed = Some(id);
    }

    /// Notes an entry that is about to be appended.
    pub(crate) fn push(&self, entry: RaftLogEntry, bytes: usize) {
        let mut state = self.state.lock();
        if state.ends.is_empty() {
            state.ends.first = entry.log_id.index;
        }
        state.ends.last = Some(entry.log_id);
        state.recent.push(entry.log_id, entry.payload, bytes);
    }

    /// Notes that everything up to `last` is durable, or that it never will be.
    pub(crate) fn flushed(&self, last: Option<LogId>, failed: Option<&io::Error>) {
        let mut flushed = self.flushed.lock();
        match failed {
            Some(error) => flushed.failed = Some(error.to_string()),
            None => flushed.last = flushed.last.max(last.map(|id| id.index)),
        }
        drop(flushed);
        self.flush.notify_all();
    }

    /// Blocks until the local log is durable up to `upto`, as far as it holds that: what came by a snapshot it never
    /// held. A checkpoint must not be ahead of the log, or a power cut would leave a hole between the two.
    pub(crate) fn wait_flushed(&self, upto: EntryId) -> io::Result<()> {
        loop {
            let needed = self.ends().last.map(|last| last.index.min(upto.index.get()));
            let mut flushed = self.flushed.lock();
            if let Some(reason) = &flushed.failed {
                return Err(io::Error::other(reason.clone()));
            }
            if flushed.last >= needed {
                return Ok(());
            }
            match self.wal.background().one_thread() {
                None => drop(self.flush.wait_for(&mut flushed, FLUSH_RECHECK)),
                // What it waits for is done on this very thread.
                Some(one_thread) => {
                    drop(flushed);
                    one_thread.help();
                }
            }
            if let Some(error) = self.wal.poisoned() {
                return Err(io::Error::other(error.to_string()));
            }
        }
    }

    pub(crate) fn truncate_after(&self, last: Option<LogId>) {
        let mut state = self.state.lock();
        if last.map(|id| id.index) >= state.ends.last.map(|id| id.index) {
            return;
        }
        state.recent.truncate_after(last.map(|id| id.index));
        state.ends.last = last.max(state.ends.purged);
    }

    /// What is appended next under the indexes behind the log's end is not durable yet. To be called when the truncation is: what was being
    /// written when it began says until then that it is durable.
    pub(crate) fn cut(&self) {
        let end = self.ends().last.map(|id| id.index);
        let mut flushed = self.flushed.lock();
        flushed.last = flushed.last.min(end);
    }

    pub(crate) fn purge(&self, id: LogId) {
        let mut state = self.state.lock();
        if state.ends.purged.is_some_and(|purged| purged.index >= id.index) {
            return;
        }
        state.recent.purge(id.index);
        state.ends.purged = Some(id);
        state.ends.first = id.index + 1;
        if state.ends.last.is_none_or(|last| last.index <= id.index) {
            state.ends.last = Some(id);
        }
        drop(state);
        // A checkpoint holds it, here or where it was installed from.
        let mut flushed = self.flushed.lock();
        flushed.last = flushed.last.max(Some(id.index));
    }

    /// Lets both caches go of what no longer has to be at hand.
    pub(crate) fn applied(&self, index: u64) {
        let mut state = self.state.lock();
        state.applied = state.applied.max(index + 1);
        state.recent.applied(index);
        drop(state);
        self.wal.applied(self.shard, LogIndex::new(index));
        self.applied.notify_waiters();
    }

    /// Whether more than `bytes_max` of what is known to be committed waits to be applied.
    pub(crate) fn apply_lags(&self, bytes_max: usize) -> bool {
        let state = self.state.lock();
        let committed = state.ends.committed.map_or(0, |id| id.index + 1);
        state.recent.bytes_between(state.applied, committed, bytes_max) > bytes_max
    }

    /// Waits until entries are applied, for a moment at most.
    pub(crate) async fn wait_some_applied(&self, moment: Duration) {
        drop(tokio::time::timeout(moment, self.applied.notified()).await);
    }

    /// The entries of `from..to` that the decoded ones begin with, or what is to be read from the log instead.
    pub(crate) fn lookup(&self, from: u64, to: u64, bytes_max: usize) -> Lookup {
        let state = self.state.lock();
        let from = if state.ends.is_empty() { u64::MAX } else { from.max(state.ends.first) };
        let to = to.min(state.ends.next_index());
        if from >= to {
            return Lookup::Nothing;
        }
        match state.recent.first_index() {
            Some(recent) if recent <= from => Lookup::Recent(state.recent.read(from, to, bytes_max)),
            Some(recent) => Lookup::Older { from, to: to.min(recent) },
            None => Lookup::Older { from, to },
        }
    }

    /// Reads older entries; may block on the disk.
    pub(crate) fn read_older(&self, from: u64, to: u64, bytes_max: usize) -> io::Result<Vec<RaftLogEntry>> {
        let found = self
            .wal
            .read(self.shard, LogIndex::new(from), LogIndex::new(to), bytes_max)
            .map_err(|error| io::Error::other(format!("write-ahead log: {error}")))?;
        found.iter().zip(from..).map(|(entry, expected)| Self::decode(self.shard, entry, expected)).collect()
    }

    /// Reads an entry of a shard that should stand at an index.
    pub(crate) fn decode(shard: ShardId, entry: &WalEntry, expected: u64) -> io::Result<RaftLogEntry> {
        let invalid = |reason: String| {
            io::Error::new(io::ErrorKind::InvalidData, format!("entry {expected} of shard {shard}: {reason}"))
        };
        if entry.id.index.get() != expected {
            return Err(invalid(format!("entry {} stands in its place", entry.id.index)));
        }
        let payload =
            codec::decode_payload(entry.payload.pieces()).map_err(|error| invalid(error.to_string()))?;
        Ok(RaftLogEntry { log_id: log_id(&entry.id), payload })
    }
}

/// Where entries are to be found.
#[derive(Debug)]
pub(crate) enum Lookup {
    /// The range holds no entry.
    Nothing,
    /// Here they are.
    Recent(Vec<RaftLogEntry>),
    /// In the log, at these indexes.
    Older { from: u64, to: u64 },
}

impl fmt::Debug for SharedLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedLog")
            .field("shard", &self.shard)
            .field("ends", &self.ends())
            .finish_non_exhaustive()
    }
}
