//! What a shard costs: apply per unit, how long a checkpoint holds apply up, and a start, with 1 and 1,000 partitions.
//!
//! `cargo run --release -p tidemill-shard --example shard_cost [DIRECTORY]`

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tidemill_controller::TopicConfig;
use tidemill_log::fs::DiskStorage;
use tidemill_log::segment::{SegmentFiles, SegmentFilesConfig};
use tidemill_log::wal::EntryId;
use tidemill_protocol::record_batch::{BatchBuilder, BuilderOptions};
use tidemill_protocol::{
    DeploymentId, LogIndex, PartitionId, ProducerEpoch, ProducerId, Sequence, ShardId, Term, Timestamp,
    TopicId, TopicPartition,
};
use tidemill_shard::{
    AdoptDeployment, AdoptTopic, AdoptedStatus, Entry, Progress, Shard, ShardConfig, StartAt, StateWrite,
    TaskAssignment, Unit,
};
use uuid::Uuid;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

const TOPIC: TopicId = TopicId::new(Uuid::from_u128(1));
const UNITS_PER_ENTRY: usize = 16;

fn main() -> Outcome<()> {
    let parent = std::env::args_os().nth(1).map_or_else(std::env::temp_dir, PathBuf::from);
    for partitions in [1, 1000] {
        println!("{partitions} partitions");
        let dir = tempfile::tempdir_in(&parent)?;
        let storage = Arc::new(DiskStorage::new(dir.path())?);
        let files = SegmentFiles::new(storage, SegmentFilesConfig::default());
        let mut bench = Bench { shard: open(&files)?, index: 0, sequences: vec![0; partitions], partitions };
        bench.adopt()?;
        bench.appends("append, 200 B batch, idempotent", 100, 100_000)?;
        bench.appends("append, 64 KiB batch, idempotent", 64 << 10, 8_000)?;
        bench.state()?;
        bench.checkpoints()?;
        bench.idle()?;
        let Bench { shard, .. } = bench;
        drop(shard);
        let started = Instant::now();
        let shard = open(&files)?;
        println!("  open                                    {:>10.1} ms", ms(started.elapsed()));
        println!(
            "  state file                              {:>10} KiB",
            dir.path().join("shard-01/state").metadata()?.len() >> 10
        );
        drop(shard);
    }
    Ok(())
}

