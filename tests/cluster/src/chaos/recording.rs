//! The history of a run, as clients see it, for the checker of histories.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use tidemill_checker::{
    Checker, Event, Header, RecordId as Recorded, Recorder, Run, Span, TopicPartition, check_file,
};

use super::config::ChaosConfig;
use super::findings::{Findings, ViolationKind};
use super::gather::Ends;
use super::history::{Logged, RecordId};
use super::load::{Topic, device_of};
use super::setup::FILTERED_DEVICE;
use crate::Outcome;

/// The reader with a filter, as the history calls it.
pub(super) const FILTERED_READER: &str = "routed-filtered";
/// Records of a replica in one event.
const STORED_MAX: usize = 1_000;

/// Writes the history. Clones write to the same.
#[derive(Clone)]
pub(super) struct Recording {
    recorder: Recorder,
    path: PathBuf,
    seed: u64,
}

impl Recording {
    pub(super) fn create(directory: &Path, seed: u64) -> io::Result<Self> {
        let path = directory.join("history.jsonl");
        let recorder = Recorder::create(&path, &Header::new("chaos", seed))?;
        for topic in Topic::ALL {
            recorder.record(&Event::Topic {
                topic: topic.name().to_owned(),
                partitions: topic.partitions(),
                dense: true,
                compacted: false,
            });
        }
        Ok(Self { recorder, path, seed })
    }

    pub(super) fn note(&self, text: String) {
        self.recorder.record(&Event::Note { text });
    }

    pub(super) fn producer(&self, topic: Topic, number: u32) {
        self.recorder.record(&Event::Producer {
            producer: recorded(topic, RecordId { producer: number, sequence: 0 }).producer,
            process: format!("{}-{number}", topic.name()),
            topic: topic.name().to_owned(),
            idempotent: true,
        });
    }

    pub(super) fn send(&self, topic: Topic, id: RecordId, partition: Option<u32>) {
        self.recorder.record(&Event::Send { records: span(topic, id), partition, transaction: None });
    }

    pub(super) fn sent(&self, topic: Topic, id: RecordId, at: Option<(u32, i64)>) {
        self.recorder.record(&Event::Sent {
            records: span(topic, id),
            partition: at.map(|(partition, _)| partition),
            offset: at.map(|(_, offset)| offset.unsigned_abs()),
            duplicate: false,
        });
    }

    /// It is surely not stored.
    pub(super) fn failed(&self, topic: Topic, id: RecordId) {
        self.recorder.record(&Event::Failed { records: span(topic, id) });
    }

    pub(super) fn unknown(&self, topic: Topic, id: RecordId) {
        self.recorder.record(&Event::Unknown { records: span(topic, id) });
    }

    pub(super) fn consumer(&self, process: &str, gaps: bool) {
        let process = process.to_owned();
        self.recorder.record(&Event::Consumer { process, gaps, committed: false });
    }

    pub(super) fn poll(&self, process: &str, topic: Topic, partition: u32, offset: i64, id: RecordId) {
        self.recorder.record(&Event::Poll {
            process: process.to_owned(),
            partition: TopicPartition::new(topic.name(), partition),
            runs: vec![Run::one(offset.unsigned_abs(), recorded(topic, id))],
            damaged: Vec::new(),
            next: None,
        });
    }

    /// A consumer has read to the end, which is there.
    pub(super) fn drained(&self, process: &str, topic: Topic, partition: u32, next: i64) {
        let partition = TopicPartition::new(topic.name(), partition);
        self.recorder.record(&Event::Poll {
            process: process.to_owned(),
            partition: partition.clone(),
            runs: Vec::new(),
            damaged: Vec::new(),
            next: Some(next.unsigned_abs()),
        });
        self.recorder.record(&Event::Drained { process: process.to_owned(), partition });
    }

    pub(super) fn commit(&self, group: &str, topic: Topic, positions: &[i64]) {
        for (partition, offset) in of_partitions(topic, positions) {
            self.recorder.record(&Event::Commit { group: group.to_owned(), partition, offset });
        }
    }

