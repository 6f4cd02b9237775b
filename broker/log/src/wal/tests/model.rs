//! Random operations and crashes against a model: what is found is the state after some prefix of the operations
//! that includes every acknowledged one.

use std::sync::atomic::{AtomicUsize, Ordering};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;

#[derive(Debug, Clone, Default, PartialEq)]
struct ModelShard {
    vote: Option<Bytes>,
    committed: Option<Bytes>,
    snapshot: Option<Bytes>,
    purged: Option<EntryId>,
    entries: Vec<WalEntry>,
}

type Model = BTreeMap<ShardId, ModelShard>;

#[derive(Debug, Clone)]
enum Operation {
    Append(ShardId, Vec<WalEntry>),
    Vote(ShardId, Bytes),
    Committed(ShardId, Bytes),
    Snapshot(ShardId, Bytes),
    Truncate(ShardId, Option<EntryId>),
    Purge(ShardId, EntryId),
    Forget(ShardId),
    Carry(ShardId, usize),
}

impl Operation {
    fn random(model: &Model, rng: &mut StdRng) -> Self {
        let shard = ShardId::new(rng.random_range(0..4));
        let log = model.get(&shard).cloned().unwrap_or_default();
        let last = log.entries.last().map(|entry| entry.id).or(log.purged);
        let text = Bytes::from(format!("{}", rng.random_range(0..1000)));
        match rng.random_range(0..100) {
            0..60 => {
                let next = last.map_or(rng.random_range(0..3), |last| last.index.get() + 1);
                let term = last.map_or(1, |last| last.term.get()) + u64::from(rng.random_range(0..10) == 0);
                let count = rng.random_range(1..5);
                let bytes = |rng: &mut StdRng| match rng.random_range(0..10) {
                    0 => rng.random_range(0..30_000),
                    1..4 => rng.random_range(0..5000),
                    _ => rng.random_range(0..300),
                };
                let entries = (next..next + count).map(|index| entry_of(id_of_term(index, term), bytes(rng)));
                Self::Append(shard, entries.collect())
            }
            60..70 => Self::Vote(shard, text),
            70..78 => Self::Committed(shard, text),
            78..80 => Self::Snapshot(shard, text),
            80..86 => {
                let kept = rng.random_range(0..=log.entries.len());
                let after =
                    kept.checked_sub(1).and_then(|place| log.entries.get(place)).map(|entry| entry.id);
                Self::Truncate(shard, after)
            }
            86..89 => Self::Carry(shard, rng.random_range(0..40_000)),
            89..99 => match log.entries.get(rng.random_range(0..log.entries.len().max(1))) {
                Some(entry) => Self::Purge(shard, entry.id),
                None => Self::Vote(shard, text),
            },
            _ => Self::Forget(shard),
        }
    }

    /// What may survive alone while it is not acknowledged: an append is not atomic over its entries.
    fn steps(&self) -> Vec<Self> {
        match self {
            Self::Append(shard, entries) => {
                entries.iter().map(|entry| Self::Append(*shard, vec![entry.clone()])).collect()
            }
            other => vec![other.clone()],
        }
    }

    fn apply(&self, model: &mut Model) {
        match self {
            Self::Append(shard, entries) => {
                model.entry(*shard).or_default().entries.extend(entries.iter().cloned())
            }
            Self::Vote(shard, text) => model.entry(*shard).or_default().vote = Some(text.clone()),
            Self::Committed(shard, text) => model.entry(*shard).or_default().committed = Some(text.clone()),
            Self::Snapshot(shard, text) => model.entry(*shard).or_default().snapshot = Some(text.clone()),
            Self::Truncate(shard, after) => {
                let kept = |entry: &WalEntry| after.is_some_and(|after| entry.id.index <= after.index);
                model.entry(*shard).or_default().entries.retain(kept);
            }
            Self::Purge(shard, up_to) => {
                let log = model.entry(*shard).or_default();
                log.entries.retain(|entry| entry.id.index > up_to.index);
                log.purged = Some(*up_to);
            }
            Self::Forget(shard) => {
                model.remove(shard);
            }
            Self::Carry(..) => {}
        }
        model.retain(|_, log| *log != ModelShard::default());
    }

