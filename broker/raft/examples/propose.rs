//! What replication costs beside the bare write-ahead log, on a real disk.
//!
//! ```text
//! cargo run --release -p tidemill-raft --example propose -- [directory] [seconds per leg]
//! ```
//!
//! Each shape is measured on the bare log (`Wal::append` from one thread, as many in flight) and through a [`Replica`],
//! in turns, so that both see the same disk. `appended` units go into a partition, with write-behind at work; `refused`
//! ones name a topic that nobody adopted, which leaves the replication alone.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use tidemill_log::fs::{DiskStorage, Storage};
use tidemill_log::segment::{SegmentFiles, SegmentFilesConfig};
use tidemill_log::wal::{EntryId, Wal, WalConfig, WalEntry};
use tidemill_protocol::record_batch::{BatchBuilder, BuilderOptions};
use tidemill_protocol::{
    BrokerId, LogIndex, NodeId, PartitionId, ShardId, Term, Timestamp, TopicId, TopicPartition,
};
use tidemill_raft::{Begin, CheckpointConfig, CheckpointDriver, Replica, ReplicaConfig, recovered_shard};
use tidemill_shard::{AdoptTopic, Shard, ShardConfig, Unit};

const BARE: ShardId = ShardId::new(1);
const SHARD: ShardId = ShardId::new(0);

type Failure = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let base = arguments.next().map_or_else(std::env::temp_dir, PathBuf::from);
    let seconds = arguments.next().map_or(Ok(5), |text| text.parse())?;
    let leg = Duration::from_secs(seconds);
    let dir = tempfile::tempdir_in(base)?;
    let bench = Bench::open(dir.path().to_owned()).await?;

    println!("one unit at a time (us)                         p50      p99");
    for (name, bytes) in [("1 KiB", 1 << 10), ("64 KiB", 64 << 10)] {
        let (mut bare, mut refused, mut appended) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..4 {
            let turn = leg / 4;
            bench.bare_alone(bytes, turn, &mut bare)?;
            bench.alone(&bench.unknown, bytes, turn, &mut refused).await?;
            bench.alone(&bench.partition, bytes, turn, &mut appended).await?;
        }
        report(&format!("{name} bare log append"), &mut bare);
        report(&format!("{name} replica, refused"), &mut refused);
        report(&format!("{name} replica, appended"), &mut appended);
    }

    println!("many in flight                               units/s     MB/s  entries/s");
    for (name, bytes, window) in [("1 MiB", 1 << 20, 16), ("64 KiB", 64 << 10, 64), ("1 KiB", 1 << 10, 4096)]
    {
        let bare = bench.bare_stream(bytes, window, leg)?;
        println!("{name:>8} bare log, {window:>4} in flight    {bare}");
        let refused = bench.stream(&bench.unknown, bytes, window, leg).await?;
        println!("{name:>8} replica, refused             {refused}");
        let appended = bench.stream(&bench.partition, bytes, window, leg).await?;
        println!("{name:>8} replica, appended            {appended}");
    }
    restart(bench, dir.path().to_owned()).await
}

/// Writes entries, stops without a checkpoint, and starts again.
async fn restart(mut bench: Bench, dir: PathBuf) -> Result<(), Failure> {
    const UNITS: usize = 512;
    bench.driver = None;
    let (done, forgotten) = mpsc::channel();
    bench.wal.forget(BARE, Box::new(move |result| drop(done.send(result))));
    forgotten.recv()??;
    bench.replica.checkpoint().await?;
    let batch = batch(1 << 20)?;
    let mut pending = VecDeque::new();
    for _ in 0..UNITS {
        let unit = Unit::Append { partition: bench.partition, batch: batch.clone(), leader_epoch: None };
        pending.push_back(bench.replica.reserve(unit.bytes()).await?.submit(unit));
    }
    for unit in pending {
        unit.await?;
    }
    bench.replica.stop().await;
    bench.wal.close()?;
    drop(bench);
    let started = Instant::now();
    let again = Bench::open(dir).await?;
    let took = started.elapsed().as_secs_f64();
    println!("restart with {UNITS} MiB to replay: {took:.2} s, {:.0} MB/s", UNITS as f64 * 1.048_576 / took);
    again.replica.stop().await;
    Ok(())
}

