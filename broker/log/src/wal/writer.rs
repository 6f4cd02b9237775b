//! The one worker that writes.
//!
//! Each turn takes whatever was queued while the last write was under way, writes it with one call, syncs once, and
//! runs the completions. The first failure poisons the log: every pending and later operation gets the error, and
//! nothing is tried again, because after a failed fsync nobody knows what the device holds.

use std::collections::BTreeMap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tidemill_protocol::ShardId;

use super::block::{BLOCK_BYTES, Role};
use super::config::{Durability, WalConfig};
use super::error::WalError;
use super::frame::{FrameKind, Position};
use super::gather::{Gather, SealAs};
use super::header::{PreviousSegment, SegmentHeader};
use super::notes::Notes;
use super::pool::Pool;
use super::queue::{Batch, Completion, Queued, SharedQueue, WhenRoom};
use super::recovery::Recovered;
use super::scan::SegmentFile;
use super::state::{Freed, LiveSegment, SegmentPlace, State};
use crate::background::{Background, Step, Worker};

/// What callers, the writer and readers share.
pub(super) struct Shared {
    pub(super) queue: SharedQueue,
    pub(super) state: Mutex<State>,
    pub(super) pool: Arc<Pool>,
}

/// The writer's own knowledge.
pub(super) struct Writer {
    shared: Arc<Shared>,
    background: Arc<dyn Background>,
    flush_interval: Option<Duration>,
    boot_id: Option<[u8; 16]>,
    salts: StdRng,
    active: Option<Active>,
    previous: Option<PreviousSegment>,
    next_number: u64,
    next_sequence: u64,
    /// Every block below is on the device.
    flushed: u64,
    /// Segments below are released, durably, and such that this is at least queued to be.
    first_live: u64,
    release_queued: u64,
    cut_off: Vec<SegmentFile>,
    notes: Notes,
    unsynced: Unsynced,
    /// Between two steps.
    in_hand: Option<Box<InHand>>,
}

struct Active {
    file: SegmentFile,
    header: SegmentHeader,
    next_block: u32,
}

/// What becomes true when the written blocks are flushed.
#[derive(Default)]
struct Unsynced {
    since: Option<Instant>,
    /// Per shard the last entry written: its index and serial number.
    ends: BTreeMap<ShardId, (u64, u64)>,
    freed: Freed,
    release: Option<u64>,
}

enum Turn {
    Write(Box<InHand>),
    Flush,
    Close,
    Wait { until: Option<Instant> },
}

/// A batch on its way. Each part of it is a step of its own, so that whoever drives the writer can let time pass, or the
/// power go, between the write, the sync and the completions.
struct InHand {
    gather: Gather,
    waiting: Waiting,
    sync: bool,
    closes: bool,
    queued_bytes: usize,
    next: Part,
}

enum Part {
    Write(Batch),
    Sync,
    Complete,
}

impl InHand {
    fn new(gather: Gather, mut batch: Batch) -> Self {
        Self {
            gather,
            waiting: Waiting(std::mem::take(&mut batch.completions)),
            sync: batch.sync,
            closes: batch.closes,
            queued_bytes: batch.queued_bytes,
            next: Part::Write(batch),
        }
    }
}

