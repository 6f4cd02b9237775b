//! openraft's own storage suite, on the real log and the real shard.

use std::sync::Arc;

use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};
use tempfile::TempDir;
use tidemill_log::fs::{DiskStorage, MemoryStorage, Storage};

use super::fixture::{Broker, SHARD};
use crate::log_store::LogStore;
use crate::shared_log::SharedLog;
use crate::state_machine::{Machine, StateMachine};
use crate::types::TypeConfig;

fn stores(broker: &Broker) -> (LogStore, StateMachine) {
    let recovered = broker.recovered(SHARD);
    let log = SharedLog::open(SHARD, broker.wal.clone(), &recovered, 1 << 20, 0).unwrap();
    let machine = Machine::open(SHARD, broker.shard(SHARD), Arc::clone(&log), u64::MAX).unwrap();
    (LogStore::new(log), StateMachine::new(machine))
}

struct InMemory;

impl StoreBuilder<TypeConfig, LogStore, StateMachine> for InMemory {
    async fn build(&self) -> Result<((), LogStore, StateMachine), StorageError<TypeConfig>> {
        let (log, machine) = stores(&Broker::in_memory(&MemoryStorage::new()));
        Ok(((), log, machine))
    }
}

struct OnDisk;

impl StoreBuilder<TypeConfig, LogStore, StateMachine, TempDir> for OnDisk {
    async fn build(&self) -> Result<(TempDir, LogStore, StateMachine), StorageError<TypeConfig>> {
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
