//! What a partition remembers of idempotent producers (KIP-98): the epoch in force and the last batches with their
//! answers, so that a retry gets the original answer.
//!
//! Bounded three ways: batches per producer, bytes per partition, and time: a producer unused for
//! [`PRODUCER_EXPIRY_MS`] of log time counts as unknown, whether swept or not.
//!
//! Who is forgotten can send a batch twice, so nobody may make another's state go: at the bound of bytes only those make room
//! that were unused for [`PRODUCER_IDLE_MIN_MS`], the longest unused first. Where there are none, who is new has to wait.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tidemill_protocol::{Offset, ProducerEpoch, ProducerId, Sequence, Timestamp};

use crate::append::{AppendCheck, AppendError, ProducerBatch};

/// Batches that a producer may have in flight to one partition: a broker allows no more on a produce stream.
pub const BATCHES_IN_FLIGHT_MAX: usize = 64;

/// Batches whose answers are remembered: those that may be in flight, and a margin.
pub const BATCHES_REMEMBERED: usize = BATCHES_IN_FLIGHT_MAX + 8;

/// A producer unused for so long by the log's time is unknown.
pub const PRODUCER_EXPIRY_MS: i64 = 7 * 24 * 60 * 60 * 1000;

/// A producer used since then by the log's time is never forgotten: longer than anyone tries to deliver a batch.
pub const PRODUCER_IDLE_MIN_MS: i64 = 10 * 60 * 1000;

/// Bytes of producer state of one partition; beyond it idle producers are forgotten, and without such no new one is taken.
pub const PRODUCERS_BYTES_MAX: usize = 4 << 20;

/// Up to which the state of producers that are known already may grow with what they have in flight.
pub const KNOWN_PRODUCERS_BYTES_MAX: usize = 4 * PRODUCERS_BYTES_MAX;

const PRODUCER_BYTES: usize = 96;
const BATCH_BYTES: usize = 32;

/// A batch that was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RememberedBatch {
    /// Sequence of its first record.
    pub base_sequence: Sequence,
    /// Sequence of its last record.
    pub last_sequence: Sequence,
    /// Where it stands; [`Offset::UNASSIGNED`] where it was refused.
    pub base_offset: Offset,
    /// The log's time of the answer.
    pub answered_at: Timestamp,
}

/// One producer in one partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProducerState {
    /// The epoch in force.
    pub epoch: ProducerEpoch,
    /// The last batches of this epoch, oldest first; never empty.
    pub batches: VecDeque<RememberedBatch>,
}

impl ProducerState {
    fn last_used(&self) -> Timestamp {
        self.batches.back().map_or(Timestamp::new(i64::MIN), |batch| batch.answered_at)
    }

    fn expected(&self) -> Sequence {
        self.batches.back().map_or(Sequence::new(0), |batch| batch.last_sequence.plus(1))
    }

    fn bytes(&self) -> usize {
        PRODUCER_BYTES + self.batches.len() * BATCH_BYTES
    }

    fn expired(&self, now: Timestamp) -> bool {
        self.last_used().plus_ms(PRODUCER_EXPIRY_MS) < now
    }

    /// What remembering one more batch takes.
    fn growth(&self) -> usize {
        if self.batches.len() < BATCHES_REMEMBERED { BATCH_BYTES } else { 0 }
    }
}

#[derive(Debug, Clone)]
struct Slot {
    state: Arc<ProducerState>,
    changed: bool,
}

/// The producers of one partition.
#[derive(Debug, Clone, Default)]
pub(crate) struct Producers {
    slots: BTreeMap<ProducerId, Slot>,
    /// The same producers, the longest unused first.
    by_use: BTreeSet<(Timestamp, ProducerId)>,
    bytes: usize,
    changed: Vec<ProducerId>,
}

