//! The whole of it: set up, load, faults, calm, checks.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tidemill_client::messages::DeploymentStatus;
use tidemill_client::{Client, PartitionId, TopicPartition};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use super::check_log::check_log;
use super::check_readers::{check_positions, check_reader};
use super::check_replicas::check_replicas;
use super::check_segments::check_segments;
use super::check_tasks::{check_counts, check_routes};
use super::check_writes::check_writes;
use super::config::ChaosConfig;
use super::faults::FaultKind;
use super::findings::{Findings, ViolationKind};
use super::fires::Fires;
use super::fleet::{Fleet, rack};
use super::gather::{self, Ends};
use super::hashes::StateHashes;
use super::history::{Fate, Logged};
use super::killer::{self, kill_until};
use super::load::{DEVICES, DIRECT, DIRECT_PARTITIONS, ROUTED, ROUTED_PARTITIONS, TRIMMED, Topic, user_name};
use super::members::Members;
use super::producers::{Produced, Producing, Watch};
use super::readers::{Committed, Committing, Reading, Seen};
use super::recording::{FILTERED_READER, Recording};
use super::report::Report;
use super::setup::*;
use super::siege::Siege;
use crate::Outcome;
use crate::fixtures::Random;
use crate::waiting::eventually;

/// Until all that was sent has its outcome, tasks have caught up, readers have read to the end. Each.
const CALM_DEADLINE: Duration = Duration::from_secs(150);
/// Between two lines of progress.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(10);
/// What tasks should not do after a start, they do within this time.
const QUIET: Duration = Duration::from_secs(2);
const GROUP: &str = "chaos-reader";
/// Where one of the readers of a cluster reads, whoever leads.
const NEAR_RACK: &str = "rack-1";
/// In the log of a broker that found its log damaged.
const RETIRED: &str = "it is retired, and comes back as a new one";

/// Runs chaos and checks what is left.
///
/// # Errors
/// The run itself failed: a broker does not start any more, say. What the checks find is in the report.
pub async fn run(config: &ChaosConfig) -> Outcome<Report> {
    let mut fleet = Fleet::start(config).await?;
    let mut findings = Findings::default();
    let outcome = run_on(config, &mut fleet, &mut findings).await;
    match outcome {
        Ok(mut report) => {
            if !report.is_good() {
                report.kept = Some(fleet.keep());
            }
            Ok(report)
        }
        Err(error) => {
            let kept = fleet.keep();
            let found: Vec<String> = findings.violations().iter().map(ToString::to_string).collect();
            let found = if found.is_empty() {
                String::new()
            } else {
                format!("\nfound before that:\n{}", found.join("\n"))
            };
            Err(format!("{error}{found}\n(seed {}; data and logs are in {})", config.seed, kept.display())
                .into())
        }
    }
}

async fn run_on(config: &ChaosConfig, fleet: &mut Fleet, findings: &mut Findings) -> Outcome<Report> {
    let client = fleet.client().await?;
    fleet.settled(&client).await?;
    set_up(&client).await?;
    fleet.settled(&client).await?;
    let recording = Recording::create(&fleet.directory(), config.seed)?;
    let load = Load::start(config, fleet, &recording).await?;
    let mut fires = under_fire(config, fleet, &client, (&load.watch, &recording), findings).await?;
    fleet.settled(&client).await?;
    check_writes(&load.watch, findings).await;
    let loaded = load.finish(&client).await?;
    let before = Ends::now(&client).await?;
    // What is checked is what is on the disks.
    fleet.begin_anew(findings).await?;
    fleet.settled(&client).await?;
    tokio::time::sleep(QUIET).await;
    let ends = Ends::steady(&client).await?.further(&before);
    fires.retired = fleet.logs()?.iter().map(|(_, log)| log.matches(RETIRED).count() as u64).sum();
    check(config, fleet, &client, &ends, &recording, (fires, findings), loaded).await
}

