//! A commit log as simple as can be, its clients, and what goes wrong between them.

use std::collections::{BTreeMap, VecDeque};

use tidemill_checker::{Event, Input, RecordId, Replay, Run, SealedSegment, Span, TaskInput, TopicPartition};

/// Topic `t` has two partitions and no transactions; `x` has one, with transactions only.
const PARTITIONS: [(&str, u32); 3] = [("t", 0), ("t", 1), ("x", 0)];
const X: usize = 2;
/// Two that choose partitions, one with transactions, and one that leaves the choice to the log.
const TRANSACTIONAL: u32 = 2;
const ROUTING: u32 = 3;
const BROKERS: [u32; 3] = [1, 2, 3];
const SEGMENT_RECORDS: u64 = 16;

/// What the task does: it sends on what has an even sequence, and counts.
#[derive(Default)]
pub(crate) struct Evens {
    all: u64,
}

impl Replay for Evens {
    fn apply(&mut self, input: &Input<'_>) -> Vec<(TopicPartition, String)> {
        self.all += 1;
        let is_even = input.id.sequence.is_multiple_of(2);
        is_even.then(|| (TopicPartition::new("out", 0), format!("{}", input.id))).into_iter().collect()
    }

    fn state(&self) -> BTreeMap<String, String> {
        [("all".to_owned(), self.all.to_string())].into()
    }
}

/// What the filter of the consumer "filtered" passes.
pub(crate) fn passes(id: RecordId) -> bool {
    id.sequence.is_multiple_of(2)
}

#[derive(Default)]
struct Partition {
    /// Records, with whether readers of committed ones see them; and markers of transactions.
    log: Vec<Option<(RecordId, bool)>>,
    start: u64,
}

#[derive(Default)]
struct Producer {
    next: u64,
    /// Sent, without an answer: the record, its partition, and where it lies.
    open: VecDeque<(RecordId, usize, Option<u64>)>,
}

struct Consumer {
    process: &'static str,
    partitions: &'static [usize],
    is_filtered: bool,
    is_committed: bool,
    next: BTreeMap<usize, u64>,
}

struct World {
    events: Vec<Event>,
    partitions: Vec<Partition>,
    producers: Vec<Producer>,
    consumers: Vec<Consumer>,
    /// The open transaction, with its first offset.
    transaction: Option<(u64, u64)>,
    transactions: u64,
    position: Option<u64>,
}

/// The history of an execution that these choices lead to.
pub(crate) fn execute(steps: &[[u8; 4]]) -> Vec<Event> {
    let mut world = World::new();
    for step in steps {
        world.step(*step);
    }
    world.settle();
    world.events
}

fn name(partition: usize) -> TopicPartition {
    TopicPartition::new(PARTITIONS[partition].0, PARTITIONS[partition].1)
}

impl World {
    fn new() -> Self {
        let consumer = |process, partitions, is_filtered, is_committed| Consumer {
            process,
            partitions,
            is_filtered,
            is_committed,
            next: BTreeMap::new(),
        };
        let mut world = Self {
            events: Vec::new(),
            partitions: (0..3).map(|_| Partition::default()).collect(),
            producers: (0..4).map(|_| Producer::default()).collect(),
            consumers: vec![
                consumer("plain", &[0, 1], false, false),
                consumer("filtered", &[0, 1], true, false),
                consumer("committed", &[X], false, true),
            ],
            transaction: None,
            transactions: 0,
            position: None,
        };
        let topic = |topic: &str, partitions, dense| Event::Topic {
            topic: topic.to_owned(),
            partitions,
            dense,
            compacted: false,
        };
        world.events.extend([topic("t", 2, true), topic("x", 1, false)]);
        for producer in 0..4 {
            let topic = if producer == TRANSACTIONAL { "x" } else { "t" };
            let process = format!("p{producer}");
            world.events.push(Event::Producer {
                producer,
                process,
                topic: topic.to_owned(),
                idempotent: true,
            });
        }
        for consumer in &world.consumers {
            let Consumer { process, is_filtered: gaps, is_committed: committed, .. } = *consumer;
            world.events.push(Event::Consumer { process: process.to_owned(), gaps, committed });
        }
        world
    }

    fn step(&mut self, [what, who, place, how]: [u8; 4]) {
        let producer = [0, 1, ROUTING][usize::from(who % 3)];
        let partition = usize::from(place % 2);
        match what % 16 {
            0..4 => self.send(producer, partition, how),
            4 => self.append(producer),
            5..8 => self.answer(producer),
            8 => self.lose_answer(producer, how),
            9 => self.fail(producer),
            10..12 => self.poll(usize::from(who % 3), place, how),
            12 => self.send_reader(usize::from(who % 3), place, how),
            13 if how < 60 => self.trim(usize::from(place % 3), who),
            13 => self.lead_elsewhere(how),
            14 => self.transact(who, how),
            _ => self.commit(how),
        }
    }