impl Producers {
    pub(crate) fn check(
        &self,
        batch: &ProducerBatch,
        count: u32,
        now: Timestamp,
    ) -> Result<AppendCheck, AppendError> {
        let known = self.slots.get(&batch.id).map(|slot| &*slot.state).filter(|state| !state.expired(now));
        let Some(state) = known else {
            if batch.base_sequence != Sequence::new(0) {
                return Err(AppendError::UnknownProducer(batch.id));
            }
            return self.room(batch.id, PRODUCER_BYTES + BATCH_BYTES, PRODUCERS_BYTES_MAX, now);
        };
        if batch.epoch < state.epoch {
            return Err(AppendError::ProducerFenced { producer: batch.id, current: state.epoch });
        }
        let expected = if batch.epoch > state.epoch { Sequence::new(0) } else { state.expected() };
        if batch.base_sequence == expected {
            return self.room(batch.id, state.growth(), KNOWN_PRODUCERS_BYTES_MAX, now);
        }
        if batch.epoch == state.epoch {
            let last = batch.last_sequence(count);
            let same =
                |b: &&RememberedBatch| b.base_sequence == batch.base_sequence && b.last_sequence == last;
            if let Some(found) = state.batches.iter().rev().find(same) {
                let base_offset = Some(found.base_offset).filter(|offset| *offset != Offset::UNASSIGNED);
                return Ok(AppendCheck::Duplicate { base_offset, answered_at: found.answered_at });
            }
        }
        Err(AppendError::OutOfOrderSequence { expected, got: batch.base_sequence })
    }

    /// Whether `bytes` more can be remembered of a producer: within `limit`, or in the place of an idle one.
    fn room(
        &self,
        id: ProducerId,
        bytes: usize,
        limit: usize,
        now: Timestamp,
    ) -> Result<AppendCheck, AppendError> {
        if bytes == 0 || self.bytes + bytes <= limit || self.longest_idle(id, now).is_some() {
            return Ok(AppendCheck::New);
        }
        Err(AppendError::TooManyProducers { bytes: self.bytes })
    }

    /// Who may be forgotten, the one unused for longest; never `keep`.
    fn longest_idle(&self, keep: ProducerId, now: Timestamp) -> Option<ProducerId> {
        let (used, id) = self.by_use.iter().find(|(_, id)| *id != keep)?;
        (used.plus_ms(PRODUCER_IDLE_MIN_MS) < now).then_some(*id)
    }

    /// Remembers the answer to a batch that [`Self::check`] found new.
    pub(crate) fn remember(
        &mut self,
        batch: &ProducerBatch,
        count: u32,
        base_offset: Offset,
        now: Timestamp,
    ) {
        let remembered = RememberedBatch {
            base_sequence: batch.base_sequence,
            last_sequence: batch.last_sequence(count),
            base_offset,
            answered_at: now,
        };
        let slot = self.slots.entry(batch.id).or_insert_with(|| Slot {
            state: Arc::new(ProducerState { epoch: batch.epoch, batches: VecDeque::new() }),
            changed: false,
        });
        let is_new = slot.state.batches.is_empty();
        let bytes_before = if is_new { 0 } else { slot.state.bytes() };
        let used_before = slot.state.last_used();
        let state = Arc::make_mut(&mut slot.state);
        if state.epoch != batch.epoch || state.expired(now) {
            state.epoch = batch.epoch;
            state.batches.clear();
        }
        if state.batches.len() >= BATCHES_REMEMBERED {
            state.batches.pop_front();
        }
        state.batches.push_back(remembered);
        self.bytes = self.bytes - bytes_before + state.bytes();
        if !is_new {
            self.by_use.remove(&(used_before, batch.id));
        }
        self.by_use.insert((now, batch.id));
        if !slot.changed {
            slot.changed = true;
            self.changed.push(batch.id);
        }
        while self.bytes > PRODUCERS_BYTES_MAX
            && let Some(idle) = self.longest_idle(batch.id, now)
        {
            self.forget(idle);
        }
    }