async fn under_fire(
    config: &ChaosConfig,
    fleet: &mut Fleet,
    client: &Client,
    (watch, recording): (&Arc<Watch>, &Recording),
    findings: &mut Findings,
) -> Outcome<Fires> {
    let begun = Instant::now();
    let mut random = Random::new(config.seed);
    let mut said = begun;
    let progress = |fires: &Fires| {
        if config.verbose && said.elapsed() >= PROGRESS_INTERVAL {
            said = Instant::now();
            let seconds = begun.elapsed().as_secs();
            let acknowledged = watch.acknowledged.load(Ordering::Relaxed);
            println!(
                "{seconds:5} s  {:4} faults  {:4} kills  {acknowledged:9} records acknowledged",
                fires.total(),
                fires.kills
            );
        }
    };
    let deadline = begun + config.duration;
    match fleet {
        Fleet::One(broker) => {
            let kinds = config.wanted(&killer::FAULTS);
            if kinds.is_empty() {
                return Err("of these faults none is for a broker that is alone".into());
            }
            let mut fires = kill_until(deadline, broker, &kinds, &mut random, findings, progress).await?;
            let others = config.named_beside(&killer::FAULTS).into_iter();
            fires.skipped = others.map(|kind| (kind, killer::WHY_NO_OTHERS.to_owned())).collect();
            Ok(fires)
        }
        Fleet::Several(several) => {
            let siege = Siege {
                several,
                client: client.clone(),
                random,
                kinds: config.wanted(&FaultKind::ALL),
                watch: Arc::clone(watch),
                recording: recording.clone(),
                fires: Fires::default(),
                findings,
                hashes: StateHashes::default(),
                weather_until: None,
                members: Members::default(),
            };
            siege.until(deadline, progress).await
        }
    }
}

/// A reader that reads all the time.
#[derive(Debug, Clone, Copy)]
struct Reader {
    /// As the history calls it.
    name: &'static str,
    topic: Topic,
    is_filtered: bool,
    rack: Option<&'static str>,
}

impl Reader {
    /// Those of a run.
    fn all(config: &ChaosConfig) -> Vec<Self> {
        let at_leaders = |name, topic, is_filtered| Self { name, topic, is_filtered, rack: None };
        let mut readers = vec![
            at_leaders("direct-plain", Topic::Direct, false),
            at_leaders("routed-plain", Topic::Routed, false),
            at_leaders(FILTERED_READER, Topic::Routed, true),
            at_leaders("trimmed-plain", Topic::Trimmed, false),
        ];
        if config.brokers > 1 {
            debug_assert_eq!(rack(1), NEAR_RACK);
            let near = Self { rack: Some(NEAR_RACK), ..at_leaders("direct-near", Topic::Direct, false) };
            readers.push(near);
        }
        readers
    }
}

/// Everything that uses the brokers while they are under fire.
struct Load {
    producers: Vec<(Topic, JoinHandle<Outcome<Produced>>)>,
    readers: Vec<(Reader, JoinHandle<Outcome<Seen>>)>,
    committer: JoinHandle<Outcome<Committed>>,
    producing_stopped: watch::Sender<bool>,
    committing_stopped: watch::Sender<bool>,
    ends: Vec<watch::Sender<Option<Vec<i64>>>>,
    watch: Arc<Watch>,
}

/// What came of it.
struct Loaded {
    produced: Vec<(Topic, Produced)>,
    seen: Vec<(Reader, Seen)>,
    committed: Committed,
}

