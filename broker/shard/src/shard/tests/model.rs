//! What a shard should do, as simply as it can be said: lists and maps, no sharing, no layers, no disk.

use std::collections::BTreeMap;

use bytes::Bytes;
use tidemill_protocol::record_batch::stored_prefix;
use tidemill_protocol::{LeaderEpoch, Offset, PartitionId, TopicPartition};

use super::world::*;
use crate::*;

pub(super) const STATE_BYTES_MAX: u64 = 400;
pub(super) const OUTBOX_BYTES_MAX: u64 = 300;
const EPOCH: LeaderEpoch = LeaderEpoch::new(3);

#[derive(Default, Clone)]
pub(super) struct ModelPartition {
    /// Base offset, count, batch as sent.
    pub(super) batches: Vec<(i64, i64, Bytes)>,
    pub(super) log_start: i64,
    pub(super) log_end: i64,
    /// By producer: every batch as (sequence, count, base offset), in order.
    pub(super) sequences: BTreeMap<i64, Vec<(i32, i32, i64)>>,
}

impl ModelPartition {
    fn put(&mut self, batch: &Bytes, count: u32) -> i64 {
        let base = self.log_end;
        self.batches.push((base, i64::from(count), batch.clone()));
        self.log_end += i64::from(count);
        base
    }

    pub(super) fn next_sequence(&self, producer: i64) -> i32 {
        self.sequences
            .get(&producer)
            .and_then(|sent| sent.last())
            .map_or(0, |(first, count, _)| first + count)
    }

    /// What a reader gets who reads everything.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let live = self.batches.iter().filter(|(base, count, _)| base + count > self.log_start);
        live.flat_map(|(base, _, batch)| {
            let body = &batch[16..];
            [&stored_prefix(Offset::new(*base), body.len(), EPOCH)[..], body].concat()
        })
        .collect()
    }
}

#[derive(Default)]
pub(super) struct ModelTask {
    pub(super) position: i64,
    pub(super) state: BTreeMap<Bytes, (Bytes, Option<i64>)>,
    pub(super) timers: BTreeMap<Bytes, i64>,
}

impl ModelTask {
    pub(super) fn bytes(&self) -> u64 {
        let state: usize = self.state.iter().map(|(key, (value, _))| key.len() + value.len() + 32).sum();
        let timers: usize = self.timers.keys().map(|key| key.len() + 32).sum();
        (state + timers) as u64
    }
}

/// Where the parts of a routed batch went.
type Answer = Vec<(PartitionId, Offset, u32)>;

#[derive(Default)]
pub(super) struct Model {
    pub(super) partitions: BTreeMap<TopicPartition, ModelPartition>,
    /// By producer: the answers to its routed batches.
    pub(super) routed: BTreeMap<i64, Vec<Answer>>,
    pub(super) tasks: BTreeMap<u32, ModelTask>,
    /// By task and target: all items ever emitted, and how many are delivered.
    pub(super) outboxes: BTreeMap<(u32, TopicPartition), (Vec<Bytes>, usize)>,
    pub(super) inbox: u64,
    pub(super) now: i64,
}

/// The number of records that the test's own batches say they have.
pub(super) fn count_of(batch: &Bytes) -> u32 {
    u32::from_be_bytes(batch[57..61].try_into().unwrap())
}

fn producer_of(batch: &Bytes) -> (i64, i32) {
    (
        i64::from_be_bytes(batch[43..51].try_into().unwrap()),
        i32::from_be_bytes(batch[53..57].try_into().unwrap()),
    )
}