    pub(crate) fn sweep(&mut self, now: Timestamp) {
        let expired = |(id, slot): (&ProducerId, &Slot)| slot.state.expired(now).then_some(*id);
        let gone: Vec<_> = self.slots.iter().filter_map(expired).collect();
        for id in gone {
            self.forget(id);
        }
    }

    fn forget(&mut self, id: ProducerId) {
        if let Some(slot) = self.slots.remove(&id) {
            self.bytes -= slot.state.bytes();
            self.by_use.remove(&(slot.state.last_used(), id));
            if !slot.changed {
                self.changed.push(id);
            }
        }
    }

    pub(crate) fn take_changes(&mut self) -> Vec<(ProducerId, Option<Arc<ProducerState>>)> {
        let mut changed = std::mem::take(&mut self.changed);
        changed.sort_unstable();
        changed.dedup();
        let take = |id| {
            let slot = self.slots.get_mut(&id).map(|slot| {
                slot.changed = false;
                Arc::clone(&slot.state)
            });
            (id, slot)
        };
        changed.into_iter().map(take).collect()
    }

    pub(crate) fn restore(&mut self, id: ProducerId, state: ProducerState) {
        let (bytes, used) = (state.bytes(), state.last_used());
        if let Some(replaced) = self.slots.insert(id, Slot { state: Arc::new(state), changed: false }) {
            self.bytes -= replaced.state.bytes();
            self.by_use.remove(&(replaced.state.last_used(), id));
        }
        self.bytes += bytes;
        self.by_use.insert((used, id));
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (ProducerId, &ProducerState)> {
        self.slots.iter().map(|(id, slot)| (*id, &*slot.state))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(id: i64, epoch: i16, sequence: i32) -> ProducerBatch {
        ProducerBatch {
            id: ProducerId::new(id),
            epoch: ProducerEpoch::new(epoch),
            base_sequence: Sequence::new(sequence),
        }
    }

    fn at(ms: i64) -> Timestamp {
        Timestamp::new(ms)
    }

    /// Takes a batch as a partition does.
    fn take(producers: &mut Producers, batch: &ProducerBatch, now: i64) -> Result<AppendCheck, AppendError> {
        let checked = producers.check(batch, 1, at(now))?;
        if checked == AppendCheck::New {
            producers.remember(batch, 1, Offset::new(now), at(now));
        }
        assert!(producers.bytes <= KNOWN_PRODUCERS_BYTES_MAX);
        assert_eq!(producers.by_use.len(), producers.slots.len());
        Ok(checked)
    }

    fn too_many(taken: Result<AppendCheck, AppendError>) -> bool {
        matches!(taken, Err(AppendError::TooManyProducers { .. }))
    }

    #[test]
    fn strangers_without_number_make_nobody_forgotten_who_may_still_try_again() {
        let mut producers = Producers::default();
        let first = batch(0, 0, 0);
        assert_eq!(take(&mut producers, &first, 0), Ok(AppendCheck::New));
        let taken =
            (1..100_000).take_while(|id| !too_many(take(&mut producers, &batch(*id, 0, 0), 1))).count();
        assert_eq!(taken, PRODUCERS_BYTES_MAX / (PRODUCER_BYTES + BATCH_BYTES) - 1);
        // The acknowledgement was lost: the retry must get the first answer, not be written again.
        let duplicate = AppendCheck::Duplicate { base_offset: Some(Offset::ZERO), answered_at: at(0) };
        assert_eq!(take(&mut producers, &first, PRODUCER_IDLE_MIN_MS), Ok(duplicate));
        assert!(too_many(take(&mut producers, &batch(200_000, 0, 0), PRODUCER_IDLE_MIN_MS)));
        assert_eq!(producers.take_changes().len(), taken + 1, "a refusal changes nothing");
        // Who is known goes on, and a little later the longest unused makes room, for one at a time.
        assert_eq!(take(&mut producers, &batch(1, 0, 1), PRODUCER_IDLE_MIN_MS), Ok(AppendCheck::New));
        assert_eq!(
            take(&mut producers, &batch(200_000, 0, 0), PRODUCER_IDLE_MIN_MS + 1),
            Ok(AppendCheck::New)
        );
        assert!(!producers.slots.contains_key(&ProducerId::new(0)));
        assert!(too_many(take(&mut producers, &batch(200_001, 0, 0), PRODUCER_IDLE_MIN_MS + 1)));
        assert!(
            producers.take_changes().contains(&(ProducerId::new(0), None)),
            "who is forgotten is a change too"
        );
        let late = 3 * PRODUCER_IDLE_MIN_MS;
        for id in 300_000..400_000 {
            if too_many(take(&mut producers, &batch(id, 0, 0), late)) {
                break;
            }
        }
        assert_eq!(producers.bytes, producers.slots.values().map(|s| s.state.bytes()).sum::<usize>());
        assert!(producers.bytes <= PRODUCERS_BYTES_MAX && !producers.slots.contains_key(&ProducerId::new(1)));
    }

    #[test]
    fn what_known_producers_have_in_flight_is_bounded_too() {
        let mut producers = Producers::default();
        let ids = 1..=i64::try_from(PRODUCERS_BYTES_MAX / (PRODUCER_BYTES + BATCH_BYTES)).unwrap();
        let mut refused = None;
        'full: for sequence in 0.. {
            for id in ids.clone() {
                let next = batch(id, 0, sequence);
                if too_many(take(&mut producers, &next, 0)) {
                    refused = Some(next);
                    break 'full;
                }
            }
        }
        let refused = refused.expect("somewhere it ends");
        assert!(producers.bytes > KNOWN_PRODUCERS_BYTES_MAX - BATCH_BYTES);
        // Nothing changed: it is taken once others have been idle for long enough.
        assert_eq!(take(&mut producers, &refused, PRODUCER_IDLE_MIN_MS + 1), Ok(AppendCheck::New));
    }

    #[test]
    fn an_expired_producer_is_unknown_before_and_after_the_sweep() {
        let mut producers = Producers::default();
        producers.remember(&batch(1, 3, 0), 5, Offset::ZERO, at(0));
        let next = batch(1, 3, 5);
        assert_eq!(producers.check(&next, 1, at(PRODUCER_EXPIRY_MS)), Ok(AppendCheck::New));
        let late = at(PRODUCER_EXPIRY_MS + 1);
        let unknown = Err(AppendError::UnknownProducer(ProducerId::new(1)));
        assert_eq!(producers.check(&next, 1, late), unknown);
        // An older epoch may come back with sequence 0: nothing is left that would fence it.
        assert_eq!(producers.check(&batch(1, 0, 0), 1, late), Ok(AppendCheck::New));
        producers.sweep(late);
        assert_eq!(producers.iter().count(), 0);
        assert_eq!(producers.bytes, 0);
        assert_eq!(producers.check(&next, 1, late), unknown);
    }

    #[test]
    fn an_answer_is_remembered_for_as_many_as_may_be_in_flight() {
        let mut producers = Producers::default();
        for n in 0..200 {
            producers.remember(&batch(1, 0, n * 10), 10, Offset::new(i64::from(n) * 10), at(0));
        }
        for n in (200 - i32::try_from(BATCHES_REMEMBERED).unwrap())..200 {
            let base_offset = Some(Offset::new(i64::from(n) * 10));
            assert_eq!(
                producers.check(&batch(1, 0, n * 10), 10, at(1)),
                Ok(AppendCheck::Duplicate { base_offset, answered_at: at(0) })
            );
        }
        assert!(matches!(
            producers.check(&batch(1, 0, 0), 10, at(1)),
            Err(AppendError::OutOfOrderSequence { .. })
        ));
        // The same first sequence with another number of records is another batch.
        assert!(matches!(
            producers.check(&batch(1, 0, 1990), 9, at(1)),
            Err(AppendError::OutOfOrderSequence { .. })
        ));
    }
}