type Failure = (&'static str, io::Error);

impl Writer {
    pub(super) fn new(shared: Arc<Shared>, config: &WalConfig, recovered: Recovered) -> Self {
        let notes = Notes::of(&shared.state.lock());
        let end = recovered.previous.map_or(Position::block(0), |previous| previous.end);
        Self {
            shared,
            background: Arc::clone(&config.background),
            flush_interval: match config.durability {
                Durability::Fsync => None,
                Durability::Replicated { flush_interval } => Some(flush_interval),
            },
            boot_id: config.boot_id,
            salts: StdRng::seed_from_u64(config.salt_seed.unwrap_or_else(random_seed)),
            active: None,
            previous: recovered.previous,
            next_number: recovered.next_number,
            next_sequence: recovered.next_sequence,
            flushed: end.sequence + u64::from(end.offset > 0),
            first_live: recovered.first_live,
            release_queued: recovered.first_live,
            cut_off: recovered.cut_off,
            notes,
            unsynced: Unsynced::default(),
            in_hand: None,
        }
    }

    /// Does what is next: a part of the batch in hand, else what the queue has. Without a waker it blocks until there is
    /// something.
    fn turn(&mut self, waker: Option<&Waker>) -> Step {
        let done = match self.in_hand.take() {
            Some(in_hand) => self.go_on(in_hand),
            None => match self.next_turn(waker) {
                Turn::Write(in_hand) => self.go_on(in_hand),
                Turn::Flush => self.flush(),
                Turn::Wait { until } => return Step::Idle { until },
                Turn::Close => {
                    self.shared.pool.close();
                    return Step::Ended;
                }
            },
        };
        let Err((action, source)) = done else { return Step::Worked };
        fail(&self.shared, action, source);
        self.shared.pool.close();
        Step::Ended
    }

    fn next_turn(&mut self, waker: Option<&Waker>) -> Turn {
        let shared = Arc::clone(&self.shared);
        let mut queue = shared.queue.queue.lock();
        loop {
            if queue.has_work()
                && let Some((gather, batch)) = queue.take_batch()
            {
                return Turn::Write(Box::new(InHand::new(gather, batch)));
            }
            if queue.closing {
                if self.active.is_none() {
                    return Turn::Close;
                }
                // Written as the last frame, after which there is no active segment.
                queue.admit(Queued::of_log(FrameKind::Close, 0).sync(true));
                continue;
            }
            let until =
                self.flush_interval.zip(self.unsynced.since).map(|(interval, since)| since + interval);
            queue.writer_waits = true;
            if let Some(waker) = waker {
                if until.is_some_and(|until| until <= self.background.now()) {
                    queue.writer_waits = false;
                    return Turn::Flush;
                }
                queue.waker = Some(waker.clone());
                return Turn::Wait { until };
            }
            match until {
                Some(until) => {
                    let timed_out = shared.queue.work.wait_until(&mut queue, until).timed_out();
                    if timed_out {
                        queue.writer_waits = false;
                        return Turn::Flush;
                    }
                }
                None => shared.queue.work.wait(&mut queue),
            }
            queue.writer_waits = false;
        }
    }

    /// Does the next part of a batch, and keeps what is left of it in hand.
    fn go_on(&mut self, mut in_hand: Box<InHand>) -> Result<(), Failure> {
        let done = match std::mem::replace(&mut in_hand.next, Part::Complete) {
            Part::Write(batch) => {
                in_hand.next = Part::Sync;
                if in_hand.gather.blocks() > 0 { self.write(&mut in_hand.gather, batch) } else { Ok(()) }
            }
            Part::Sync => self.sync(in_hand.sync),
            Part::Complete => {
                self.complete(*in_hand);
                return Ok(());
            }
        };
        if let Err((action, source)) = done {
            let error = poison(&self.shared, action, source);
            in_hand.waiting.complete(&Err(error));
            return Err(("write", io::ErrorKind::Other.into()));
        }
        self.in_hand = Some(in_hand);
        Ok(())
    }

    fn sync(&mut self, sync: bool) -> Result<(), Failure> {
        let is_due = match (self.flush_interval, self.unsynced.since) {
            (Some(interval), Some(since)) => {
                self.background.now().saturating_duration_since(since) >= interval
            }
            (None, Some(_)) => true,
            (_, None) => false,
        };
        if is_due || (sync && self.unsynced.since.is_some()) { self.flush() } else { Ok(()) }
    }

    fn complete(&mut self, in_hand: InHand) {
        let InHand { gather, waiting, closes, queued_bytes, .. } = in_hand;
        waiting.complete(&Ok(()));
        let (is_last, waited) = {
            let mut queue = self.shared.queue.queue.lock();
            queue.give_back(gather, queued_bytes);
            (closes && !queue.has_work(), queue.take_waiting())
        };
        tell(waited);
        if is_last {
            self.active = None;
        }
    }

    fn write(&mut self, gather: &mut Gather, batch: Batch) -> Result<(), Failure> {
        let blocks = u32::try_from(gather.blocks()).unwrap_or(u32::MAX);
        let has_room = |active: &Active| active.header.blocks.saturating_sub(active.next_block) >= blocks;
        if !self.active.as_ref().is_some_and(has_room) {
            self.roll(blocks, batch.chain_before)?;
        }
        let Some(active) = &mut self.active else {
            unreachable!("rolling leaves an active segment");
        };
        let first_sequence = active.header.first_sequence + u64::from(active.next_block);
        let end = gather.end();
        let seal_as = SealAs { first_sequence, flushed: self.flushed, salt: active.header.salt };
        let bytes = gather.seal(&seal_as, |_| Role::Data);
        let offset = u64::from(active.next_block) * BLOCK_BYTES as u64;
        active.file.file.write_all_at(offset, bytes).map_err(|source| ("write", source))?;
        metrics::counter!("tidemill_wal_written_bytes_total").increment(bytes.len() as u64);
        active.next_block += blocks;
        self.next_sequence = first_sequence + u64::from(blocks);
        let end = Position { sequence: first_sequence + u64::from(end.block), offset: end.offset };
        self.previous = Some(PreviousSegment { number: active.header.number, end });
        self.unsynced.since.get_or_insert_with(|| self.background.now());
        self.note_written(first_sequence, batch);
        Ok(())
    }

    fn note_written(&mut self, first_sequence: u64, batch: Batch) {
        let mut state = self.shared.state.lock();
        for entry in &batch.entries {
            let sequence = first_sequence + u64::from(entry.place.block);
            let position = Position { sequence, offset: entry.place.offset };
            match entry.from {
                None => {
                    state.stored(entry.shard, entry.index, entry.serial, position);
                    self.unsynced.ends.insert(entry.shard, (entry.index, entry.serial));
                }
                // Durable where it was; that place is given up once it is durable here.
                Some(from) => {
                    let freed = state.moved(entry.shard, entry.index, from, position);
                    self.unsynced.freed.merge(freed);
                }
            }
        }
        state.enforce_cache_limit();
        batch.notes.into_iter().for_each(|note| self.notes.apply(note));
        self.unsynced.freed.merge(batch.freed);
        self.unsynced.release = self.unsynced.release.max(batch.release);
    }

    /// Makes everything written durable and draws the consequences.
    fn flush(&mut self) -> Result<(), Failure> {
        let Some(active) = &self.active else {
            return Ok(());
        };
        let begin = self.background.now();
        active.file.file.sync_data().map_err(|source| ("fdatasync", source))?;
        let took = self.background.now().saturating_duration_since(begin);
        metrics::histogram!("tidemill_wal_sync_seconds").record(took.as_secs_f64());
        self.flushed = self.next_sequence;
        let Unsynced { ends, freed, release, .. } = std::mem::take(&mut self.unsynced);
        let mut over = std::mem::take(&mut self.cut_off);
        let first_needed = {
            let mut state = self.shared.state.lock();
            for (shard, (index, serial)) in ends {
                if let Some(log) = state.shards.get_mut(&shard) {
                    log.set_flushed(index, serial);
                }
            }
            state.apply_freed(&freed);
            self.first_live = release.unwrap_or(0).max(self.first_live);
            while state.segments.front().is_some_and(|segment| segment.place.number < self.first_live) {
                over.extend(state.segments.pop_front().map(|segment| segment.place.segment_file()));
            }
            state.first_needed()
        };
        if !over.is_empty() {
            self.shared.pool.give_back(over);
        }
        if let Some(first_needed) = first_needed.filter(|needed| *needed > self.release_queued) {
            // Lazily: it rides with the next write.
            self.release_queued = first_needed;
            self.shared.queue.queue.lock().admit(Queued::of_log(FrameKind::Release, first_needed));
        }
        Ok(())
    }

    /// Begins the next segment, with room for a batch of `blocks` whose first frame follows one with crc `chain`.
    fn roll(&mut self, blocks: u32, chain: u32) -> Result<(), Failure> {
        // So that only the active segment ever holds unsynced blocks.
        if self.unsynced.since.is_some() {
            self.flush()?;
        }
        if let Some(old) = self.active.take()
            && !old.file.file.is_direct()
        {
            // Advice: the cache of entries serves readers.
            drop(old.file.file.advise_dont_need(0, 0));
        }
        let file = self.shared.pool.take().map_err(|source| ("making a segment", source))?;
        let mut header = SegmentHeader {
            number: self.next_number,
            first_sequence: self.next_sequence,
            salt: self.salts.random(),
            flushed: self.flushed,
            blocks: file.blocks,
            replicated: self.flush_interval.is_some(),
            boot_id: self.boot_id,
            previous: self.previous,
            chain,
            first_live: self.first_live,
            preamble_blocks: 0,
        };
        let mut gather = self.notes.preamble(header.salt);
        header.preamble_blocks = u32::try_from(gather.blocks()).unwrap_or(u32::MAX);
        let next_block = header.preamble_blocks.saturating_add(1);
        if next_block.saturating_add(blocks) > file.blocks {
            let message = "the shards' votes and notes do not leave room in a segment; raise segment_bytes";
            return Err(("making a segment", io::Error::new(io::ErrorKind::InvalidData, message)));
        }
        let mut first = Gather::new(BLOCK_BYTES);
        first.lone_block(&header.encode());
        let seal_as = |first_sequence| SealAs { first_sequence, flushed: header.flushed, salt: header.salt };
        let bytes = first.seal(&seal_as(header.first_sequence), |_| Role::Header);
        file.file.write_all_at(0, bytes).map_err(|source| ("write", source))?;
        if !gather.is_empty() {
            let bytes = gather.seal(&seal_as(header.first_sequence + 1), |_| Role::Preamble);
            file.file.write_all_at(BLOCK_BYTES as u64, bytes).map_err(|source| ("write", source))?;
        }
        self.next_number += 1;
        let place = SegmentPlace {
            number: header.number,
            path: file.path.clone(),
            file: Arc::clone(&file.file),
            first_sequence: header.first_sequence,
            salt: header.salt,
            blocks: header.blocks,
        };
        let live = LiveSegment { place: Arc::new(place), live: BTreeMap::new() };
        self.shared.state.lock().segments.push_back(live);
        self.active = Some(Active { file, header, next_block });
        Ok(())
    }
}

impl Worker for Writer {
    /// Works until the log is closed or fails.
    fn run(&mut self) {
        // Even a panic must not leave callers waiting for ever.
        let mut guard = PoisonOnPanic { shared: Arc::clone(&self.shared), panicking: true };
        while self.turn(None) != Step::Ended {}
        guard.panicking = false;
    }

    fn step(&mut self, waker: &Waker) -> Step {
        self.turn(Some(waker))
    }
}

#[allow(
    clippy::disallowed_methods,
    reason = "salts tell lives apart: only the configuration knows better, in tests"
)]
fn random_seed() -> u64 {
    rand::random()
}

