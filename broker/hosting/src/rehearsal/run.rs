//! What a run shows.

use std::collections::BTreeMap;
use std::ops::Range;

use bytes::Bytes;
use tidemill_protocol::Timestamp;

use super::record::PlainRecord;
use crate::failure::CallFailure;
use crate::logs::LogPage;
use crate::meter::Cost;

/// One run of a plugin over the records.
#[derive(Debug, Clone, Default)]
pub struct Run {
    /// One per record, in order; of a run that failed those before the failure.
    pub verdicts: Vec<Verdict>,
    /// Every call whose answer counted, in order.
    pub calls: Vec<RehearsedCall>,
    /// Of the batches that went in.
    pub bytes_in: u64,
    /// Of the batches that came out: of a filter what passes, of a consumer what it emits.
    pub bytes_out: u64,
    /// What a consumer emitted, in order.
    pub emitted: Vec<EmittedRecord>,
    /// Timers that fired, in order.
    pub fired: Vec<FiredTimer>,
    /// A consumer's keyed state at the end.
    pub entries: Vec<(Bytes, Bytes)>,
    /// Timers that are set at the end.
    pub timers: Vec<(Bytes, Timestamp)>,
    /// What the plugin logged. Kept of first runs.
    pub log: LogPage,
    /// The deployment's counters. Kept of first runs.
    pub counters: BTreeMap<String, u64>,
    /// What went wrong first.
    pub failure: Option<RunFailure>,
}

/// What became of one record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// The plugin's answer.
    pub answer: Answer,
    /// Counts in the run's calls.
    pub call: usize,
}

/// A plugin's answer to one record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// A partitioner: there.
    Placed(u32),
    /// A partitioner: anywhere.
    PlacedAnywhere,
    /// A filter: it passes as it is.
    Kept,
    /// A filter: it does not pass.
    Dropped,
    /// A filter: it passes with other contents.
    Replaced(PlainRecord),
    /// A consumer has handled it.
    Handled,
    /// Refused, for this reason.
    Rejected(String),
}

/// A call that was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RehearsedCall {
    /// The records that it answered for; none where timers fired. By their numbers.
    pub records: Range<usize>,
    /// The timers that it was given.
    pub timers: usize,
    /// The log's time.
    pub now: Timestamp,
    /// What it cost.
    pub cost: Cost,
}

/// A record that a consumer emitted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EmittedRecord {
    /// Counts in the plan's targets.
    pub target: usize,
    /// Where the target's partitioner put it.
    pub partition: u32,
    /// The record.
    pub record: PlainRecord,
    /// Counts in the run's calls.
    pub call: usize,
}

/// A timer that fired.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FiredTimer {
    /// Its key.
    pub key: Bytes,
    /// When it was to fire.
    pub at: Timestamp,
    /// Counts in the run's calls.
    pub call: usize,
}

/// A call that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunFailure {
    /// Over what.
    pub at: FailedAt,
    /// How.
    pub failure: CallFailure,
}

/// What a call failed over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FailedAt {
    /// This record, alone in its call.
    Record(usize),
    /// These records together; fewer of them do not fail.
    Records(Range<usize>),
    /// The timer of this key.
    Timer(Bytes),
    /// Several timers together.
    Timers(usize),
}

impl Run {
    /// The last record that a call, or one before it, answered for.
    #[must_use]
    pub fn last_record_of(&self, call: usize) -> Option<usize> {
        let calls = self.calls.get(..=call).unwrap_or(&self.calls);
        let with_records = calls.iter().rev().find(|call| !call.records.is_empty())?;
        Some(with_records.records.end - 1)
    }

    /// What all calls cost: times added up, and the most memory.
    #[must_use]
    pub fn cost(&self) -> Cost {
        self.calls.iter().fold(Cost::default(), |sum, call| Cost {
            wall: sum.wall + call.cost.wall,
            cpu: sum.cpu + call.cost.cpu,
            memory_bytes: sum.memory_bytes.max(call.cost.memory_bytes),
        })
    }

    /// A call was answered.
    pub(super) fn answered(&mut self, records: Range<usize>, timers: usize, now: Timestamp, cost: Cost) {
        self.calls.push(RehearsedCall { records, timers, now, cost });
    }

    /// A call failed; the first one is what is told.
    pub(super) fn failed(&mut self, at: FailedAt, failure: CallFailure) {
        self.failure.get_or_insert(RunFailure { at, failure });
    }
}
