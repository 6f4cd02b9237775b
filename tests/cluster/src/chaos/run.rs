//! The whole of it: set up, load, kills, calm, checks.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tidemill_client::{Client, PartitionId, TopicPartition};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use super::check_log::check_log;
use super::check_readers::{check_positions, check_reader};
use super::check_tasks::{check_counts, check_routes};
use super::config::ChaosConfig;
use super::findings::{Findings, ViolationKind};
use super::gather;
use super::history::{Fate, Logged};
use super::killer::{Kills, kill_until};
use super::load::{DEVICES, DIRECT_PARTITIONS, ROUTED_PARTITIONS, Topic, user_name};
use super::producers::{Produced, Producing};
use super::readers::{Committed, Committing, Reading, Seen};
use super::report::Report;
use super::setup::*;
use crate::fixtures::Random;
use crate::waiting::caught_up;
use crate::{BrokerOptions, Outcome, TestBroker};

/// Until all that was sent has its outcome, tasks have caught up, readers have read to the end. Each.
const CALM_DEADLINE: Duration = Duration::from_secs(150);
/// Between two lines of progress.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(10);
const GROUP: &str = "chaos-reader";

/// Runs chaos and checks what is left.
///
/// # Errors
/// The run itself failed: the broker does not start any more, say. What the checks find is in the report.
pub async fn run(config: &ChaosConfig) -> Outcome<Report> {
    let mut broker = TestBroker::start(options(config)).await?;
    let outcome = run_on(config, &mut broker).await;
    match outcome {
        Ok(mut report) => {
            if !report.is_good() {
                report.kept = Some(broker.keep());
            }
            Ok(report)
        }
        Err(error) => {
            let kept = broker.keep();
            Err(format!("{error}\n(seed {}; data and log are in {})", config.seed, kept.display()).into())
        }
    }
}

/// Small files and frequent checkpoints: a kill should find every kind of work under way.
fn options(config: &ChaosConfig) -> BrokerOptions {
    let options = BrokerOptions::default()
        .set("wal.segment_bytes", 4 << 20)
        .set("wal.bytes_max", 32 << 20)
        .set("storage.checkpoint_bytes", 512 << 10);
    match &config.directory {
        Some(directory) => options.directory(directory),
        None => options,
    }
}

async fn run_on(config: &ChaosConfig, broker: &mut TestBroker) -> Outcome<Report> {
    let client = broker.client().await?;
    set_up(&client).await?;
    let load = Load::start(config, broker).await?;
    let kills = under_fire(config, broker, &load.acknowledged).await?;
    let loaded = load.finish(&client).await?;
    // What is checked is what is on the disk.
    broker.kill().await?;
    broker.restart().await?;
    check(config, &client, kills, loaded).await
}

async fn under_fire(
    config: &ChaosConfig,
    broker: &mut TestBroker,
    acknowledged: &AtomicU64,
) -> Outcome<Kills> {
    let begun = Instant::now();
    let mut random = Random::new(config.seed);
    let mut said = begun;
    let progress = |kills: &Kills| {
        if config.verbose && said.elapsed() >= PROGRESS_INTERVAL {
            said = Instant::now();
            let (seconds, acknowledged) = (begun.elapsed().as_secs(), acknowledged.load(Ordering::Relaxed));
            println!("{seconds:5} s  {:4} kills  {acknowledged:9} records acknowledged", kills.total());
        }
    };
    Ok(kill_until(begun + config.duration, broker, &mut random, progress).await?)
}

/// Everything that uses the broker while it is killed.
struct Load {
    producers: Vec<(Topic, JoinHandle<Outcome<Produced>>)>,
    readers: Vec<(Topic, bool, JoinHandle<Outcome<Seen>>)>,
    committer: JoinHandle<Outcome<Committed>>,
    producing_stopped: watch::Sender<bool>,
    committing_stopped: watch::Sender<bool>,
    ends: BTreeMap<u32, watch::Sender<Option<Vec<i64>>>>,
    acknowledged: Arc<AtomicU64>,
}

/// What came of it.
struct Loaded {
    produced: Vec<(Topic, Produced)>,
    seen: Vec<(Topic, bool, Seen)>,
    committed: Committed,
}

