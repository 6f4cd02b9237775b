//! Reading a shard's log, by bytes.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::io;
use std::ops::RangeBounds;
use std::sync::Arc;

use futures::Stream;
use futures::stream;
use openraft::errors::LeaderChanged;
use openraft::storage::{LeaderBoundedStreamError, LeaderBoundedStreamResult};
use openraft::{OptionalSend, RaftLogReader};
use tidemill_protocol::LogIndex;

use crate::log_store::half_open;
use crate::rpc::APPEND_BYTES_MAX;
use crate::runtime::blocking;
use crate::shared_log::{Lookup, SharedLog};
use crate::types::{LeaderId, RaftLogEntry, TypeConfig, Vote};

/// Reads entries: decoded ones at once, others through the log's cache or from its files.
#[derive(Debug, Clone)]
pub(crate) struct LogReader(Arc<SharedLog>);

impl LogReader {
    pub(crate) fn new(log: Arc<SharedLog>) -> Self {
        Self(log)
    }

    /// The next entries of `from..to`, until `bytes_max` are reached; empty only where the range holds none.
    async fn read(&self, from: u64, to: u64, bytes_max: usize) -> io::Result<Vec<RaftLogEntry>> {
        let (from, to) = match self.0.lookup(from, to, bytes_max) {
            Lookup::Nothing => return Ok(Vec::new()),
            Lookup::Recent(entries) => return Ok(entries),
            Lookup::Older { from, to } => (from, to),
        };
        if self.0.wal().is_cached(self.0.shard(), LogIndex::new(from), LogIndex::new(to)) {
            return self.0.read_older(from, to, bytes_max);
        }
        let log = Arc::clone(&self.0);
        blocking(self.0.wal().background(), move || log.read_older(from, to, bytes_max)).await?
    }

    /// Entries one by one, read in pieces.
    fn stream(&self, from: u64, to: u64) -> impl Stream<Item = io::Result<RaftLogEntry>> + Send + use<> {
        let position = Position { reader: self.clone(), next: from, to, read: VecDeque::new() };
        stream::try_unfold(position, |mut position| async move {
            let entry = position.next().await?;
            Ok(entry.map(|entry| (entry, position)))
        })
    }
}

struct Position {
    reader: LogReader,
    next: u64,
    to: u64,
    read: VecDeque<RaftLogEntry>,
}

impl Position {
    async fn next(&mut self) -> io::Result<Option<RaftLogEntry>> {
        if self.read.is_empty() {
            let bytes_max = self.reader.0.read_bytes_max();
            self.read = self.reader.read(self.next, self.to, bytes_max).await?.into();
        }
        let entry = self.read.pop_front();
        if let Some(entry) = &entry {
            self.next = entry.log_id.index + 1;
        }
        Ok(entry)
    }
}

impl RaftLogReader<TypeConfig> for LogReader {
    /// Entries for a follower, for as long as `leader` leads: checked before each, because a new leader may truncate.
    async fn leader_bounded_stream<RB>(
        &mut self,
        leader: LeaderId,
        range: RB,
    ) -> impl Stream<Item = LeaderBoundedStreamResult<TypeConfig>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (next, to) = half_open(&range);
        let position = Position { reader: self.clone(), next, to, read: VecDeque::new() };
        stream::try_unfold(position, move |mut position| async move {
            let entry = position.next().await.map_err(LeaderBoundedStreamError::IoError)?;
            let vote = position.reader.0.vote();
            if !vote.is_some_and(|vote| vote.is_committed() && *vote.leader_id() == leader) {
                return Err(LeaderBoundedStreamError::LeaderChanged(LeaderChanged::new(leader, vote)));
            }
            Ok(entry.map(|entry| (entry, position)))
        })
    }

    async fn entries_stream<RB>(
        &mut self,
        range: RB,
    ) -> impl Stream<Item = io::Result<RaftLogEntry>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (from, to) = half_open(&range);
        self.stream(from, to)
    }

    /// The whole range, as openraft demands here; it asks for at most 64 entries at a time, and only at the start.
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> io::Result<Vec<RaftLogEntry>> {
        let (mut from, to) = half_open(&range);
        let mut entries = Vec::new();
        loop {
            let more = self.read(from, to, self.0.read_bytes_max()).await?;
            let Some(last) = more.last() else { return Ok(entries) };
            from = last.log_id.index + 1;
            entries.extend(more);
        }
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.0.vote())
    }

    /// The entries of one append.
    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<RaftLogEntry>> {
        self.read(start, end, self.0.read_bytes_max().min(APPEND_BYTES_MAX)).await
    }
}