/// Remembers the failure for everyone who comes later. The error to hand out.
fn poison(shared: &Shared, action: &'static str, source: io::Error) -> WalError {
    let error = WalError::Poisoned { action, source: Arc::new(source) };
    let mut queue = shared.queue.queue.lock();
    if let Some(first) = &queue.poison {
        return first.clone();
    }
    tracing::error!(%error, "no further writes are acknowledged");
    queue.poison = Some(error.clone());
    error
}

/// Poisons the log and lets everyone who waits know.
fn fail(shared: &Shared, action: &'static str, source: io::Error) {
    let error = poison(shared, action, source);
    let (waiting, waited) = {
        let mut queue = shared.queue.queue.lock();
        (Waiting(queue.take_completions()), queue.take_waiting())
    };
    waiting.complete(&Err(error));
    tell(waited);
}

/// Completions that must be called, come what may.
struct Waiting(Vec<Completion>);

impl Waiting {
    fn complete(mut self, result: &Result<(), WalError>) {
        for completion in std::mem::take(&mut self.0) {
            call(completion, result.clone());
        }
    }
}

impl Drop for Waiting {
    /// Only where the writer panics on the way.
    fn drop(&mut self) {
        for completion in std::mem::take(&mut self.0) {
            call(completion, Err(WalError::Poisoned { action: PANICKED, source: Arc::new(panicked()) }));
        }
    }
}

/// A completion is foreign code: a panic in it is its own affair.
fn call(completion: Completion, result: Result<(), WalError>) {
    if catch_unwind(AssertUnwindSafe(|| completion(result))).is_err() {
        tracing::error!("a completion of the write-ahead log panicked");
    }
}

/// Those who waited for room learn that there is some, or never will be.
fn tell(waited: Vec<WhenRoom>) {
    for then in waited {
        if catch_unwind(AssertUnwindSafe(then)).is_err() {
            tracing::error!("whoever waited for room in the write-ahead log panicked");
        }
    }
}

const PANICKED: &str = "the writer thread";

fn panicked() -> io::Error {
    io::Error::other("it panicked; please report this")
}

struct PoisonOnPanic {
    shared: Arc<Shared>,
    panicking: bool,
}

impl Drop for PoisonOnPanic {
    fn drop(&mut self) {
        if self.panicking {
            fail(&self.shared, PANICKED, panicked());
            self.shared.pool.close();
        }
    }
}