impl Load {
    async fn start(config: &ChaosConfig, broker: &TestBroker) -> Outcome<Self> {
        let (producing_stopped, stopped) = watch::channel(false);
        let acknowledged = Arc::new(AtomicU64::new(0));
        let client = broker.client().await?;
        let mut producers = Vec::new();
        for (topic, count) in
            [(Topic::Direct, ChaosConfig::DIRECT_PRODUCERS), (Topic::Routed, ChaosConfig::ROUTED_PRODUCERS)]
        {
            for number in 0..count {
                let producing = Producing {
                    client: client.clone(),
                    seed: config.seed,
                    topic,
                    number,
                    rate: config.rate,
                    records_max: config.records_max,
                    stopped: stopped.clone(),
                    acknowledged: Arc::clone(&acknowledged),
                };
                producers.push((topic, tokio::spawn(producing.run())));
            }
        }
        // Readers on a connection of their own, so that neither side waits for the other.
        let client = broker.client().await?;
        let (committing_stopped, stopped) = watch::channel(false);
        let (mut readers, mut ends, mut committer) = (Vec::new(), BTreeMap::new(), None);
        for (number, (topic, is_filtered)) in
            (0u32..).zip([(Topic::Direct, false), (Topic::Routed, false), (Topic::Routed, true)])
        {
            let (end, until) = watch::channel(None);
            ends.insert(number, end);
            let (positions, position) = watch::channel(Vec::new());
            let reading = Reading {
                client: client.clone(),
                seed: config.seed,
                topic,
                is_filtered,
                ends: until,
                positions,
            };
            readers.push((topic, is_filtered, tokio::spawn(reading.run())));
            if committer.is_none() {
                let (client, stopped) = (client.clone(), stopped.clone());
                let committing = Committing { client, group: GROUP, topic, positions: position, stopped };
                committer = Some(tokio::spawn(committing.run()));
            }
        }
        let committer = committer.ok_or("there is no reader")?;
        Ok(Self { producers, readers, committer, producing_stopped, committing_stopped, ends, acknowledged })
    }

    /// Lets everything come to its end, now that the broker is left alone.
    async fn finish(self, client: &Client) -> Outcome<Loaded> {
        self.producing_stopped.send_replace(true);
        let mut produced = Vec::new();
        for (topic, producer) in self.producers {
            produced.push((topic, calm("a producer's outcomes", producer).await?));
        }
        caught_up(client, COUNTER, DIRECT_PARTITIONS as usize, CALM_DEADLINE).await?;
        caught_up(client, ROUTER, ROUTED_PARTITIONS as usize, CALM_DEADLINE).await?;
        for ((topic, ..), end) in self.readers.iter().zip(self.ends.values()) {
            let description = client.topics().describe(topic.name()).await?;
            end.send_replace(Some(
                description.partitions.iter().map(|status| status.high_watermark).collect(),
            ));
        }
        let mut seen = Vec::new();
        for (topic, is_filtered, reader) in self.readers {
            seen.push((topic, is_filtered, calm("a reader's end", reader).await?));
        }
        self.committing_stopped.send_replace(true);
        let committed = calm("the last commit", self.committer).await?;
        Ok(Loaded { produced, seen, committed })
    }
}

async fn calm<T>(what: &str, task: JoinHandle<Outcome<T>>) -> Outcome<T> {
    timeout(CALM_DEADLINE, task)
        .await
        .map_err(|_| format!("{what} did not come within {CALM_DEADLINE:?}"))??
}