fn open(files: &Arc<SegmentFiles>) -> Outcome<Shard> {
    Ok(Shard::open(ShardConfig::new(ShardId::new(1)), files)?)
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

struct Bench {
    shard: Shard,
    index: u64,
    /// By partition: the producer's next sequence.
    sequences: Vec<i32>,
    partitions: usize,
}

impl Bench {
    fn apply(&mut self, units: Vec<Unit>) -> Outcome<Duration> {
        self.index += 1;
        let id = EntryId { index: LogIndex::new(self.index), term: Term::new(1), leader_node: 1 };
        // As it comes from the log.
        let entry = Entry::decode(&Entry { time: Timestamp::new(1_000_000), units }.encode())?;
        let started = Instant::now();
        let results = self.shard.apply(id, &entry)?;
        let taken = started.elapsed();
        if let Some(refused) =
            results.iter().find(|result| matches!(result, tidemill_shard::UnitResult::Refused(_)))
        {
            return Err(format!("{refused:?}").into());
        }
        Ok(taken)
    }

    fn adopt(&mut self) -> Outcome<()> {
        let partitions = (0..u32::try_from(self.partitions)?).map(PartitionId::new).collect();
        let topic = AdoptTopic {
            topic: TOPIC,
            version: 1,
            name: "bench".into(),
            config: TopicConfig::default(),
            partitions,
            deleted: false,
        };
        let source = TopicPartition::new(TOPIC, PartitionId::new(0));
        let deployment = AdoptDeployment {
            deployment: DeploymentId::new(1),
            version: 1,
            epoch: 1,
            status: AdoptedStatus::Running,
            tasks: vec![TaskAssignment {
                partition: PartitionId::new(0),
                sources: vec![(source, StartAt::Earliest)],
            }],
            state_bytes_max: 1 << 40,
            outbox_bytes_max: 1 << 30,
        };
        self.apply(vec![Unit::AdoptTopic(topic), Unit::AdoptDeployment(deployment)]).map(drop)
    }

    fn batch(&mut self, partition: usize, payload: usize) -> Outcome<Bytes> {
        let mut builder = BatchBuilder::new(BuilderOptions::default());
        builder.append(Timestamp::new(1), None, Some(&vec![b'x'; payload]), [])?;
        let sequence = &mut self.sequences[partition];
        builder.set_producer(ProducerId::new(7), ProducerEpoch::new(0), Sequence::new(*sequence));
        *sequence += 1;
        Ok(builder.build()?)
    }

    fn appends(&mut self, what: &str, payload: usize, count: usize) -> Outcome<()> {
        let mut taken = Duration::ZERO;
        let mut next = 0;
        for _ in 0..count / UNITS_PER_ENTRY {
            let mut units = Vec::with_capacity(UNITS_PER_ENTRY);
            for _ in 0..UNITS_PER_ENTRY {
                next = (next + 1) % self.partitions;
                let partition = TopicPartition::new(TOPIC, PartitionId::new(u32::try_from(next)?));
                let batch = self.batch(next, payload)?;
                units.push(Unit::Append { partition, batch, leader_epoch: None });
            }
            taken += self.apply(units)?;
            // As a proposer would.
            while self.shard.write_behind_lag_bytes() > 32 << 20 {
                std::thread::yield_now();
            }
        }
        println!("  {what:<38}  {:>10.0} ns per unit", taken.as_nanos() as f64 / count as f64);
        Ok(())
    }

    fn state(&mut self) -> Outcome<()> {
        const WRITES: u64 = 100;
        const STEPS: u64 = 500;
        let mut taken = Duration::ZERO;
        for step in 0..STEPS {
            let write = |n: u64| StateWrite {
                key: Bytes::copy_from_slice(&((step * 7919 + n * 104_729) % 20_000).to_be_bytes()),
                value: Some(Bytes::from(vec![b'v'; 64])),
                expires_at: None,
            };
            let progress = Progress {
                deployment: DeploymentId::new(1),
                epoch: 1,
                partition: PartitionId::new(0),
                positions: Vec::new(),
                state: (0..WRITES).map(write).collect(),
                timers: Vec::new(),
                fired: Vec::new(),
                outputs: Vec::new(),
            };
            taken += self.apply(vec![Unit::Progress(progress)])?;
        }
        let each = taken.as_nanos() as f64 / (WRITES * STEPS) as f64;
        println!("  progress, per key of 64 B written       {each:>10.0} ns");
        Ok(())
    }

    fn checkpoints(&mut self) -> Outcome<()> {
        let (mut frozen, mut whole) = (Vec::new(), Vec::new());
        for _ in 0..5 {
            for chunk in 0..self.partitions.div_ceil(UNITS_PER_ENTRY) {
                let mut units = Vec::new();
                for n in chunk * UNITS_PER_ENTRY..((chunk + 1) * UNITS_PER_ENTRY).min(self.partitions) {
                    let partition = TopicPartition::new(TOPIC, PartitionId::new(u32::try_from(n)?));
                    units.push(Unit::Append { partition, batch: self.batch(n, 1000)?, leader_epoch: None });
                }
                self.apply(units)?;
            }
            let started = Instant::now();
            let done = self.shard.checkpoint(&|_| Ok(()))?;
            whole.push(ms(started.elapsed()));
            frozen.push(ms(done.frozen_for));
        }
        whole.sort_by(f64::total_cmp);
        frozen.sort_by(f64::total_cmp);
        println!("  checkpoint, every partition changed     {:>10.1} ms (median)", whole[2]);
        println!(
            "    of which apply was held up            {:>10.3} ms ({:.3} at most)",
            frozen[2], frozen[4]
        );
        Ok(())
    }

    fn idle(&mut self) -> Outcome<()> {
        self.apply(vec![Unit::Tick])?;
        let started = Instant::now();
        self.shard.checkpoint(&|_| Ok(()))?;
        println!("  checkpoint after one tick               {:>10.1} ms", ms(started.elapsed()));
        Ok(())
    }
}
