//! What waits for the writer.
//!
//! ```text
//!   callers --admit--> fill buffer (up to write_bytes_max) --swap--> writer: one write, one fdatasync
//!               \-> backlog (up to queue_bytes_max) -^
//! ```
//!
//! Nobody is made to wait in a call: callers are tasks of a runtime, which would keep its threads from everybody else. Who
//! appends asks for room first, and goes on when it is told that there is some.
//!
//! There are two gather buffers: while the device writes one, callers lay their frames into the other, so that the
//! copy and the checksums run beside the device and a lone entry costs no further hand-over.

use std::collections::VecDeque;
use std::task::Waker;

use parking_lot::{Condvar, Mutex};
use tidemill_protocol::ShardId;

use super::config::WalConfig;
use super::entry::{EntryBytes, EntryId, WalEntry};
use super::error::WalError;
use super::frame::{FrameHeader, FrameKind, NO_ENTRY, NO_SHARD, Position};
use super::gather::{Gather, Place, frame_bytes};
use super::notes::Note;
use super::state::Freed;

/// Called once, on the log's writer thread, when the operation is durable or has failed. It must be quick and must
/// not wait for the log.
pub type Completion = Box<dyn FnOnce(Result<(), WalError>) + Send>;

/// Called once there is room in the queue, or nothing more is taken: on the caller's thread or on the log's writer thread.
/// It must be quick and must not wait for the log.
pub type WhenRoom = Box<dyn FnOnce() + Send>;

/// The queue and what signals its changes.
pub(super) struct SharedQueue {
    pub(super) queue: Mutex<Queue>,
    /// There is work for the writer.
    pub(super) work: Condvar,
}

/// Frames on their way to the writer.
pub(super) struct Queue {
    fill: Gather,
    batch: Batch,
    spare: Option<Gather>,
    backlog: VecDeque<Queued>,
    chain: u32,
    next_serial: u64,
    /// Bytes of frames that are not written yet, those being written included.
    pub(super) queued_bytes: usize,
    write_bytes_max: usize,
    queue_bytes_max: usize,
    /// Who waits for room: called once, outside of the lock.
    waiting: Vec<WhenRoom>,
    pub(super) writer_waits: bool,
    /// Of a writer that waits without blocking.
    pub(super) waker: Option<Waker>,
    pub(super) closing: bool,
    pub(super) poison: Option<WalError>,
}

/// What goes out with one write, beside the bytes.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) completions: Vec<Completion>,
    pub(super) entries: Vec<BatchEntry>,
    pub(super) notes: Vec<Note>,
    pub(super) freed: Freed,
    /// Segments below this are released once the batch is flushed.
    pub(super) release: Option<u64>,
    /// Whether completions wait for the device whatever the log's durability.
    pub(super) sync: bool,
    /// Whether anybody waits for it.
    pub(super) urgent: bool,
    /// Whether it ends with the log's last frame.
    pub(super) closes: bool,
    pub(super) queued_bytes: usize,
    /// Crc of the frame before its first.
    pub(super) chain_before: u32,
    /// Crc of its last frame.
    pub(super) chain_after: u32,
}

/// An entry in a batch, so that its place becomes known when the batch is written.
pub(super) struct BatchEntry {
    pub(super) shard: ShardId,
    pub(super) index: u64,
    pub(super) serial: u64,
    /// Where it was before, if it is carried forward.
    pub(super) from: Option<Position>,
    pub(super) place: Place,
}

/// One frame to be written, and what follows from it.
pub(super) struct Queued {
    kind: FrameKind,
    shard: ShardId,
    id: EntryId,
    payload: EntryBytes,
    serial: u64,
    done: Option<Completion>,
    sync: bool,
    freed: Freed,
    from: Option<Position>,
}

impl Queued {
    pub(super) fn new(kind: FrameKind, shard: ShardId, id: EntryId, payload: EntryBytes) -> Self {
        Self {
            kind,
            shard,
            id,
            payload,
            serial: 0,
            done: None,
            sync: false,
            freed: Freed::default(),
            from: None,
        }
    }

    /// A frame of the log itself.
    pub(super) fn of_log(kind: FrameKind, index: u64) -> Self {
        let id = EntryId { index: tidemill_protocol::LogIndex::new(index), ..NO_ENTRY };
        Self::new(kind, NO_SHARD, id, EntryBytes::default())
    }