async fn check(config: &ChaosConfig, client: &Client, kills: Kills, loaded: Loaded) -> Outcome<Report> {
    let mut findings = Findings::default();
    let direct = gather::log(client, config.seed, Topic::Direct, &mut findings).await?;
    let routed = gather::log(client, config.seed, Topic::Routed, &mut findings).await?;
    let of = |topic: Topic| if topic == Topic::Direct { &direct } else { &routed };
    let mut acknowledged = BTreeMap::new();
    for topic in [Topic::Direct, Topic::Routed] {
        let of_topic = loaded.produced.iter().filter(|(of, _)| *of == topic);
        let fates: Vec<Vec<Fate>> = of_topic.map(|(_, produced)| produced.fates.clone()).collect();
        check_log(topic.name(), of(topic), &fates, &mut findings);
        let count = fates.iter().flatten().filter(|fate| **fate != Fate::Unknown).count();
        acknowledged.insert(topic.name(), count as u64);
    }
    for (kind, what) in loaded.produced.iter().flat_map(|(_, produced)| &produced.problems) {
        findings.check(false, *kind, || what.clone());
    }
    check_placement(&routed, &mut findings);
    for (topic, is_filtered, seen) in &loaded.seen {
        let name = format!("reader of {}{}", topic.name(), if *is_filtered { " with a filter" } else { "" });
        for (partition, (log, seen)) in (0u32..).zip(of(*topic).iter().zip(&seen.records)) {
            let passes = |record: &Logged| !is_filtered || record.device == FILTERED_DEVICE;
            check_reader(&name, partition, log, passes, seen, &mut findings);
        }
    }
    check_commits(client, &loaded.committed, &mut findings).await?;
    let outputs = check_tasks(config, client, &direct, &routed, &mut findings).await?;
    Ok(Report {
        seed: config.seed,
        duration: config.duration,
        kills,
        direct_acknowledged: acknowledged.get(Topic::Direct.name()).copied().unwrap_or(0),
        routed_acknowledged: acknowledged.get(Topic::Routed.name()).copied().unwrap_or(0),
        resent_batches: loaded.produced.iter().map(|(_, produced)| produced.resent_batches).sum(),
        reconnects: loaded.seen.iter().map(|(.., seen)| seen.reconnects).sum(),
        commits: loaded.committed.commits,
        outputs,
        findings,
        kept: None,
    })
}

/// The partitioner places by the user, so a user's records lie in one partition: the one of Kafka's hash.
fn check_placement(routed: &[Vec<Logged>], findings: &mut Findings) {
    for (partition, records) in (0u32..).zip(routed) {
        for record in records {
            let expected = place(&user_name(record.user), ROUTED_PARTITIONS);
            findings.check(expected == partition, ViolationKind::Misplaced, || {
                format!("{} lies in partition {partition}, and belongs into {expected}", record.id)
            });
        }
    }
}

fn place(key: &str, partitions: u32) -> u32 {
    tidemill_protocol::partitioner::partition_for_key(key.as_bytes(), partitions).get()
}

async fn check_commits(client: &Client, committed: &Committed, findings: &mut Findings) -> Outcome<()> {
    let topic = client.topic_metadata(Topic::Direct.name()).await?;
    let positions = client.groups().positions(GROUP).await?;
    let found: Vec<Option<i64>> = (0..DIRECT_PARTITIONS)
        .map(|partition| {
            let partition = TopicPartition::new(topic.id, PartitionId::new(partition));
            positions.get(&partition).map(|offset| offset.get())
        })
        .collect();
    check_positions(GROUP, &committed.acknowledged, &committed.tried, &found, findings);
    Ok(())
}

/// Both tasks against a replay of the log; answers how many records they emitted.
async fn check_tasks(
    config: &ChaosConfig,
    client: &Client,
    direct: &[Vec<Logged>],
    routed: &[Vec<Logged>],
    findings: &mut Findings,
) -> Outcome<u64> {
    let counts = gather::counts(client, COUNTS, findings).await?;
    let mut emitted: u64 = counts.iter().map(|counts| counts.len() as u64).sum();
    for (partition, records) in (0u32..).zip(direct) {
        let source: Vec<u32> = records.iter().map(|record| record.song).collect();
        // A song is of one partition, and its counts lie in one partition of the target.
        let of_task = counts.iter().flatten().filter(|(song, _)| song / 1_000 == partition);
        let outputs: Vec<(u32, u64)> = of_task.copied().collect();
        let state = gather::totals(client, COUNTER, partition).await?;
        check_counts(&format!("{COUNTER}, task {partition}"), &source, &outputs, &state, findings);
    }
    let source: Vec<Vec<_>> = routed
        .iter()
        .map(|records| records.iter().map(|record| (record.id, target_of(record))).collect())
        .collect();
    let mut outputs = gather::routed(client, config.seed, PHONES, findings).await?;
    outputs.extend(gather::routed(client, config.seed, OTHERS, findings).await?);
    emitted += outputs.values().map(|ids| ids.len() as u64).sum::<u64>();
    check_routes(ROUTER, &source, &outputs, findings);
    Ok(emitted)
}

/// Where `route-by-field` must send a record.
fn target_of(record: &Logged) -> (String, u32) {
    let key = user_name(record.user);
    if record.device == 0 {
        debug_assert_eq!(DEVICES[0], "phone");
        (PHONES.to_owned(), place(&key, PHONES_PARTITIONS))
    } else {
        (OTHERS.to_owned(), place(&key, OTHERS_PARTITIONS))
    }
}
