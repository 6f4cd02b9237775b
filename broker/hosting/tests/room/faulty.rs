//! A port that can be told to fail, and that writes down what tasks do.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use tidemill_hosting::*;
use tidemill_protocol::{Offset, Timestamp, TopicPartition};

/// What becomes of a step instead.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// It is refused.
    Refused(StepRefusal),
    /// It is lost, and that is known.
    Lost,
    /// It is done, but the task does not hear of it.
    DoneUnheard,
}

/// A step that a task wanted to take.
#[derive(Debug, Clone)]
pub(crate) struct Attempt {
    pub(crate) step: TaskStep,
    pub(crate) outcome: Result<StepOutcome, PortError>,
    /// The log's time.
    pub(crate) now: Timestamp,
    /// The task before and after it.
    pub(crate) before: MemoryTask,
    pub(crate) after: MemoryTask,
}

type Watcher = Box<dyn Fn(&MemoryPort, &Attempt) + Send + Sync>;

/// Shards in memory, with faults.
pub(crate) struct FaultyPort {
    pub(crate) shard: Arc<MemoryPort>,
    faults: Mutex<VecDeque<Fault>>,
    attempts: Mutex<Vec<Attempt>>,
    /// Steps that may be seen in the shard, and are not among the attempts yet.
    unnoted: AtomicUsize,
    fetches: Mutex<Vec<Instant>>,
    damaged: Mutex<Option<(TopicPartition, String)>>,
    /// Called after each step.
    watcher: Mutex<Option<Watcher>>,
}

/// A step under way, however it ends.
struct Unnoted<'a>(&'a AtomicUsize);

impl<'a> Unnoted<'a> {
    fn begin(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count)
    }
}

impl Drop for Unnoted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl FaultyPort {
    pub(crate) fn new(limits: MemoryLimits) -> Arc<Self> {
        Arc::new(Self {
            shard: Arc::new(MemoryPort::new(limits)),
            faults: Mutex::default(),
            attempts: Mutex::default(),
            unnoted: AtomicUsize::new(0),
            fetches: Mutex::default(),
            damaged: Mutex::default(),
            watcher: Mutex::default(),
        })
    }

    /// The next steps come to this.
    pub(crate) fn fail(&self, faults: impl IntoIterator<Item = Fault>) {
        self.faults.lock().extend(faults);
    }

    /// A source can't be read, for this reason, until all is [mended](Self::mend).
    pub(crate) fn damage(&self, source: TopicPartition, reason: &str) {
        *self.damaged.lock() = Some((source, reason.to_owned()));
    }

    pub(crate) fn mend(&self) {
        *self.damaged.lock() = None;
    }

    pub(crate) fn watch(&self, watcher: impl Fn(&MemoryPort, &Attempt) + Send + Sync + 'static) {
        *self.watcher.lock() = Some(Box::new(watcher));
    }

    pub(crate) fn attempts(&self) -> Vec<Attempt> {
        self.attempts.lock().clone()
    }

    /// Whether all that can be seen of steps is among the attempts.
    pub(crate) fn is_noted(&self) -> bool {
        self.unnoted.load(Ordering::SeqCst) == 0
    }

    /// When records were asked for.
    pub(crate) fn fetches(&self) -> Vec<Instant> {
        self.fetches.lock().clone()
    }

    fn task(&self, task: TaskKey) -> MemoryTask {
        self.shard.task(task.deployment, task.partition).expect("the task is there")
    }
}

impl TaskPort for FaultyPort {
    fn view(&self, task: TaskKey) -> Option<TaskView> {
        self.shard.view(task)
    }

    fn log_time(&self, task: TaskKey) -> Timestamp {
        self.shard.log_time(task)
    }

    fn fetch(
        &self,
        source: TopicPartition,
        from: Offset,
        bytes_max: usize,
    ) -> BoxFuture<'_, Result<Fetched, PortError>> {
        self.fetches.lock().push(Instant::now());
        if let Some((_, reason)) = self.damaged.lock().as_ref().filter(|(damaged, _)| *damaged == source) {
            let error = PortError(reason.clone());
            return async move { Err(error) }.boxed();
        }
        self.shard.fetch(source, from, bytes_max)
    }

    fn wait(&self, task: TaskKey, sources: Vec<(TopicPartition, Offset)>) -> BoxFuture<'_, ()> {
        self.shard.wait(task, sources)
    }

    fn state_get(
        &self,
        task: TaskKey,
        keys: Vec<Bytes>,
        bytes_max: usize,
    ) -> BoxFuture<'_, Result<Option<Vec<Option<Bytes>>>, PortError>> {
        self.shard.state_get(task, keys, bytes_max)
    }

    fn state_scan(
        &self,
        task: TaskKey,
        start: Bytes,
        end: Option<Bytes>,
        limit: usize,
        bytes_max: usize,
    ) -> BoxFuture<'_, Result<StateEntries, PortError>> {
        self.shard.state_scan(task, start, end, limit, bytes_max)
    }

    fn due_timers(&self, task: TaskKey, limit: usize) -> BoxFuture<'_, Result<Vec<DueTimer>, PortError>> {
        self.shard.due_timers(task, limit)
    }

    fn commit(&self, task: TaskKey, step: TaskStep) -> BoxFuture<'_, Result<StepOutcome, PortError>> {
        async move {
            let _unnoted = Unnoted::begin(&self.unnoted);
            let before = self.task(task);
            let fault = self.faults.lock().pop_front();
            let lost = || Err(PortError("the shard did not answer".to_owned()));
            let outcome = match fault {
                None => self.shard.commit(task, step.clone()).await,
                Some(Fault::Refused(refusal)) => Ok(StepOutcome::Refused(refusal)),
                Some(Fault::Lost) => lost(),
                Some(Fault::DoneUnheard) => self.shard.commit(task, step.clone()).await.and_then(|_| lost()),
            };
            let after = self.task(task);
            let attempt = Attempt { step, outcome: outcome.clone(), now: self.shard.now(), before, after };
            if let Some(watcher) = &*self.watcher.lock() {
                watcher(&self.shard, &attempt);
            }
            self.attempts.lock().push(attempt);
            outcome
        }
        .boxed()
    }

    fn set_state(
        &self,
        task: TaskKey,
        epoch: u32,
        state: TaskRunState,
    ) -> BoxFuture<'_, Result<(), PortError>> {
        self.shard.set_state(task, epoch, state)
    }
}