impl Model {
    pub(super) fn apply(&mut self, unit: &Unit) -> UnitResult {
        match unit {
            Unit::Append { partition, batch, .. } => self.append(*partition, batch),
            Unit::RoutedAppend(routed) => self.routed(routed),
            Unit::Progress(progress) => self.progress(progress),
            Unit::Deliver { stream, number, batch } => match *number {
                number if number <= self.inbox => UnitResult::Delivered { last: self.inbox },
                number if number == self.inbox + 1 => {
                    self.inbox += 1;
                    self.partitions.get_mut(&stream.target).unwrap().put(batch, count_of(batch));
                    UnitResult::Delivered { last: number }
                }
                _ => UnitResult::OutOfOrder { last: self.inbox },
            },
            Unit::Delivered { stream, up_to } => {
                let outbox = self.outboxes.get_mut(&(stream.source.get(), stream.target));
                match outbox.filter(|(items, _)| items.len() as u64 >= *up_to) {
                    Some((_, delivered)) => {
                        *delivered = (*delivered).max(usize::try_from(*up_to).unwrap());
                        UnitResult::Done
                    }
                    None => UnitResult::Refused(UnitError::UnknownOutboxItem { up_to: *up_to }),
                }
            }
            Unit::AdvanceLogStart { partition, offset } => {
                let known = self.partitions.get_mut(partition).unwrap();
                known.log_start = known.log_start.max(offset.get());
                UnitResult::LogStart { offset: Offset::new(known.log_start) }
            }
            Unit::Tick => {
                let now = self.now;
                for task in self.tasks.values_mut() {
                    task.state.retain(|_, (_, expires)| expires.is_none_or(|expires| expires > now));
                }
                UnitResult::Done
            }
            other => panic!("the model does not know {other:?}"),
        }
    }

    fn append(&mut self, id: TopicPartition, batch: &Bytes) -> UnitResult {
        let partition = self.partitions.get_mut(&id).unwrap();
        let count = count_of(batch);
        let (producer, sequence) = producer_of(batch);
        let log_start = Offset::new(partition.log_start);
        let appended = |base: i64, duplicate| UnitResult::Appended {
            base_offset: Offset::new(base),
            log_append_time: None,
            log_start,
            duplicate,
        };
        if producer < 0 {
            return appended(partition.put(batch, count), false);
        }
        let next = partition.next_sequence(producer);
        if sequence == next {
            let base = partition.put(batch, count);
            let sent = partition.sequences.entry(producer).or_default();
            sent.push((sequence, i32::try_from(count).unwrap(), base));
            return appended(base, false);
        }
        let Some(sent) = partition.sequences.get(&producer) else {
            return UnitResult::Refused(UnitError::UnknownProducer(tidemill_protocol::ProducerId::new(
                producer,
            )));
        };
        let same =
            sent.iter().find(|(first, of, _)| (*first, *of) == (sequence, i32::try_from(count).unwrap()));
        match same {
            Some((_, _, base)) => appended(*base, true),
            None => UnitResult::Refused(UnitError::OutOfOrderSequence {
                expected: tidemill_protocol::Sequence::new(next),
                got: tidemill_protocol::Sequence::new(sequence),
            }),
        }
    }

    fn routed(&mut self, routed: &RoutedAppend) -> UnitResult {
        let answers = self.routed.entry(routed.producer.get()).or_default();
        let (got, expected) = (routed.topic_sequence, answers.len() as u64);
        if got > expected {
            let error = if expected == 0 {
                self.routed.remove(&routed.producer.get());
                UnitError::UnknownProducer(routed.producer)
            } else {
                UnitError::OutOfOrderTopicSequence { expected, got }
            };
            return UnitResult::Refused(error);
        }
        if let Some(placements) = answers.get(usize::try_from(got).unwrap()) {
            return UnitResult::RoutedAppended { placements: placements.clone(), duplicate: true };
        }
        let mut placements = Vec::new();
        for (number, batch) in &routed.batches {
            let partition = self.partitions.get_mut(&TopicPartition::new(routed.topic, *number)).unwrap();
            let base = partition.put(batch, count_of(batch));
            placements.push((*number, Offset::new(base), count_of(batch)));
        }
        answers.push(placements.clone());
        UnitResult::RoutedAppended { placements, duplicate: false }
    }

