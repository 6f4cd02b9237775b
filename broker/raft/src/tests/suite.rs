//! openraft's own storage suite, on the real log and the real shard.

use std::io;
use std::sync::Arc;

use futures::{Stream, StreamExt, stream};
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::{OptionalSend, StorageError};
use tempfile::TempDir;
use tidemill_log::fs::{DiskStorage, MemoryStorage, Storage};

use super::fixture::{Broker, SHARD};
use crate::config::ReplicaLimits;
use crate::log_store::LogStore;
use crate::shared_log::SharedLog;
use crate::snapshot::Snapshot;
use crate::state_machine::{Machine, SnapshotBuilder, StateMachine};
use crate::types::{
    LogId, Payload, RaftLogEntry, RaftSnapshot, SnapshotMeta, StoredMembership, TypeConfig, entry_id, log_id,
};

/// The state machine, given blank entries where the suite leaves some out: Raft never does, and a shard stops when it
/// happens.
struct GapsFilled(StateMachine);

impl RaftStateMachine<TypeConfig> for GapsFilled {
    type SnapshotData = Snapshot;
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        self.0.applied_state().await
    }

    async fn apply<Strm>(&mut self, entries: Strm) -> io::Result<()>
    where
        Strm: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + OptionalSend,
    {
        let mut next = self.applied_state().await?.0.map(|id| id.index + 1);
        let mut filled = Vec::new();
        for item in entries.collect::<Vec<_>>().await {
            let id = item.as_ref().map_or(None, |(entry, _)| Some(entry.log_id)).unwrap();
            for index in next.unwrap_or(id.index)..id.index {
                let blank = log_id(&entry_id(&LogId { index, ..id }));
                filled.push(Ok((RaftLogEntry { log_id: blank, payload: Payload::Blank }, None)));
            }
            next = Some(id.index + 1);
            filled.push(item);
        }
        self.0.apply(stream::iter(filled)).await
    }

    async fn try_create_snapshot_builder(&mut self, force: bool) -> Option<SnapshotBuilder> {
        self.0.try_create_snapshot_builder(force).await
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        self.0.get_snapshot_builder().await
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: Snapshot) -> io::Result<()> {
        self.0.install_snapshot(meta, snapshot).await
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<RaftSnapshot>> {
        self.0.get_current_snapshot().await
    }
}

fn stores(broker: &Broker) -> (LogStore, GapsFilled) {
    let recovered = broker.recovered(SHARD);
    let log = SharedLog::open(SHARD, broker.wal.clone(), &recovered, 1 << 20, 0).unwrap();
    let limits = ReplicaLimits { checkpoint_bytes: u64::MAX, ..ReplicaLimits::default() };
    let machine = Machine::open(SHARD, broker.shard(SHARD), Arc::clone(&log), &limits).unwrap();
    (LogStore::new(log), GapsFilled(StateMachine::new(machine)))
}

struct InMemory;

impl StoreBuilder<TypeConfig, LogStore, GapsFilled> for InMemory {
    async fn build(&self) -> Result<((), LogStore, GapsFilled), StorageError<TypeConfig>> {
        let (log, machine) = stores(&Broker::in_memory(&MemoryStorage::new()));
        Ok(((), log, machine))
    }
}

struct OnDisk;

impl StoreBuilder<TypeConfig, LogStore, GapsFilled, TempDir> for OnDisk {
    async fn build(&self) -> Result<(TempDir, LogStore, GapsFilled), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().unwrap();
        let storage: Arc<dyn Storage> = Arc::new(DiskStorage::new(dir.path()).unwrap());
        let (log, machine) = stores(&Broker::open(storage));
        Ok((dir, log, machine))
    }
}

#[tokio::test]
async fn suite_passes_in_memory() {
    Suite::test_all(InMemory).await.unwrap();
}

#[tokio::test]
async fn suite_passes_on_disk() {
    Suite::test_all(OnDisk).await.unwrap();
}