impl Load {
    async fn start(config: &ChaosConfig, fleet: &Fleet, recording: &Recording) -> Outcome<Self> {
        let (producing_stopped, stopped) = watch::channel(false);
        let watch = Arc::new(Watch::default());
        let client = fleet.client().await?;
        let mut producers = Vec::new();
        for (topic, count) in [
            (Topic::Direct, ChaosConfig::DIRECT_PRODUCERS),
            (Topic::Routed, ChaosConfig::ROUTED_PRODUCERS),
            (Topic::Trimmed, ChaosConfig::TRIMMED_PRODUCERS),
        ] {
            for number in 0..count {
                let producing = Producing {
                    client: client.clone(),
                    seed: config.seed,
                    topic,
                    number,
                    rate: config.rate,
                    records_max: config.records_max,
                    stopped: stopped.clone(),
                    watch: Arc::clone(&watch),
                    recording: recording.clone(),
                };
                producers.push((topic, tokio::spawn(producing.run())));
            }
        }
        // Readers on a connection of their own, so that neither side waits for the other.
        let client = fleet.client().await?;
        let (committing_stopped, stopped) = watch::channel(false);
        let (mut readers, mut ends, mut committer) = (Vec::new(), Vec::new(), None);
        for reader in Reader::all(config) {
            let Reader { name, topic, is_filtered, rack } = reader;
            let (end, until) = watch::channel(None);
            ends.push(end);
            let (positions, position) = watch::channel(Vec::new());
            let reading = Reading {
                client: client.clone(),
                name,
                seed: config.seed,
                topic,
                is_filtered,
                rack,
                recording: recording.clone(),
                ends: until,
                positions,
            };
            readers.push((reader, tokio::spawn(reading.run())));
            if committer.is_none() {
                let committing = Committing {
                    client: client.clone(),
                    group: GROUP,
                    topic,
                    positions: position,
                    stopped: stopped.clone(),
                    recording: recording.clone(),
                };
                committer = Some(tokio::spawn(committing.run()));
            }
        }
        let committer = committer.ok_or("there is no reader")?;
        Ok(Self { producers, readers, committer, producing_stopped, committing_stopped, ends, watch })
    }

