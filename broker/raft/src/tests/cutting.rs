//! A tail that is cut off while it is being written.

use std::sync::Arc;
use std::time::Duration;

use openraft::storage::RaftLogStorage;
use tidemill_log::fs::{Call, FaultyStorage, MemoryStorage};

use super::fixture::{Broker, NODE, SHARD};
use crate::log_store::LogStore;
use crate::shared_log::SharedLog;
use crate::types::{IoFlushed, LeaderId, LogId, Payload, RaftLogEntry, entry_id};

fn id(term: u64, index: u64) -> LogId {
    LogId::new(LeaderId { term, node_id: NODE }, index)
}

fn blank(term: u64, index: u64) -> RaftLogEntry {
    RaftLogEntry { log_id: id(term, index), payload: Payload::Blank }
}

/// A checkpoint must not be ahead of the log, whatever was once written where the log goes on now.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_stood_there_before_says_nothing_of_what_is_appended_next() {
    let faulty = FaultyStorage::new(Arc::new(MemoryStorage::new()));
    let broker = Broker::open(Arc::new(faulty.clone()));
    let log = SharedLog::open(SHARD, broker.wal.clone(), &broker.recovered(SHARD), 1 << 20, 0).unwrap();
    let mut store = LogStore::new(Arc::clone(&log));
    faulty.hold(Call::Sync);
    store.append((1..=5).map(|index| blank(1, index)), IoFlushed::noop()).await.unwrap();
    let device = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        faulty.go_on();
    };
    let (cut, ()) = tokio::join!(store.truncate_after(Some(id(1, 2))), device);
    cut.unwrap();

    faulty.hold(Call::Sync);
    store.append([blank(2, 3)], IoFlushed::noop()).await.unwrap();
    let waiting = {
        let log = Arc::clone(&log);
        tokio::task::spawn_blocking(move || log.wait_flushed(entry_id(&id(2, 3))))
    };
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!waiting.is_finished(), "the device does not have it");
    faulty.go_on();
    waiting.await.unwrap().unwrap();
}