    fn send(&mut self, number: u32, partition: usize, how: u8) {
        let producer = &mut self.producers[number as usize];
        let id = RecordId::new(number, producer.next);
        producer.next += 1;
        producer.open.push_back((id, partition, None));
        let to = (number != ROUTING).then(|| PARTITIONS[partition].1);
        self.events.push(Event::Send { records: Span::one(id), partition: to, transaction: None });
        if !how.is_multiple_of(4) {
            self.append(number);
        }
    }

    /// The first record that has no place gets one.
    fn append(&mut self, number: u32) {
        let open = self.producers[number as usize].open.iter_mut().find(|(.., place)| place.is_none());
        if let Some((id, partition, place)) = open {
            let log = &mut self.partitions[*partition].log;
            *place = Some(log.len() as u64);
            log.push(Some((*id, true)));
        }
    }

    fn answer(&mut self, number: u32) {
        let open = &mut self.producers[number as usize].open;
        if let Some((id, partition, Some(offset))) = open.front().copied() {
            open.pop_front();
            self.acknowledge(id, partition, offset, false);
        }
    }

    fn acknowledge(&mut self, id: RecordId, partition: usize, offset: u64, duplicate: bool) {
        let is_told = id.producer != ROUTING;
        let records = Span::one(id);
        let (partition, offset) = (is_told.then(|| PARTITIONS[partition].1), is_told.then_some(offset));
        self.events.push(Event::Sent { records, partition, offset, duplicate });
    }

    /// It may be tried again, and is stored then if it was not.
    fn lose_answer(&mut self, number: u32, how: u8) {
        let Some((id, partition, place)) = self.producers[number as usize].open.front().copied() else {
            return;
        };
        self.events.push(Event::Unknown { records: Span::one(id) });
        if how.is_multiple_of(3) {
            self.producers[number as usize].open.pop_front();
            return;
        }
        let to = (number != ROUTING).then(|| PARTITIONS[partition].1);
        self.events.push(Event::Send { records: Span::one(id), partition: to, transaction: None });
        if place.is_none() {
            self.append(number);
        }
        let Some((_, _, Some(offset))) = self.producers[number as usize].open.pop_front() else { return };
        self.acknowledge(id, partition, offset, place.is_some());
    }

    fn fail(&mut self, number: u32) {
        let open = &mut self.producers[number as usize].open;
        if let Some((id, _, None)) = open.front().copied() {
            open.pop_front();
            self.events.push(Event::Failed { records: Span::one(id) });
        }
    }

    /// Everything that is under way has an unknown outcome; what was not stored is lost.
    fn lead_elsewhere(&mut self, how: u8) {
        self.events.push(Event::Note { text: format!("leader {} killed", how % 3) });
        for producer in &mut self.producers {
            for (id, ..) in producer.open.drain(..) {
                self.events.push(Event::Unknown { records: Span::one(id) });
            }
        }
    }

    fn poll(&mut self, number: usize, place: u8, how: u8) {
        let consumer = &self.consumers[number];
        let partition = consumer.partitions[usize::from(place) % consumer.partitions.len()];
        let start = self.partitions[partition].start;
        let from = consumer.next.get(&partition).copied().unwrap_or(start).max(start);
        let (is_filtered, is_committed) = (consumer.is_filtered, consumer.is_committed);
        self.deliver(number, partition, (from, u64::from(how % 12)), (is_filtered, is_committed));
    }

    fn deliver(
        &mut self,
        number: usize,
        partition: usize,
        (from, count): (u64, u64),
        (is_filtered, is_committed): (bool, bool),
    ) {
        let log = &self.partitions[partition].log;
        let end = match self.transaction {
            Some((_, first)) if is_committed && partition == X => first,
            _ => log.len() as u64,
        };
        let to = (from + count).min(end).max(from);
        let records = (from..to).filter_map(|offset| Some((offset, log[offset as usize]?)));
        let records = records
            .filter(|(_, (id, is_visible))| (!is_filtered || passes(*id)) && (!is_committed || *is_visible));
        let runs = Run::gather(records.map(|(offset, (id, _))| (offset, id)));
        let process = self.consumers[number].process.to_owned();
        self.consumers[number].next.insert(partition, to);
        self.events.push(Event::Poll {
            process,
            partition: name(partition),
            runs,
            damaged: Vec::new(),
            next: (is_filtered && to > from).then_some(to),
        });
    }

    fn send_reader(&mut self, number: usize, place: u8, how: u8) {
        let consumer = &mut self.consumers[number];
        let partition = consumer.partitions[usize::from(place) % consumer.partitions.len()];
        let end = self.partitions[partition].log.len() as u64;
        let next = if end == 0 { 0 } else { u64::from(how) % end };
        let process = consumer.process.to_owned();
        if how.is_multiple_of(4) {
            let (gaps, committed) = (consumer.is_filtered, consumer.is_committed);
            consumer.next.clear();
            self.events.push(Event::Consumer { process, gaps, committed });
        } else {
            self.events.push(Event::Seek { process, partition: name(partition), next: Some(next) });
        }
        consumer.next.insert(partition, next);
    }

    fn trim(&mut self, partition: usize, how: u8) {
        let Partition { log, start } = &mut self.partitions[partition];
        let end = match self.transaction {
            Some((_, first)) if partition == X => first,
            _ => log.len() as u64,
        };
        // Mostly a little.
        *start = (*start + u64::from(how % 3)).min(end);
        let told =
            Event::LogStart { process: "admin".to_owned(), partition: name(partition), offset: *start };
        self.events.push(told);
    }

