//! Write-behind: batches move from tails to segments in the background, coalesced, so that apply never waits for a disk
//! and a thousand partitions make few, large writes.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Waker;

use parking_lot::{Condvar, Mutex, MutexGuard};
use tidemill_log::background::{Running, Step, Worker};
use tidemill_log::segment::{AppendError, OpenError};
use tidemill_protocol::Offset;
use tokio::sync::Notify;

use super::{Inner, Shard};
use crate::partition_log::PartitionLog;

/// So many bytes are written without a read in between, and what is kept of the tails shrinks to this share: memory that nobody reads is
/// better used again while it is still in the processor's caches.
const UNREAD_BYTES: u64 = 32 << 20;
const UNREAD_SHARE: u64 = 8;
/// Largest gathered write.
const CHUNK_BYTES_MAX: usize = 4 << 20;

/// Counters and the list of partitions that wait to be written.
#[derive(Default)]
pub(super) struct WriteBehind {
    /// Bytes in tails that are not in segments yet.
    unwritten: AtomicU64,
    /// Bytes in tails.
    in_memory: AtomicU64,
    /// A tail was read since the writer looked last.
    tail_read: AtomicBool,
    queue: Mutex<Queue>,
    woken: Condvar,
    /// Less waits than a moment ago.
    less: Notify,
}

#[derive(Default)]
struct Queue {
    waiting: Vec<Arc<PartitionLog>>,
    work: bool,
    stop: bool,
    /// Of a worker that waits without blocking.
    waker: Option<Waker>,
}

