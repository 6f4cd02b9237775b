use std::collections::{BTreeMap, HashSet};
use std::fmt;

use serde::Serialize;

use crate::ids::{RecordId, TopicPartition};

/// Findings of a kind kept in full; of more, only the number is kept.
pub const FINDINGS_PER_KIND_MAX: usize = 20;
/// Offsets and records that a finding names.
pub const NAMED_MAX: usize = 8;
/// Different findings of a kind that are told apart; behind them, repetitions are counted too.
const DISTINCT_PER_KIND_MAX: usize = 100_000;

macro_rules! kinds {
    ($($(#[doc = $doc:literal])+ $kind:ident = $name:literal,)*) => {
        /// What must not be.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
        pub enum Kind { $($(#[doc = $doc])+ #[serde(rename = $name)] $kind,)* }

        impl Kind {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$kind),*];

            /// Its name.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$kind => $name,)* }
            }
        }
    };
}

kinds! {
    /// Acknowledged, or read by somebody, and not there, though what lies behind it is.
    LostWrite = "lost-write",
    /// An idempotent producer's record at two offsets.
    Duplicate = "duplicate",
    /// Two records at one offset, by what was acknowledged and what was read.
    InconsistentOffsets = "inconsistent-offsets",
    /// Read, though its producer was told that it is not stored, or its transaction was aborted.
    AbortedRead = "aborted-read",
    /// Read by a reader of committed records before anybody asked to commit.
    PrecommittedRead = "precommitted-read",
    /// A producer's later record was acknowledged at a smaller offset.
    NonmonotonicSend = "nonmonotonic-send",
    /// A consumer went back between two polls, without having been sent there.
    NonmonotonicPoll = "nonmonotonic-poll",
    /// Offsets within a poll do not ascend.
    InternalNonmonotonicPoll = "internal-nonmonotonic-poll",
    /// Between two polls a consumer left records out.
    PollSkip = "poll-skip",
    /// Within a poll records are left out.
    InternalPollSkip = "internal-poll-skip",
    /// Given to a consumer whose filter leaves it out.
    UnwantedRead = "unwanted-read",
    /// Acknowledged, and not given to a consumer that read to the end.
    Unseen = "unseen",
    /// Acknowledged, or stored elsewhere, and not on this replica after things settled.
    MissingOnReplica = "missing-on-replica",
    /// Sealed segments of two replicas differ.
    SegmentsDiffer = "segments-differ",
    /// A record that nobody sent to this topic.
    NeverSent = "never-sent",
    /// A record with other bytes than were sent.
    Altered = "altered",
    /// A producer's records are stored in another order than they were sent in.
    Reordered = "reordered",
    /// Read elsewhere than it was acknowledged, or sent to.
    Misplaced = "misplaced",
    /// Acknowledged below what had been acknowledged before it was sent.
    RealTimeReversed = "real-time-reversed",
    /// A log's start went back.
    LogStartBack = "log-start-back",
    /// An offset without a record, where offsets have no gaps.
    OffsetGap = "offset-gap",
    /// A group's position is neither the last that was committed nor one tried since.
    GroupPosition = "group-position",
    /// A task's output differs from a model's.
    TaskOutput = "task-output",
    /// A task's state differs from a model's.
    TaskState = "task-state",
    /// A task stands where it can't, or not at the end.
    TaskPosition = "task-position",
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// One thing that must not be.
#[derive(Debug, Clone, Serialize)]
pub struct Finding {
    /// Of which kind.
    pub kind: Kind,
    /// In words.
    pub what: String,
    /// Where.
    pub partition: Option<TopicPartition>,
    /// At which offsets; the first of them.
    pub offsets: Vec<u64>,
    /// Which records; the first of them.
    pub records: Vec<RecordId>,
    /// Who was told so.
    pub processes: Vec<String>,
    /// In which transaction.
    pub transaction: Option<u64>,
    /// Of which consumer group.
    pub group: Option<String>,
    /// The events that show it.
    pub evidence: Vec<Evidence>,
}

/// An event of the history, as far as it concerns a finding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Evidence {
    /// The line of the history; its header is line 1.
    pub line: u64,
    /// What it says.
    pub text: String,
}

impl Finding {
    pub(crate) const fn new(kind: Kind, what: String) -> Self {
        Self {
            kind,
            what,
            partition: None,
            offsets: Vec::new(),
            records: Vec::new(),
            processes: Vec::new(),
            transaction: None,
            group: None,
            evidence: Vec::new(),
        }
    }

    pub(crate) fn at(mut self, partition: &TopicPartition, offsets: &[u64]) -> Self {
        self.partition = Some(partition.clone());
        self.offsets = offsets.iter().copied().take(NAMED_MAX).collect();
        self
    }

    pub(crate) fn records(mut self, records: &[RecordId]) -> Self {
        self.records = records.iter().copied().take(NAMED_MAX).collect();
        self
    }

    pub(crate) fn process(mut self, process: &str) -> Self {
        self.processes.push(process.to_owned());
        self
    }

    pub(crate) const fn transaction(mut self, transaction: u64) -> Self {
        self.transaction = Some(transaction);
        self
    }

    pub(crate) fn group(mut self, group: &str) -> Self {
        self.group = Some(group.to_owned());
        self
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind, self.what)?;
        for evidence in &self.evidence {
            write!(f, "\n    line {}: {}", evidence.line, evidence.text)?;
        }
        Ok(())
    }
}

/// What is found, as it is found.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    pub(crate) checks: u64,
    pub(crate) counts: BTreeMap<Kind, u64>,
    pub(crate) kept: Vec<Finding>,
    known: BTreeMap<Kind, HashSet<u64>>,
}

impl Findings {
    /// One check. Where it does not hold there is a finding, once for each `key` of its kind.
    pub(crate) fn check(&mut self, holds: bool, key: u64, finding: impl FnOnce() -> Finding) {
        self.checks += 1;
        if !holds {
            self.add(key, finding());
        }
    }

    pub(crate) fn add(&mut self, key: u64, finding: Finding) {
        let known = self.known.entry(finding.kind).or_default();
        if known.contains(&key) {
            return;
        }
        if known.len() < DISTINCT_PER_KIND_MAX {
            known.insert(key);
        }
        let count = self.counts.entry(finding.kind).or_default();
        *count += 1;
        if *count <= FINDINGS_PER_KIND_MAX as u64 {
            self.kept.push(finding);
        }
    }
}

/// A key of findings of a place.
pub(crate) const fn place_key(slot: u16, offset: u64) -> u64 {
    ((slot as u64) << 40) | offset
}