    pub(super) fn committed(&self, group: &str, topic: Topic, positions: &[i64]) {
        for (partition, offset) in of_partitions(topic, positions) {
            self.recorder.record(&Event::Committed { group: group.to_owned(), partition, offset });
        }
    }

    pub(super) fn position(&self, group: &str, topic: Topic, partition: u32, offset: Option<i64>) {
        self.recorder.record(&Event::Position {
            group: group.to_owned(),
            partition: TopicPartition::new(topic.name(), partition),
            offset: offset.map(i64::unsigned_abs),
        });
    }

    /// What a broker's replicas of these partitions of a topic hold, and where they start and end; `log` is of all partitions.
    pub(super) fn replicas(
        &self,
        broker: u32,
        topic: Topic,
        log: &[Vec<Logged>],
        ends: &Ends,
        partitions: &BTreeSet<u32>,
    ) {
        let all = (0u32..).zip(log).zip(ends.of(topic.name()));
        for ((number, records), end) in all.filter(|((number, _), _)| partitions.contains(number)) {
            let partition = TopicPartition::new(topic.name(), number);
            let log_start = ends.start_of(topic.name(), number);
            let end = records.last().map_or(log_start, |record| record.offset + 1).max(*end).unsigned_abs();
            self.recorder.record(&Event::Replica {
                broker,
                partition: partition.clone(),
                log_start: log_start.unsigned_abs(),
                end,
                segments: Vec::new(),
            });
            for some in records.chunks(STORED_MAX) {
                let records =
                    some.iter().map(|record| (record.offset.unsigned_abs(), recorded(topic, record.id)));
                self.recorder.record(&Event::Stored {
                    broker,
                    partition: partition.clone(),
                    runs: Run::gather(records),
                    damaged: Vec::new(),
                });
            }
        }
    }

    /// Has the history checked; what is found joins the other findings.
    pub(super) async fn check(&self, findings: &mut Findings) -> Outcome<()> {
        self.recorder.finish()?;
        let (path, seed) = (self.path.clone(), self.seed);
        let checking = tokio::task::spawn_blocking(move || {
            let passes = move |id: Recorded| passes(seed, id);
            check_file(&path, Checker::new().with_filter(FILTERED_READER, passes))
        });
        let report = checking.await??;
        let (found, first) = (report.counts.values().sum::<u64>(), report.findings.len() as u64);
        findings.add(report.checks.saturating_sub(found), found.saturating_sub(first));
        for finding in &report.findings {
            findings.check(false, ViolationKind::History, || finding.to_string());
        }
        Ok(())
    }
}

/// Whether the filtered reader's filter passes a record of the history.
fn passes(seed: u64, id: Recorded) -> bool {
    let number = id.producer.checked_sub(ChaosConfig::DIRECT_PRODUCERS);
    let id = number.zip(u32::try_from(id.sequence).ok());
    id.is_some_and(|(producer, sequence)| {
        device_of(seed, Topic::Routed, RecordId { producer, sequence }) == FILTERED_DEVICE
    })
}

/// In a history all producers are numbered together.
fn recorded(topic: Topic, id: RecordId) -> Recorded {
    let before = match topic {
        Topic::Direct => 0,
        Topic::Routed => ChaosConfig::DIRECT_PRODUCERS,
        Topic::Trimmed => ChaosConfig::DIRECT_PRODUCERS + ChaosConfig::ROUTED_PRODUCERS,
    };
    Recorded::new(before + id.producer, id.sequence.into())
}

fn span(topic: Topic, id: RecordId) -> Span {
    Span::one(recorded(topic, id))
}

fn of_partitions(topic: Topic, positions: &[i64]) -> impl Iterator<Item = (TopicPartition, u64)> {
    (0u32..)
        .zip(positions)
        .map(move |(partition, offset)| (TopicPartition::new(topic.name(), partition), offset.unsigned_abs()))
}