impl Queue {
    fn wake(&mut self, woken: &Condvar) {
        woken.notify_one();
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

/// What the worker finds when it looks at the queue.
enum Look {
    Work,
    Nothing,
    Stop,
}

/// What whoever writes to segments keeps: tails that may be trimmed, in the order in which they were written.
#[derive(Default)]
pub(super) struct Writer {
    trimmable: VecDeque<(Arc<PartitionLog>, Offset)>,
    /// Written since a tail was read.
    unread_bytes: u64,
}

/// Why batches could not be moved to segments.
#[derive(Debug, thiserror::Error)]
pub(super) enum WriteError {
    #[error(transparent)]
    Append(#[from] AppendError),
    #[error(transparent)]
    Open(#[from] OpenError),
}

impl WriteBehind {
    pub(super) fn add(&self, bytes: u64) {
        self.unwritten.fetch_add(bytes, Ordering::Relaxed);
        self.in_memory.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn remove(&self, all: u64, unwritten: u64) {
        self.in_memory.fetch_sub(all, Ordering::Relaxed);
        self.written(unwritten);
    }

    /// Someone read records from memory.
    pub(super) fn tail_was_read(&self) {
        // Reads first: a flag that is set is not worth a cache line's way between processors.
        if !self.tail_read.load(Ordering::Relaxed) {
            self.tail_read.store(true, Ordering::Relaxed);
        }
    }

    fn written(&self, bytes: u64) {
        self.unwritten.fetch_sub(bytes, Ordering::Relaxed);
        self.less.notify_waiters();
    }

    /// Wakes whoever waits for less: there will be none.
    pub(super) fn give_up(&self) {
        self.less.notify_waiters();
    }

    /// Notes partitions that wait, and wakes the writer where enough does.
    pub(super) fn wait_for_write(&self, logs: Vec<Arc<PartitionLog>>, threshold: u64) {
        let enough = self.unwritten.load(Ordering::Relaxed) >= threshold;
        if logs.is_empty() && !enough {
            return;
        }
        let mut queue = self.queue.lock();
        queue.waiting.extend(logs);
        if enough && !queue.work {
            queue.work = true;
            queue.wake(&self.woken);
        }
    }

    /// Without a waker it blocks until there is work, or it is time to stop.
    fn look(&self, waker: Option<&Waker>) -> Look {
        let mut queue = self.queue.lock();
        while !queue.work && !queue.stop {
            if let Some(waker) = waker {
                queue.waker = Some(waker.clone());
                return Look::Nothing;
            }
            self.woken.wait(&mut queue);
        }
        queue.work = false;
        if queue.stop { Look::Stop } else { Look::Work }
    }

    fn stop(&self) {
        let mut queue = self.queue.lock();
        queue.stop = true;
        queue.wake(&self.woken);
    }

    /// Takes the partitions that wait, those with most first, and forgets those that do not any more.
    fn take_waiting(&self) -> Vec<(u64, Arc<PartitionLog>)> {
        let waiting = std::mem::take(&mut self.queue.lock().waiting);
        let mut waiting: Vec<_> = waiting
            .into_iter()
            .map(|log| (log.unwritten_bytes(), log))
            .filter(|(bytes, _)| *bytes > 0)
            .collect();
        waiting.sort_unstable_by_key(|(bytes, log)| (std::cmp::Reverse(*bytes), log.id()));
        waiting.dedup_by(|(_, a), (_, b)| Arc::ptr_eq(a, b));
        waiting
    }

    /// Forgets partitions that were written by a checkpoint meanwhile.
    pub(super) fn prune(&self, threshold: u64) {
        let waiting = self.take_waiting();
        self.wait_for_write(waiting.into_iter().map(|(_, log)| log).collect(), threshold);
    }
}

impl Shard {
    /// Bytes that are applied and not yet in segments. Whoever proposes stalls above a bound, see
    /// [`Self::written_up_to`]: apply itself never does.
    #[must_use]
    pub fn write_behind_lag_bytes(&self) -> u64 {
        self.inner.write_behind.unwritten.load(Ordering::Relaxed)
    }

    /// Waits until no more than `lag_bytes_max` (at least [`ShardConfig::write_behind_bytes`](super::ShardConfig), which
    /// may always wait) are applied and not in segments, or the shard has stopped or was closed.
    pub async fn written_up_to(&self, lag_bytes_max: u64) {
        let write_behind = &self.inner.write_behind;
        let lag_bytes_max = lag_bytes_max.max(self.inner.config.write_behind_bytes);
        loop {
            let mut less = std::pin::pin!(write_behind.less.notified());
            // From here on nothing is missed.
            less.as_mut().enable();
            if self.write_behind_lag_bytes() <= lag_bytes_max || self.inner.poison.check().is_err() {
                return;
            }
            less.await;
        }
    }

    /// Bytes of records in memory, for readers of the tail.
    #[must_use]
    pub fn tail_bytes(&self) -> u64 {
        self.inner.write_behind.in_memory.load(Ordering::Relaxed)
    }
}

impl Inner {
    /// Moves what waits to segments until half of the threshold is left: large partitions first, small ones keep
    /// gathering.
    pub(super) fn write_behind_pass(&self) -> Result<(), WriteError> {
        let waiting = self.write_behind.take_waiting();
        let enough = self.config.write_behind_bytes / 2;
        let mut left = Vec::new();
        let mut waits_for_checkpoint = false;
        for (bytes, log) in waiting {
            if self.poison.is_closed() {
                return Ok(());
            }
            let lag = self.write_behind.unwritten.load(Ordering::Relaxed);
            if bytes >= self.config.write_coalesce_bytes || lag > enough {
                // Bounded by what is there now: apply may add as fast as this writes.
                let until = log.view().high_watermark;
                let mut writer = self.writer.lock();
                // What is newer than a marked state must not be in the segments whose ends are recorded with it. What was there to write
                // before it was marked may be: so this is looked at after that.
                if self.has_marked_state() {
                    waits_for_checkpoint = true;
                    left.push(log);
                    continue;
                }
                self.write_until(&mut writer, &log, until)?;
                // A checkpoint that waits comes before the next partition.
                MutexGuard::unlock_fair(writer);
                // What came meanwhile was not the first to wait, so nobody noted it.
                if log.unwritten_bytes() > 0 {
                    left.push(log);
                }
            } else {
                left.push(log);
            }
        }
        // The checkpoint looks at what waits when it is through.
        let threshold = if waits_for_checkpoint { u64::MAX } else { self.config.write_behind_bytes };
        self.write_behind.wait_for_write(left, threshold);
        Ok(())
    }

    /// Writes a partition's batches before `until`.
    pub(super) fn write_until(
        &self,
        writer: &mut Writer,
        log: &Arc<PartitionLog>,
        until: Offset,
    ) -> Result<(), WriteError> {
        let (mut written_to, mut written_bytes) = (None, 0);
        while let Some(chunk) = log.next_chunk(until, CHUNK_BYTES_MAX) {
            let store = log.store()?;
            if chunk.starts_segment
                && let Some(first) = chunk.batches.first()
            {
                store.roll(first.base_offset())?;
            }
            store.append(&chunk.batches)?;
            let bytes = log.written(&chunk);
            self.write_behind.written(bytes);
            written_bytes += bytes;
            written_to = Some(chunk.end());
            metrics::counter!("tidemill_segment_writes_total").increment(1);
        }
        if let Some(end) = written_to {
            writer.trimmable.push_back((Arc::clone(log), end));
            self.trim(writer, written_bytes);
        }
        Ok(())
    }

    /// Lets the tails written longest ago go until memory is within its budget.
    fn trim(&self, writer: &mut Writer, written_bytes: u64) {
        let read = self.write_behind.tail_read.swap(false, Ordering::Relaxed);
        writer.unread_bytes = if read { 0 } else { writer.unread_bytes.saturating_add(written_bytes) };
        let budget = match self.config.tail_cache_bytes {
            whole if writer.unread_bytes < UNREAD_BYTES => whole,
            whole => whole / UNREAD_SHARE,
        };
        while self.write_behind.in_memory.load(Ordering::Relaxed) > budget
            && let Some((log, until)) = writer.trimmable.pop_front()
        {
            let freed = log.trim(until);
            self.write_behind.in_memory.fetch_sub(freed, Ordering::Relaxed);
        }
    }
}

/// What moves the shard's batches to segments beside apply; stopped and joined when this goes.
pub(super) struct Moving {
    inner: Arc<Inner>,
    running: Mutex<Option<Box<dyn Running>>>,
}

impl Moving {
    pub(super) fn start(inner: Arc<Inner>) -> std::io::Result<Self> {
        let name = format!("write-behind-{}", inner.config.shard);
        let worker = Mover(Arc::clone(&inner));
        let running = inner.config.background.start(&name, Box::new(worker))?;
        Ok(Self { inner, running: Mutex::new(Some(running)) })
    }

    /// Returns once it has ended; what it is writing just now is written.
    pub(super) fn end(&self) {
        self.inner.write_behind.stop();
        // Held while it is waited for: a second caller returns when it has ended, too.
        let mut running = self.running.lock();
        if let Some(running) = running.take()
            && running.join().is_err()
        {
            tracing::error!(shard = %self.inner.config.shard, "the write-behind thread panicked");
        }
    }
}

impl Drop for Moving {
    fn drop(&mut self) {
        self.end();
    }
}

struct Mover(Arc<Inner>);

impl Mover {
    fn turn(&self, waker: Option<&Waker>) -> Step {
        match self.0.write_behind.look(waker) {
            Look::Work => {}
            Look::Nothing => return Step::Idle { until: None },
            Look::Stop => return Step::Ended,
        }
        let Err(error) = self.0.write_behind_pass() else { return Step::Worked };
        self.0.stop(&format!("{error}; free the disk or repair it, then restart the broker"));
        Step::Ended
    }
}

impl Worker for Mover {
    fn run(&mut self) {
        while self.turn(None) != Step::Ended {}
    }

    fn step(&mut self, waker: &Waker) -> Step {
        self.turn(Some(waker))
    }
}
