//! Write-behind: batches move from tails to segments in the background, coalesced, so that apply never waits for a disk
//! and a thousand partitions make few, large writes.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex, MutexGuard};
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
            self.woken.notify_one();
        }
    }

    /// Blocks until there is work; `false` when it is time to stop.
    fn wait(&self) -> bool {
        let mut queue = self.queue.lock();
        while !queue.work && !queue.stop {
            self.woken.wait(&mut queue);
        }
        queue.work = false;
        !queue.stop
    }

    fn stop(&self) {
        self.queue.lock().stop = true;
        self.woken.notify_all();
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
    /// may always wait) are applied and not in segments, or the shard has stopped.
    pub async fn written_up_to(&self, lag_bytes_max: u64) {
        let write_behind = &self.inner.write_behind;
        let lag_bytes_max = lag_bytes_max.max(self.inner.config.write_behind_bytes);
        loop {
            let mut less = std::pin::pin!(write_behind.less.notified());
            // From here on nothing is missed.
            less.as_mut().enable();
            if self.write_behind_lag_bytes() <= lag_bytes_max || self.poisoned().is_some() {
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
        for (bytes, log) in waiting {
            let lag = self.write_behind.unwritten.load(Ordering::Relaxed);
            if bytes >= self.config.write_coalesce_bytes || lag > enough {
                // Bounded by what is there now: apply may add as fast as this writes.
                let until = log.view().high_watermark;
                let mut writer = self.writer.lock();
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
        self.write_behind.wait_for_write(left, self.config.write_behind_bytes);
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

/// The shard's background thread; stopped and joined when this goes.
pub(super) struct Thread {
    inner: Arc<Inner>,
    handle: Option<JoinHandle<()>>,
}

impl Thread {
    #[allow(
        clippy::disallowed_methods,
        reason = "writing behind is what runs beside apply; dropping this joins it"
    )]
    pub(super) fn start(inner: Arc<Inner>) -> std::io::Result<Self> {
        let name = format!("write-behind-{}", inner.config.shard);
        let shared = Arc::clone(&inner);
        let handle = std::thread::Builder::new().name(name).spawn(move || run(&shared))?;
        Ok(Self { inner, handle: Some(handle) })
    }
}

fn run(inner: &Inner) {
    while inner.write_behind.wait() {
        if let Err(error) = inner.write_behind_pass() {
            inner.stop(&format!("{error}; free the disk or repair it, then restart the broker"));
            return;
        }
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.inner.write_behind.stop();
        if let Some(handle) = self.handle.take()
            && handle.join().is_err()
        {
            tracing::error!(shard = %self.inner.config.shard, "the write-behind thread panicked");
        }
    }
}
