//! Any sequence of calls against a list of batches.

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone)]
enum Step {
    Append { batches: Vec<(u8, u16, i16)>, gap: u8 },
    Roll { gap: u8 },
    DropBefore { part: u8 },
    Sync,
    Read { part: u8, bytes_max: u16, until: u8 },
    FindTime { time: i16 },
    Delete,
    Restart,
    PowerLoss { seed: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    let batches = proptest::collection::vec(
        (1_u8..20, prop_oneof![8 => 0_u16..400, 1 => 30_000_u16..36_000], any::<i16>()),
        1..12,
    );
    prop_oneof![
        6 => (batches, 0_u8..3).prop_map(|(batches, gap)| Step::Append { batches, gap }),
        2 => (0_u8..3).prop_map(|gap| Step::Roll { gap }),
        1 => any::<u8>().prop_map(|part| Step::DropBefore { part }),
        2 => Just(Step::Sync),
        6 => any::<(u8, u16, u8)>().prop_map(|(part, bytes_max, until)| Step::Read { part, bytes_max, until }),
        2 => any::<i16>().prop_map(|time| Step::FindTime { time }),
        1 => Just(Step::Delete),
        1 => Just(Step::Restart),
        1 => any::<u64>().prop_map(|seed| Step::PowerLoss { seed }),
    ]
}

/// What the store should hold.
#[derive(Clone, Default)]
struct Model {
    batches: Vec<StoredBatch>,
    /// Where segments begin, the active one last.
    segments: Vec<i64>,
    next: i64,
}

impl Model {
    fn append(&mut self, sizes: &[(u8, u16, i16)], gap: u8) -> Vec<StoredBatch> {
        let mut group = Vec::new();
        self.next += i64::from(gap);
        for (records, bytes, time) in sizes {
            group.push(batch(self.next, i64::from(*records), i64::from(*time), usize::from(*bytes)));
            self.next += i64::from(*records);
        }
        if self.segments.is_empty() {
            self.segments.push(group[0].base_offset().get());
        }
        self.batches.extend(group.iter().cloned());
        group
    }

    fn roll(&mut self, at: i64) {
        let active_is_empty = self
            .segments
            .last()
            .is_some_and(|base| self.batches.last().is_none_or(|last| last.base_offset().get() < *base));
        if active_is_empty {
            self.segments.pop();
        }
        self.segments.push(at);
        self.next = at;
    }

    fn drop_before(&mut self, at: i64) {
        while let [first, second, ..] = self.segments[..] {
            let ends = (self.batches.iter().rev()).find(|batch| batch.base_offset().get() < second);
            if ends.is_some_and(|last| last.last_offset().get() >= at) {
                return;
            }
            self.batches.retain(|batch| batch.base_offset().get() >= second);
            assert!(first < second);
            self.segments.remove(0);
        }
    }

    /// An offset that is stored, or the end.
    fn offset(&self, part: u8) -> i64 {
        let first = self.segments.first().copied().unwrap_or(0);
        first + (self.stored_end() - first) * i64::from(part) / 255
    }

    fn stored_end(&self) -> i64 {
        let base = self.segments.last().copied().unwrap_or(0);
        self.batches.last().map_or(base, |last| base.max(last.last_offset().get() + 1))
    }
}

struct World {
    storage: MemoryStorage,
    store: SegmentStore,
    model: Model,
    recorded: (PartitionEnds, Model),
}

impl World {
    fn reopened_on(&mut self, storage: MemoryStorage) {
        self.store = open_at(&files_on(storage.clone()), self.recorded.0.clone()).unwrap();
        self.storage = storage;
        self.model = self.recorded.1.clone();
        assert_eq!(self.store.written_ends(), self.recorded.0);
    }

    fn take(&mut self, step: &Step) {
        match step {
            Step::Append { batches, gap } => {
                let group = self.model.append(batches, *gap);
                self.store.append(&group).unwrap();
            }
            Step::Roll { gap } => {
                let at = self.model.next + i64::from(*gap);
                self.model.roll(at);
                self.store.roll(offset(at)).unwrap();
            }
            Step::DropBefore { part } => {
                let at = self.model.offset(*part);
                self.model.drop_before(at);
                self.store.drop_before(offset(at));
            }
            Step::Sync => self.recorded = (self.store.sync().unwrap(), self.model.clone()),
            Step::Read { part, bytes_max, until } => {
                let from = self.model.offset(*part);
                self.read(from, usize::from(*bytes_max), from + i64::from(*until));
            }
            Step::FindTime { time } => {
                let time = Timestamp::new(i64::from(*time));
                let expected = self.model.batches.iter().find(|batch| batch.max_timestamp() >= time);
                let found = self.store.find_by_time(time).unwrap();
                assert_eq!(found.map(|found| found.offset), expected.map(StoredBatch::base_offset));
            }
            Step::Delete => {
                self.store.delete_unnamed(&self.recorded.0).unwrap();
            }
            Step::Restart => self.reopened_on(self.storage.kill()),
            Step::PowerLoss { seed } => self.reopened_on(self.storage.crash(*seed)),
        }
    }

    fn read(&self, from: i64, bytes_max: usize, until: i64) {
        let read = self.store.read(offset(from), offset(until), bytes_max).unwrap();
        let mut wanted = (self.model.batches.iter())
            .skip_while(|batch| batch.last_offset().get() < from)
            .take_while(|batch| batch.base_offset().get() < until);
        let mut expected = Vec::new();
        let mut rest = &read.parts.concat()[..];
        // Whole batches in order, as many as there are; at least one where there is one.
        while !rest.is_empty() {
            let next = wanted.next().expect("no more than is stored");
            let bytes = kafka(next);
            assert_eq!(rest[..bytes.len()], bytes);
            rest = &rest[bytes.len()..];
            expected.push(next);
        }
        assert!(expected.len() <= 1 || read.bytes <= bytes_max);
        match expected.last() {
            Some(last) => assert_eq!(read.next, last.last_offset().plus(1)),
            None => assert!(wanted.next().is_none() && read.next == offset(from)),
        }
    }

    fn check_all(&self) {
        let first = self.model.segments.first().copied().unwrap_or(0);
        assert_eq!(read_all(&self.store, first, 2000).unwrap(), joined(&self.model.batches));
        let bases: Vec<_> =
            self.store.written_ends().segments.iter().map(|end| end.base_offset.get()).collect();
        assert_eq!(bases, self.model.segments);
        for base in bases {
            self.store.verify(offset(base)).unwrap();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]
    #[test]
    fn the_store_holds_what_the_model_holds(steps in proptest::collection::vec(step(), 1..40)) {
        let (storage, store) = fresh();
        let model = Model::default();
        let recorded = (PartitionEnds::default(), model.clone());
        let mut world = World { storage, store, model, recorded };
        for step in &steps {
            world.take(step);
        }
        world.check_all();
        world.recorded = (world.store.sync().unwrap(), world.model.clone());
        world.reopened_on(world.storage.crash(7));
        world.check_all();
    }
}