    /// An entry that lies at `from`, once more.
    pub(super) fn carried(shard: ShardId, entry: WalEntry, from: Position) -> Self {
        Self { from: Some(from), ..Self::new(FrameKind::Carried, shard, entry.id, entry.payload) }
    }

    pub(super) fn done(self, done: Completion) -> Self {
        Self { done: Some(done), ..self }
    }

    pub(super) fn sync(self, sync: bool) -> Self {
        Self { sync, ..self }
    }

    pub(super) fn freed(self, freed: Freed) -> Self {
        Self { freed, ..self }
    }

    pub(super) fn serial(self, serial: u64) -> Self {
        Self { serial, ..self }
    }

    fn bytes(&self) -> usize {
        frame_bytes(self.payload.len())
    }
}

impl SharedQueue {
    pub(super) fn new(config: &WalConfig, chain: u32) -> Self {
        Self {
            queue: Mutex::new(Queue {
                fill: Gather::new(config.write_bytes_max),
                batch: Batch { chain_before: chain, chain_after: chain, ..Batch::default() },
                spare: Some(Gather::new(config.write_bytes_max)),
                backlog: VecDeque::new(),
                chain,
                next_serial: 1,
                queued_bytes: 0,
                write_bytes_max: config.write_bytes_max,
                queue_bytes_max: config.queue_bytes_max,
                waiting: Vec::new(),
                writer_waits: false,
                waker: None,
                closing: false,
                poison: None,
            }),
            work: Condvar::new(),
        }
    }

    /// Lets a writer that waits look at the queue.
    pub(super) fn wake_writer(&self, queue: &mut Queue) {
        self.work.notify_one();
        if let Some(waker) = queue.waker.take() {
            waker.wake();
        }
    }
}

impl Queue {
    /// Why nothing more is taken, if so.
    pub(super) fn refusal(&self) -> Option<WalError> {
        self.poison.clone().or_else(|| self.closing.then_some(WalError::Closed))
    }

    /// Whether appends should wait.
    pub(super) fn is_full(&self) -> bool {
        self.queued_bytes > self.queue_bytes_max && self.refusal().is_none()
    }

    /// Notes who waits for room.
    pub(super) fn wait_for_room(&mut self, then: WhenRoom) {
        self.waiting.push(then);
    }

    /// Who waited for the room that there is now.
    pub(super) fn take_waiting(&mut self) -> Vec<WhenRoom> {
        if self.is_full() { Vec::new() } else { std::mem::take(&mut self.waiting) }
    }

    /// A number that no other frame has.
    pub(super) fn take_serial(&mut self) -> u64 {
        self.next_serial += 1;
        self.next_serial - 1
    }

    /// The number that the next frame gets.
    pub(super) fn peek_serial(&self) -> u64 {
        self.next_serial
    }

    /// Takes a frame: laid into the fill buffer where that has room, else into the backlog.
    pub(super) fn admit(&mut self, queued: Queued) {
        self.queued_bytes += queued.bytes();
        self.fill_up();
        if self.backlog.is_empty() && self.fits(&queued) {
            self.lay(queued);
        } else {
            self.backlog.push_back(queued);
        }
    }

    /// Completes with the next write, or at once where there is nothing to wait for but the device.
    pub(super) fn admit_flush(&mut self, done: Completion) {
        // Behind a backlog it would be written too early, so it becomes a frame's companion.
        match self.backlog.back_mut() {
            Some(last) => {
                let earlier = last.done.take();
                last.sync = true;
                last.done = Some(Box::new(move |result| {
                    if let Some(earlier) = earlier {
                        earlier(result.clone());
                    }
                    done(result);
                }));
            }
            None => {
                self.batch.completions.push(done);
                self.batch.sync = true;
            }
        }
    }

    /// Somebody waits for what has been admitted; whether the writer must be woken.
    pub(super) fn urge(&mut self) -> bool {
        self.batch.urgent = true;
        std::mem::replace(&mut self.writer_waits, false)
    }

    /// Whether there is something that the writer should write now.
    pub(super) fn has_work(&self) -> bool {
        self.batch.urgent || !self.backlog.is_empty() || (self.closing && !self.fill.is_empty())
    }

    /// Takes what is to be written next. `None` where no buffer is free: the writer holds them both.
    pub(super) fn take_batch(&mut self) -> Option<(Gather, Batch)> {
        self.fill_up();
        let spare = self.spare.take()?;
        let gather = std::mem::replace(&mut self.fill, spare);
        let next = Batch { chain_before: self.chain, chain_after: self.chain, ..Batch::default() };
        let batch = std::mem::replace(&mut self.batch, next);
        Some((gather, batch))
    }