struct Bench {
    wal: Wal,
    replica: Replica,
    partition: TopicPartition,
    unknown: TopicPartition,
    driver: Option<CheckpointDriver>,
}

impl Bench {
    async fn open(dir: PathBuf) -> Result<Self, Failure> {
        let storage: Arc<dyn Storage> = Arc::new(DiskStorage::new(dir)?);
        let started = Instant::now();
        let (wal, recovery) = Wal::open(Arc::clone(&storage), &WalConfig::new("wal"))?;
        let (direct, scanned, took) = (recovery.direct, recovery.bytes_scanned >> 20, started.elapsed());
        println!("log opened in {took:.2?}: {scanned} MiB scanned, direct I/O: {direct}");
        let files = SegmentFiles::new(storage, SegmentFilesConfig::default());
        let started = Instant::now();
        let shard = Shard::open(ShardConfig::new(SHARD), &files)?;
        println!("shard opened in {:.2?}", started.elapsed());
        let started = Instant::now();
        let clock = || Timestamp::new(i64::try_from(since_epoch().as_millis()).unwrap_or(i64::MAX));
        let mut config = ReplicaConfig::new(SHARD, NodeId::new(BrokerId::new(1), 1), Arc::new(clock));
        config.begin = Begin::Form([config.node].into());
        let replica = Replica::start(config, wal.clone(), recovered_shard(&recovery, SHARD), shard).await?;
        println!("replica started in {:.2?}", started.elapsed());
        replica.wait_leading(Duration::from_secs(10)).await?;
        println!("leading after {:.2?}", started.elapsed());
        let topic = TopicId::from_slice(&[1; 16]).ok_or("16 bytes")?;
        let adopt = AdoptTopic {
            topic,
            version: 1,
            name: "bench".to_owned(),
            config: tidemill_controller::TopicConfig::default(),
            partitions: vec![PartitionId::new(0)],
            deleted: false,
        };
        replica.propose(Unit::AdoptTopic(adopt)).await?;
        let partition = TopicPartition::new(topic, PartitionId::new(0));
        let unknown =
            TopicPartition::new(TopicId::from_slice(&[2; 16]).ok_or("16 bytes")?, PartitionId::new(0));
        let config = CheckpointConfig::default();
        let (_, short_of_room) = tokio::sync::watch::channel(false);
        let driver = CheckpointDriver::start(
            config,
            wal.clone(),
            {
                let replica = replica.clone();
                move || vec![replica.clone()]
            },
            short_of_room,
        );
        Ok(Self { wal, replica, partition, unknown, driver: Some(driver) })
    }

    /// The next entry of the bare shard, which is purged as it goes.
    fn bare_append(&self, body: &Bytes, done: mpsc::Sender<()>) {
        let index = self.wal.range(BARE).last.map_or(1, |last| last.index.get() + 1);
        let id = EntryId { term: Term::new(1), leader_node: 1, index: LogIndex::new(index) };
        if index.is_multiple_of(256) {
            let purged = EntryId { index: LogIndex::new(index - 200), ..id };
            self.wal.applied(BARE, purged.index);
            self.wal.purge(BARE, purged, Box::new(|_| ()));
        }
        let entry = WalEntry { id, payload: body.clone().into() };
        let notify = move |result: Result<(), _>| {
            if result.is_ok() {
                let _gone = done.send(());
            }
        };
        self.wal.append(BARE, vec![entry], Box::new(notify));
    }

    fn bare_alone(&self, bytes: usize, leg: Duration, latencies: &mut Vec<Duration>) -> Result<(), Failure> {
        let body = batch(bytes)?;
        let end = Instant::now() + leg;
        while Instant::now() < end {
            let started = Instant::now();
            let (done, durable) = mpsc::channel();
            self.bare_append(&body, done);
            durable.recv()?;
            latencies.push(started.elapsed());
        }
        Ok(())
    }