    /// Lets everything come to its end, now that the brokers are left alone.
    async fn finish(self, client: &Client) -> Outcome<Loaded> {
        self.producing_stopped.send_replace(true);
        let mut produced = Vec::new();
        for (topic, producer) in self.producers {
            produced.push((topic, calm("a producer's outcomes", producer).await?));
        }
        let mut ends = Ends::now(client).await?;
        // Whoever is asked for the ends may be behind; where something was acknowledged, something is.
        for (topic, produced) in &produced {
            for fate in &produced.fates {
                if let Fate::Acknowledged { at: Some((partition, offset)) } = *fate {
                    ends.reach(topic.name(), partition, offset + 1);
                }
            }
        }
        at_the_end(client, COUNTER, ends.of(DIRECT)).await?;
        at_the_end(client, ROUTER, ends.of(ROUTED)).await?;
        for ((reader, _), end) in self.readers.iter().zip(&self.ends) {
            end.send_replace(Some(ends.of(reader.topic.name()).to_vec()));
        }
        let mut seen = Vec::new();
        for (reader, reading) in self.readers {
            seen.push((reader, calm("a reader's end", reading).await?));
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

/// Waits until each task of a hosted consumer has handled its partition to these ends, and what it emitted has arrived. Whoever is
/// asked may follow, and be behind; the ends are the leaders'.
async fn at_the_end(client: &Client, deployment: &str, ends: &[i64]) -> Outcome<()> {
    let what = format!("{deployment} at the end of its topic");
    eventually(&what, CALM_DEADLINE, async || {
        let seen = client.deployments().describe(deployment).await.ok()?;
        let stopped = seen.tasks.iter().find(|task| task.status() != DeploymentStatus::Running);
        if let Some(stopped) = stopped {
            return Some(Err(format!(
                "task {} of {deployment} stopped: {}",
                stopped.partition, stopped.reason
            )));
        }
        let is_there = |task: &tidemill_client::messages::TaskStatus| {
            let end = ends.get(task.partition as usize).copied().unwrap_or(0);
            task.outbox_bytes == 0 && task.positions.iter().all(|source| source.position >= end)
        };
        (seen.tasks.len() == ends.len() && seen.tasks.iter().all(is_there)).then_some(Ok(()))
    })
    .await??;
    Ok(())
}

async fn check(
    config: &ChaosConfig,
    fleet: &mut Fleet,
    client: &Client,
    ends: &Ends,
    recording: &Recording,
    (fires, findings): (Fires, &mut Findings),
    loaded: Loaded,
) -> Outcome<Report> {
    let direct = gather::log(client, config.seed, Topic::Direct, ends, findings).await?;
    let routed = gather::log(client, config.seed, Topic::Routed, ends, findings).await?;
    let trimmed = gather::log(client, config.seed, Topic::Trimmed, ends, findings).await?;
    let of = |topic: Topic| match topic {
        Topic::Direct => &direct,
        Topic::Routed => &routed,
        Topic::Trimmed => &trimmed,
    };
    let mut acknowledged = BTreeMap::new();
    for topic in Topic::ALL {
        let of_topic = loaded.produced.iter().filter(|(of, _)| *of == topic);
        let fates: Vec<Vec<Fate>> = of_topic.map(|(_, produced)| produced.fates.clone()).collect();
        check_log(topic.name(), of(topic), ends.starts_of(topic.name()), &fates, findings);
        let count = fates.iter().flatten().filter(|fate| **fate != Fate::Unknown).count();
        acknowledged.insert(topic.name(), count as u64);
    }
    for (kind, what) in loaded.produced.iter().flat_map(|(_, produced)| &produced.problems) {
        findings.check(false, *kind, || what.clone());
    }
    check_placement(&routed, findings);
    for (Reader { name, topic, is_filtered, .. }, seen) in &loaded.seen {
        findings.check(seen.stopped.is_none(), ViolationKind::Stopped, || {
            format!("reader {name}: {}", seen.stopped.as_deref().unwrap_or_default())
        });
        for (partition, (log, seen)) in (0u32..).zip(of(*topic).iter().zip(&seen.records)) {
            let passes = |record: &Logged| !is_filtered || record.device == FILTERED_DEVICE;
            // What was let go since it was read is not there to be compared.
            let start = ends.start_of(topic.name(), partition);
            let seen = &seen[seen.partition_point(|(offset, _)| *offset < start)..];
            check_reader(&format!("reader {name}"), partition, log, passes, seen, findings);
        }
    }
    check_commits(client, &loaded.committed, recording, findings).await?;
    let outputs = check_tasks(config, client, (&direct[..], &routed[..]), ends, findings).await?;
    // First what was damaged is mended: until then a client reads that elsewhere.
    check_segments(&fleet.data_dirs(), findings).await?;
    check_replicas(config, fleet, ends, recording, findings).await?;
    recording.check(findings).await?;
    fleet.check_lives(findings).await?;
    Ok(Report {
        seed: config.seed,
        brokers: config.brokers,
        require_all: config.require_all,
        duration: config.duration,
        fires,
        direct_acknowledged: acknowledged.get(Topic::Direct.name()).copied().unwrap_or(0),
        routed_acknowledged: acknowledged.get(Topic::Routed.name()).copied().unwrap_or(0),
        trimmed_acknowledged: acknowledged.get(Topic::Trimmed.name()).copied().unwrap_or(0),
        let_go: ends.starts_of(TRIMMED).iter().map(|start| start.unsigned_abs()).sum(),
        resent_batches: loaded.produced.iter().map(|(_, produced)| produced.resent_batches).sum(),
        reconnects: loaded.seen.iter().map(|(_, seen)| seen.reconnects).sum(),
        commits: loaded.committed.commits,
        outputs,
        findings: std::mem::take(findings),
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

async fn check_commits(
    client: &Client,
    committed: &Committed,
    recording: &Recording,
    findings: &mut Findings,
) -> Outcome<()> {
    let topic = client.topic_metadata(Topic::Direct.name()).await?;
    let positions = client.groups().positions(GROUP).await?;
    let found: Vec<Option<i64>> = (0..DIRECT_PARTITIONS)
        .map(|partition| {
            let partition = TopicPartition::new(topic.id, PartitionId::new(partition));
            positions.get(&partition).map(|offset| offset.get())
        })
        .collect();
    for (partition, position) in (0u32..).zip(&found) {
        recording.position(GROUP, Topic::Direct, partition, *position);
    }
    check_positions(GROUP, &committed.acknowledged, &committed.tried, &found, findings);
    Ok(())
}

/// Both tasks against a replay of the log; answers how many records they emitted.
async fn check_tasks(
    config: &ChaosConfig,
    client: &Client,
    (direct, routed): (&[Vec<Logged>], &[Vec<Logged>]),
    ends: &Ends,
    findings: &mut Findings,
) -> Outcome<u64> {
    let counts = gather::counts(client, COUNTS, ends, findings).await?;
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
    let mut outputs = gather::routed(client, config.seed, PHONES, ends, findings).await?;
    outputs.extend(gather::routed(client, config.seed, OTHERS, ends, findings).await?);
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