    /// The write of a batch is over.
    pub(super) fn give_back(&mut self, mut gather: Gather, queued_bytes: usize) {
        gather.clear();
        self.spare = Some(gather);
        self.queued_bytes = self.queued_bytes.saturating_sub(queued_bytes);
    }

    /// All completions that still wait, when the log has failed.
    pub(super) fn take_completions(&mut self) -> Vec<Completion> {
        let mut completions = std::mem::take(&mut self.batch.completions);
        completions.extend(std::mem::take(&mut self.backlog).into_iter().filter_map(|queued| queued.done));
        self.queued_bytes = 0;
        completions
    }

    fn fits(&self, queued: &Queued) -> bool {
        self.fill.is_empty() || self.fill.payload_bytes() + queued.bytes() <= self.write_bytes_max
    }

    /// Lays frames from the backlog into the fill buffer while it has room.
    pub(super) fn fill_up(&mut self) {
        while self.backlog.front().is_some_and(|queued| self.fits(queued)) {
            if let Some(queued) = self.backlog.pop_front() {
                self.lay(queued);
                self.batch.urgent = true;
            }
        }
    }

    fn lay(&mut self, queued: Queued) {
        let bytes = queued.bytes();
        let header = FrameHeader {
            payload_bytes: u32::try_from(queued.payload.len()).unwrap_or(u32::MAX),
            kind: queued.kind,
            shard: queued.shard,
            id: queued.id,
            previous_crc: self.chain,
        };
        let (place, crc) = self.fill.frame(&header, queued.payload.pieces().iter().map(|piece| &**piece));
        self.chain = crc;
        let batch = &mut self.batch;
        batch.chain_after = crc;
        batch.queued_bytes += bytes;
        batch.sync |= queued.sync;
        batch.completions.extend(queued.done);
        batch.freed.merge(queued.freed);
        match queued.kind {
            FrameKind::Entry | FrameKind::Carried => batch.entries.push(BatchEntry {
                shard: queued.shard,
                index: queued.id.index.get(),
                serial: queued.serial,
                from: queued.from,
                place,
            }),
            FrameKind::Close => batch.closes = true,
            FrameKind::Release => batch.release = Some(queued.id.index.get()),
            kind => batch.notes.push(Note {
                kind,
                shard: queued.shard,
                id: queued.id,
                payload: queued.payload.to_bytes(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn entry(bytes: usize) -> Queued {
        Queued::new(FrameKind::Entry, ShardId::new(1), NO_ENTRY, Bytes::from(vec![0; bytes]).into())
    }

    fn queue() -> SharedQueue {
        SharedQueue::new(&WalConfig { write_bytes_max: 1000, ..WalConfig::new("wal") }, 0)
    }

    #[test]
    fn what_does_not_fit_a_write_waits_for_the_next_in_order() {
        let shared = queue();
        let mut queue = shared.queue.lock();
        for _ in 0..3 {
            queue.admit(entry(600));
        }
        queue.admit(entry(10));
        queue.urge();
        let mut sizes = Vec::new();
        while queue.has_work() {
            let (gather, batch) = queue.take_batch().unwrap();
            sizes.push(batch.entries.len());
            let bytes = batch.queued_bytes;
            queue.give_back(gather, bytes);
        }
        assert_eq!(sizes, [1, 1, 2]);
        assert_eq!(queue.queued_bytes, 0);
    }

    #[test]
    fn a_frame_larger_than_a_write_goes_alone() {
        let shared = queue();
        let mut queue = shared.queue.lock();
        queue.admit(entry(10));
        queue.admit(entry(5000));
        queue.urge();
        let (gather, batch) = queue.take_batch().unwrap();
        assert_eq!((batch.entries.len(), gather.blocks()), (1, 1));
        assert!(queue.take_batch().is_none(), "both buffers are out");
        queue.give_back(gather, batch.queued_bytes);
        let (gather, batch) = queue.take_batch().unwrap();
        assert_eq!((batch.entries.len(), gather.blocks()), (1, 2));
    }

    #[test]
    fn lazy_frames_make_no_work() {
        let shared = queue();
        let mut queue = shared.queue.lock();
        queue.admit(entry(10));
        assert!(!queue.has_work());
        queue.closing = true;
        assert!(queue.has_work());
    }
}
