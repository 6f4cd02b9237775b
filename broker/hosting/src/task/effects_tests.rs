//! What a call reads of its state: its own writes over what is stored, within bounds.

use std::sync::atomic::{AtomicUsize, Ordering};

use tidemill_protocol::{DeploymentId, Offset, PartitionId, TopicId, TopicPartition};

use super::*;
use crate::port::{
    DueTimer, Fetched, PortError, StateEntries, StepOutcome, TaskRunState, TaskStep, TaskView,
};

/// A shard that has nothing but state.
#[derive(Default)]
struct StoredState {
    entries: BTreeMap<Bytes, Bytes>,
    collected_bytes: AtomicUsize,
    /// What there was before this key has expired: a page of it is empty.
    expired_before: Option<Bytes>,
}

impl TaskPort for StoredState {
    fn view(&self, _task: TaskKey) -> Option<TaskView> {
        None
    }

    fn log_time(&self, _task: TaskKey) -> Timestamp {
        Timestamp::new(0)
    }

    fn fetch(
        &self,
        _source: TopicPartition,
        _from: Offset,
        _bytes_max: usize,
    ) -> BoxFuture<'_, Result<Fetched, PortError>> {
        async { Ok(Fetched::default()) }.boxed()
    }

    fn wait(&self, _task: TaskKey, _sources: Vec<(TopicPartition, Offset)>) -> BoxFuture<'_, ()> {
        async {}.boxed()
    }

    fn state_get(
        &self,
        _task: TaskKey,
        keys: Vec<Bytes>,
        bytes_max: usize,
    ) -> BoxFuture<'_, Result<Option<Vec<Option<Bytes>>>, PortError>> {
        let values: Vec<_> = keys.iter().map(|key| self.entries.get(key).cloned()).collect();
        let bytes: usize = values.iter().flatten().map(Bytes::len).sum();
        async move { Ok((bytes <= bytes_max).then_some(values)) }.boxed()
    }

    fn state_scan(
        &self,
        _task: TaskKey,
        start: Bytes,
        end: Option<Bytes>,
        limit: usize,
        bytes_max: usize,
    ) -> BoxFuture<'_, Result<StateEntries, PortError>> {
        if let Some(first) = self.expired_before.clone().filter(|first| start < *first) {
            return async move { Ok(StateEntries { entries: Vec::new(), next: Some(first) }) }.boxed();
        }
        let (mut found, mut bytes, mut next) = (Vec::new(), 0, None);
        for (key, value) in self.entries.range(start..) {
            if end.as_ref().is_some_and(|end| key >= end) {
                break;
            }
            if found.len() >= limit || bytes >= bytes_max {
                next = Some(key.clone());
                break;
            }
            bytes += key.len() + value.len();
            found.push((key.clone(), value.clone()));
        }
        self.collected_bytes.fetch_add(bytes, Ordering::Relaxed);
        async move { Ok(StateEntries { entries: found, next }) }.boxed()
    }

    fn due_timers(&self, _task: TaskKey, _limit: usize) -> BoxFuture<'_, Result<Vec<DueTimer>, PortError>> {
        async { Ok(Vec::new()) }.boxed()
    }

    fn commit(&self, _task: TaskKey, _step: TaskStep) -> BoxFuture<'_, Result<StepOutcome, PortError>> {
        async { Ok(StepOutcome::Committed) }.boxed()
    }

    fn set_state(
        &self,
        _task: TaskKey,
        _epoch: u32,
        _state: TaskRunState,
    ) -> BoxFuture<'_, Result<(), PortError>> {
        async { Ok(()) }.boxed()
    }
}

fn key(number: usize) -> Bytes {
    format!("{number:04}").into()
}