    async fn alone(
        &self,
        partition: &TopicPartition,
        bytes: usize,
        leg: Duration,
        latencies: &mut Vec<Duration>,
    ) -> Result<(), Failure> {
        let (replica, partition, batch) = (self.replica.clone(), *partition, batch(bytes)?);
        let measured = tokio::spawn(async move {
            let mut measured = Vec::new();
            let end = Instant::now() + leg;
            while Instant::now() < end {
                let unit = Unit::Append { partition, batch: batch.clone(), leader_epoch: None };
                let started = Instant::now();
                replica.propose(unit).await?;
                measured.push(started.elapsed());
            }
            Ok::<_, Failure>(measured)
        });
        latencies.extend(measured.await??);
        Ok(())
    }

    fn bare_stream(&self, bytes: usize, window: usize, leg: Duration) -> Result<Rate, Failure> {
        let body = batch(bytes)?;
        let (done, durable) = mpsc::channel();
        let started = Instant::now();
        let (mut sent, mut acknowledged) = (0usize, 0usize);
        while started.elapsed() < leg {
            while sent - acknowledged < window {
                self.bare_append(&body, done.clone());
                sent += 1;
            }
            durable.recv()?;
            acknowledged += 1 + durable.try_iter().count();
        }
        let took = started.elapsed();
        durable.iter().take(sent - acknowledged).for_each(drop);
        Ok(Rate { units: acknowledged, bytes, entries: acknowledged as u64, took })
    }

    async fn stream(
        &self,
        partition: &TopicPartition,
        bytes: usize,
        window: usize,
        leg: Duration,
    ) -> Result<Rate, Failure> {
        let (replica, partition, batch) = (self.replica.clone(), *partition, batch(bytes)?);
        let streaming = tokio::spawn(async move {
            let first = replica.status().last_entry;
            let mut pending = VecDeque::with_capacity(window);
            let started = Instant::now();
            let mut units = 0;
            while started.elapsed() < leg {
                while pending.len() < window {
                    let unit = Unit::Append { partition, batch: batch.clone(), leader_epoch: None };
                    pending.push_back(replica.reserve(unit.bytes()).await?.submit(unit));
                }
                if let Some(oldest) = pending.pop_front() {
                    oldest.await?;
                    units += 1;
                }
            }
            let took = started.elapsed();
            for unit in pending {
                unit.await?;
            }
            let index = |id: Option<EntryId>| id.map_or(0, |id| id.index.get());
            let entries = index(replica.status().last_entry) - index(first);
            Ok::<_, Failure>(Rate { units, bytes, entries, took })
        });
        streaming.await?
    }
}

struct Rate {
    units: usize,
    bytes: usize,
    entries: u64,
    took: Duration,
}

impl std::fmt::Display for Rate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let seconds = self.took.as_secs_f64();
        let per_second = self.units as f64 / seconds;
        let megabytes = per_second * self.bytes as f64 / 1e6;
        write!(f, "{per_second:>10.0} {megabytes:>8.0} {:>10.0}", self.entries as f64 / seconds)
    }
}

fn report(name: &str, latencies: &mut [Duration]) {
    latencies.sort_unstable();
    let at = |share: f64| {
        let index = ((latencies.len() as f64 * share) as usize).min(latencies.len().saturating_sub(1));
        latencies.get(index).map_or(0.0, |latency| latency.as_secs_f64() * 1e6)
    };
    println!("{name:>32}            {:>8.0} {:>8.0}   of {}", at(0.5), at(0.99), latencies.len());
}

/// A batch of 1 KiB records, about `bytes` long.
fn batch(bytes: usize) -> Result<Bytes, Failure> {
    let mut builder = BatchBuilder::new(BuilderOptions::default());
    let value = vec![0xa5; 1000];
    for number in 0..(bytes >> 10).max(1) {
        let timestamp = Timestamp::new(i64::try_from(number)?);
        builder.append(timestamp, None, Some(&value), [])?;
    }
    Ok(builder.build()?)
}

fn since_epoch() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}