    fn progress(&mut self, progress: &Progress) -> UnitResult {
        let number = progress.partition.get();
        let task = &self.tasks[&number];
        let refused = UnitResult::ProgressRefused;
        for step in &progress.positions {
            if step.expected.get() != task.position {
                let expected = Offset::new(task.position);
                return refused(ProgressRefusal::WrongPosition { source_partition: step.source, expected });
            }
        }
        let mut timers = task.timers.clone();
        for (key, time) in &progress.fired {
            if timers.remove(key) != Some(time.get()) || time.get() > self.now {
                return refused(ProgressRefusal::WrongTimer { key: key.clone() });
            }
        }
        for write in &progress.timers {
            match write.at {
                Some(time) => timers.insert(write.key.clone(), time.get()),
                None => timers.remove(&write.key),
            };
        }
        let mut state = task.state.clone();
        for write in &progress.state {
            match &write.value {
                Some(value) => {
                    state.insert(write.key.clone(), (value.clone(), write.expires_at.map(|at| at.get())))
                }
                None => state.remove(&write.key),
            };
        }
        let position = progress.positions.last().map_or(task.position, |step| step.next.get());
        let after = ModelTask { position, state, timers };
        if after.bytes() > STATE_BYTES_MAX && after.bytes() > task.bytes() {
            return refused(ProgressRefusal::StateFull { bytes: after.bytes(), limit: STATE_BYTES_MAX });
        }
        let mut outboxes = self.outboxes.clone();
        for output in &progress.outputs {
            if self.partitions.contains_key(&output.target) {
                continue;
            }
            let waiting = |outboxes: &BTreeMap<_, (Vec<Bytes>, usize)>| {
                let (items, delivered) = outboxes.get(&(number, output.target)).cloned().unwrap_or_default();
                items[delivered..].iter().map(Bytes::len).sum::<usize>() as u64
            };
            if waiting(&self.outboxes) > 0
                && waiting(&outboxes) + output.batch.len() as u64 > OUTBOX_BYTES_MAX
            {
                return refused(ProgressRefusal::OutboxFull { target: output.target });
            }
            outboxes.entry((number, output.target)).or_default().0.push(output.batch.clone());
        }
        for output in &progress.outputs {
            if let Some(partition) = self.partitions.get_mut(&output.target) {
                partition.put(&output.batch, count_of(&output.batch));
            }
        }
        self.outboxes = outboxes;
        self.tasks.insert(number, after);
        UnitResult::Progressed
    }
}

/// The model and the shard tell the same.
pub(super) fn assert_agreement(model: &Model, world: &World) {
    for (id, expected) in &model.partitions {
        let view = world.shard.partition(*id).unwrap();
        assert_eq!((view.log_start.get(), view.high_watermark.get()), (expected.log_start, expected.log_end));
        // A segment goes as a whole: what is left begins with the batch that holds the log start.
        assert_eq!(world.read_all(*id), expected.bytes(), "{id}");
    }
    for (number, expected) in &model.tasks {
        let number = PartitionId::new(*number);
        let task = world.shard.task(deployment(9), number).unwrap().unwrap();
        assert_eq!(task.positions[0].1.get(), expected.position);
        assert_eq!(task.state_bytes, expected.bytes());
        let page = world.shard.state_scan(deployment(9), number, b"", None, 1000).unwrap();
        let live = expected.state.iter().filter(|(_, (_, at))| at.is_none_or(|at| at > model.now));
        let live: Vec<_> = live.map(|(key, (value, _))| (key.clone(), value.clone())).collect();
        assert_eq!(page.entries.into_iter().map(|e| (e.key, e.value)).collect::<Vec<_>>(), live);
        let timers = world.shard.due_timers(deployment(9), number, at(i64::MAX), 1000).unwrap();
        let mut set: Vec<_> = expected.timers.iter().map(|(key, time)| (*time, key.clone())).collect();
        set.sort();
        assert_eq!(timers.into_iter().map(|(key, time)| (time.get(), key)).collect::<Vec<_>>(), set);
        assert_eq!(task.next_timer.map(|(time, key)| (time.get(), key)), set.first().cloned());
    }
    let waiting: Vec<_> = model
        .outboxes
        .iter()
        .flat_map(|((task, target), (items, delivered))| {
            let numbered = items.iter().enumerate().skip(*delivered);
            numbered.map(move |(at, batch)| (*task, *target, at as u64 + 1, batch.clone()))
        })
        .collect();
    let mut found: Vec<_> = world.shard.outbox_next(10_000).unwrap();
    found.sort_by_key(|item| (item.stream, item.number));
    let found: Vec<_> = found
        .into_iter()
        .map(|item| (item.stream.source.get(), item.stream.target, item.number, item.batch))
        .collect();
    assert_eq!(found, waiting);
}