/// A task with as many entries of 1,000 bytes stored, and these written by the call under way.
fn host(stored: usize, own: &[(usize, Option<usize>)]) -> (EffectsHost, Arc<StoredState>) {
    let entries = (0..stored).map(|number| (key(number), vec![7; 996].into())).collect();
    let port = Arc::new(StoredState { entries, ..StoredState::default() });
    let state = own
        .iter()
        .map(|(number, bytes)| (key(*number), (bytes.map(|bytes| Bytes::from(vec![8; bytes])), None)));
    let effects = Arc::new(Mutex::new(Effects { state: state.collect(), ..Effects::default() }));
    let partition = PartitionId::new(0);
    let home = TopicPartition::new(TopicId::from_slice(&[0; 16]).unwrap(), partition);
    let task = TaskKey { deployment: DeploymentId::default(), partition, home };
    (EffectsHost { task, port: Arc::clone(&port) as _, targets: Arc::new([]), effects }, port)
}

const BOUNDS: ScanBounds = ScanBounds { entries_max: 1000, bytes_max: 10_000, read_bytes_max: 1 << 20 };

async fn page(host: &EffectsHost, start: usize, bounds: ScanBounds) -> (Vec<Vec<u8>>, bool) {
    match host.scan(key(start), None, bounds).await.unwrap() {
        ScanAnswer::Page(page) => (page.keys.iter().flatten().map(<[u8]>::to_vec).collect(), page.more),
        ScanAnswer::TooLarge => panic!("more was read than is there"),
    }
}

#[tokio::test]
async fn a_page_ends_at_its_bytes_and_the_next_goes_on() {
    let (host, port) = host(500, &[]);
    let (keys, more) = page(&host, 0, BOUNDS).await;
    assert_eq!((keys.len(), more), (10, true));
    assert_eq!(port.collected_bytes.load(Ordering::Relaxed), 10_000, "no more than that is collected");
    let (keys, more) = page(&host, 495, BOUNDS).await;
    assert_eq!((keys.len(), more), (5, false));
}

#[tokio::test]
async fn a_page_of_nothing_is_not_the_end() {
    let entries = [(key(7), Bytes::from_static(b"live"))].into();
    let port = Arc::new(StoredState { entries, expired_before: Some(key(5)), ..StoredState::default() });
    let (host, _) = host(0, &[]);
    let host = EffectsHost { port, ..host };
    assert_eq!(page(&host, 0, BOUNDS).await, (vec![key(7).to_vec()], false));
}

#[tokio::test]
async fn own_writes_count_towards_the_page() {
    // The first alone fills the page; behind it are another own write and nothing stored.
    let (host, _) = host(0, &[(1, Some(20_000)), (2, Some(1))]);
    assert_eq!(page(&host, 0, BOUNDS).await, (vec![key(1).to_vec()], true));
    assert_eq!(page(&host, 2, BOUNDS).await, (vec![key(2).to_vec()], false));
}

#[tokio::test]
async fn what_the_call_deleted_is_gone_past_but_not_for_ever() {
    let deleted: Vec<_> = (0..90).map(|number| (number, None)).collect();
    let (host, port) = host(100, &deleted);
    let (keys, more) = page(&host, 0, BOUNDS).await;
    assert_eq!((keys.len(), more), (10, false));
    assert_eq!(keys[0], key(90));
    let before = port.collected_bytes.load(Ordering::Relaxed);
    let tight = ScanBounds { read_bytes_max: 30_000, ..BOUNDS };
    assert_eq!(host.scan(key(0), None, tight).await.unwrap(), ScanAnswer::TooLarge);
    assert!(port.collected_bytes.load(Ordering::Relaxed) - before < 50_000);
}

#[tokio::test]
async fn values_are_bounded_own_ones_included() {
    let (mut host, _) = host(10, &[(3, Some(5000))]);
    let mut keys = Blobs::new();
    for number in [1, 2, 3, 3] {
        assert!(keys.push(Some(&key(number))));
    }
    let fits = host.read_state(keys.clone(), 2 * 996 + 10_000).await.unwrap();
    assert!(matches!(fits, ReadAnswer::Values(values) if values.len() == 4));
    for bytes_max in [2 * 996 + 9_999, 9_999, 0] {
        assert_eq!(host.read_state(keys.clone(), bytes_max).await.unwrap(), ReadAnswer::TooLarge);
    }
}