    fn start(self, wal: &Wal, done: Completion) {
        match self {
            Self::Append(shard, entries) => wal.append(shard, entries, done),
            Self::Vote(shard, text) => wal.save_vote(shard, text, done),
            Self::Committed(shard, text) => {
                wal.save_committed(shard, text);
                // Lazy: a flush tells when it is there.
                wal.flush(done);
            }
            Self::Snapshot(shard, text) => wal.snapshot_installed(shard, text, done),
            Self::Truncate(shard, after) => wal.truncate_after(shard, after, done),
            Self::Purge(shard, up_to) => wal.purge(shard, up_to, done),
            Self::Forget(shard) => wal.forget(shard, done),
            Self::Carry(shard, bytes) => drop(wal.carry_forward(shard, bytes, done).unwrap()),
        }
    }
}

fn found(wal: &Wal, recovery: &Recovery) -> Model {
    let mut model = Model::new();
    for (shard, recovered) in &recovery.shards {
        let log = ModelShard {
            vote: recovered.vote.clone(),
            committed: recovered.committed.clone(),
            snapshot: recovered.snapshot_installed.clone(),
            purged: recovered.purged,
            entries: read_all(wal, *shard),
        };
        if log != ModelShard::default() {
            model.insert(*shard, log);
        }
    }
    model
}

fn in_short(model: &Model) -> String {
    let shards = model.iter().map(|(shard, log)| {
        let ids: Vec<_> =
            log.entries.iter().map(|entry| (entry.id.index.get(), entry.id.term.get())).collect();
        let ends = (ids.first().copied(), ids.last().copied());
        let purged = log.purged.map(|purged| purged.index.get());
        format!("{shard}: {ends:?} purged {purged:?} {:?} {:?} {:?}", log.vote, log.committed, log.snapshot)
    });
    format!("{{{}}}", shards.collect::<Vec<_>>().join("; "))
}

/// Works on a log until a crash at a random moment, several lives long.
fn live_and_crash(seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut storage = MemoryStorage::new();
    let mut model = Model::new();
    for life in 0..5 {
        let config = WalConfig { salt_seed: Some(seed * 100 + life), ..config() };
        let (wal, recovery) = open_with(&storage, &config);
        assert!(recovery.damage.is_none(), "seed {seed} life {life}: {:?}", recovery.report);
        assert_eq!(found(&wal, &recovery), model, "seed {seed} life {life}");
        let acknowledged = Arc::new(AtomicUsize::new(0));
        let mut history = vec![model.clone()];
        for _ in 1..=rng.random_range(1..60) {
            let operation = Operation::random(&model, &mut rng);
            for step in operation.steps() {
                step.apply(&mut model);
                history.push(model.clone());
            }
            let number = history.len() - 1;
            let counter = Arc::clone(&acknowledged);
            let (told, heard) = mpsc::channel();
            operation.start(
                &wal,
                Box::new(move |result| {
                    result.unwrap();
                    counter.fetch_max(number, Ordering::SeqCst);
                    let _ = told.send(());
                }),
            );
            if rng.random_range(0..4) == 0 {
                heard.recv().unwrap();
            }
            for (shard, log) in &model {
                if rng.random_range(0..10) == 0 {
                    wal.applied(*shard, log.entries.last().map_or(LogIndex::new(0), |entry| entry.id.index));
                }
            }
            if rng.random_range(0..8) == 0 {
                wal.assert_counts();
            }
            let shard = ShardId::new(rng.random_range(0..4));
            assert_eq!(read_all(&wal, shard), model.get(&shard).map_or(&[][..], |log| &log.entries));
        }
        // In this order: what is acknowledged before the crash must have survived it.
        let sure = acknowledged.load(Ordering::SeqCst);
        storage = if rng.random_range(0..4) == 0 { storage.kill() } else { storage.crash(rng.random()) };
        drop(wal);
        let (wal, recovery) = open_with(&storage, &config);
        assert!(recovery.damage.is_none(), "seed {seed} life {life}: {:?}", recovery.report);
        let after = found(&wal, &recovery);
        let same = history.iter().enumerate().skip(sure).find(|(_, state)| **state == after);
        assert!(
            same.is_some(),
            "seed {seed} life {life}: {sure} of {} acknowledged; found {}, expected {}",
            history.len() - 1,
            in_short(&after),
            history.iter().skip(sure).map(in_short).collect::<Vec<_>>().join(" or ")
        );
        model = after;
    }
}

#[test]
fn a_crash_at_any_moment_loses_nothing_acknowledged() {
    let full = std::env::var_os("TIDEMILL_TEST_FULL").is_some();
    for seed in 0..if full { 5000 } else { 60 } {
        live_and_crash(seed);
    }
}