    /// Begins a transaction, or ends one.
    fn transact(&mut self, who: u8, how: u8) {
        let Some((transaction, first)) = self.transaction else {
            self.transactions += 1;
            let transaction = self.transactions;
            self.transaction = Some((transaction, self.partitions[X].log.len() as u64));
            self.events.push(Event::Begin { transaction, producer: TRANSACTIONAL });
            for _ in 0..=how % 4 {
                let producer = &mut self.producers[TRANSACTIONAL as usize];
                let id = RecordId::new(TRANSACTIONAL, producer.next);
                producer.next += 1;
                let records = Span::one(id);
                self.events.push(Event::Send { records, partition: Some(0), transaction: Some(transaction) });
                let offset = self.partitions[X].log.len() as u64;
                self.partitions[X].log.push(Some((id, true)));
                self.acknowledge(id, X, offset, false);
            }
            return;
        };
        let commit = !who.is_multiple_of(3);
        self.events.push(Event::End { transaction, commit });
        for record in self.partitions[X].log[first as usize..].iter_mut().flatten() {
            record.1 = commit;
        }
        self.partitions[X].log.push(None);
        self.transaction = None;
        if !how.is_multiple_of(5) {
            self.events.push(Event::Ended { transaction, committed: commit });
        }
    }

    fn commit(&mut self, how: u8) {
        let offset = self.consumers[0].next.get(&0).copied().unwrap_or(0);
        let (group, partition) = ("g".to_owned(), name(0));
        self.events.push(Event::Commit { group: group.clone(), partition: partition.clone(), offset });
        if how.is_multiple_of(4) {
            return;
        }
        self.position = Some(offset);
        if how % 4 != 1 {
            self.events.push(Event::Committed { group, partition, offset });
        }
    }

    /// Everything is answered, somebody reads it all, and so do replicas and the task.
    fn settle(&mut self) {
        for number in [0, 1, ROUTING] {
            while !self.producers[number as usize].open.is_empty() {
                self.append(number);
                self.answer(number);
            }
        }
        if self.transaction.is_some() {
            self.transact(0, 1);
        }
        let (group, partition) = ("g".to_owned(), name(0));
        self.events.push(Event::Position { group, partition, offset: self.position });
        self.consumers.push(Consumer {
            process: "audit",
            partitions: &[],
            is_filtered: false,
            is_committed: true,
            next: BTreeMap::new(),
        });
        self.events.push(Event::Consumer { process: "audit".to_owned(), gaps: false, committed: true });
        for partition in 0..PARTITIONS.len() {
            let Partition { log, start } = &self.partitions[partition];
            let (mut next, end) = (*start, log.len() as u64);
            let seek =
                Event::Seek { process: "audit".to_owned(), partition: name(partition), next: Some(next) };
            self.events.push(seek);
            while next < end {
                self.deliver(3, partition, (next, 7), (false, true));
                next += 7;
            }
            self.events.push(Event::Drained { process: "audit".to_owned(), partition: name(partition) });
        }
        for broker in BROKERS {
            (0..PARTITIONS.len()).for_each(|partition| self.store(broker, partition));
        }
        self.work();
    }

    fn store(&mut self, broker: u32, partition: usize) {
        let Partition { log, start } = &self.partitions[partition];
        let end = log.len() as u64;
        let segments = (0..end / SEGMENT_RECORDS).map(|nth| nth * SEGMENT_RECORDS);
        let segments = segments.map(|base| SealedSegment {
            base,
            end: base + SEGMENT_RECORDS,
            digest: format!("{base}"),
        });
        let partition = name(partition);
        let (log_start, segments) = (*start, segments.collect());
        self.events.push(Event::Replica { broker, partition: partition.clone(), log_start, end, segments });
        let records: Vec<_> =
            (*start..end).filter_map(|offset| Some((offset, log[offset as usize]?.0))).collect();
        for chunk in records.chunks(10) {
            let runs = Run::gather(chunk.iter().copied());
            self.events.push(Event::Stored {
                broker,
                partition: partition.clone(),
                runs,
                damaged: Vec::new(),
            });
        }
    }

    fn work(&mut self) {
        let Partition { log, start } = &self.partitions[0];
        let (start, end) = (*start, log.len() as u64);
        let mut task = Evens::default();
        let mut outputs = 0..;
        for offset in start..end {
            let Some((id, _)) = log[offset as usize] else { continue };
            for (partition, value) in task.apply(&Input { partition: &name(0), offset, id }) {
                let offset = outputs.next().unwrap_or(0);
                self.events.push(Event::Output { task: "evens".to_owned(), partition, offset, value });
            }
        }
        for (key, value) in task.state() {
            self.events.push(Event::State { task: "evens".to_owned(), key, value });
        }
        let inputs = vec![TaskInput { partition: name(0), from: start, next: end }];
        self.events.push(Event::Task { task: "evens".to_owned(), inputs, drained: true });
    }
}
