//! What a plugin's test came to, in words.

use std::path::Path;

use tidemill_hosting::{
    Answer, Cause, CheckedUpload, Difference, DifferenceAt, EmittedRecord, FailedAt, PlainRecord, PluginKind,
    Rehearsal, Rehearsed, Run, RunFailure,
};

use crate::error::CliError;
use crate::text;

/// Characters of a record's part that an error shows.
const PART_CHARS_MAX: usize = 80;

/// A test, and what came of it.
pub(super) struct Report<'a> {
    pub(super) rehearsal: &'a Rehearsal,
    pub(super) rehearsed: &'a Rehearsed,
    pub(super) checked: &'a CheckedUpload,
    pub(super) component: &'a Path,
}

impl Report<'_> {
    /// Good, or the error that says what is not.
    pub(super) fn outcome(&self) -> Result<(), CliError> {
        if let Some(failure) = &self.rehearsed.first.failure {
            return Err(CliError::Failed(self.failure(failure)));
        }
        match &self.rehearsed.difference {
            Some(difference) => Err(CliError::Differs(self.difference(difference))),
            None => Ok(()),
        }
    }

    /// `ok`, `failed` or `differs`.
    pub(super) fn outcome_name(&self) -> &'static str {
        match (&self.rehearsed.first.failure, &self.rehearsed.difference) {
            (Some(_), _) => "failed",
            (None, Some(_)) => "differs",
            (None, None) => "ok",
        }
    }

    pub(super) fn target_name(&self, emitted: &EmittedRecord) -> &str {
        self.rehearsal.plugin.targets.get(emitted.target).map_or("?", String::as_str)
    }

    /// A call that failed, with what it failed over.
    pub(super) fn failure(&self, failure: &RunFailure) -> String {
        format!("{}: {}", self.failed_at(&failure.at), failure.failure.message)
    }

    fn failed_at(&self, at: &FailedAt) -> String {
        match at {
            FailedAt::Record(record) => self.record(*record),
            FailedAt::Records(records) => format!(
                "records {} to {} in one call (in smaller calls they do not fail)",
                records.start,
                records.end - 1
            ),
            FailedAt::Timer(key) => format!("timer {}", quoted(key)),
            FailedAt::Timers(count) => format!("{count} timers in one call (alone they do not fail)"),
        }
    }

    fn record(&self, number: usize) -> String {
        match self.rehearsal.records.get(number) {
            Some(record) => format!("record {number} ({})", contents(record)),
            None => format!("record {number}"),
        }
    }

    /// Where the two runs part, with both answers and what may be behind it.
    pub(super) fn difference(&self, difference: &Difference) -> String {
        let first = &self.rehearsed.first;
        let second = self.rehearsed.second.as_ref().unwrap_or(first);
        let cause = match difference.cause {
            Cause::Cuts => "how records are cut into calls",
            Cause::Memory => "what its instance remembers of earlier calls",
        };
        let what = match &difference.at {
            DifferenceAt::Verdict { record, first: before, second: after } => format!(
                "{}\n  first run:  {}{}\n  second run: {}{}",
                self.record(*record),
                answer(&before.answer),
                call_of(first, before.call),
                answer(&after.answer),
                call_of(second, after.call)
            ),
            DifferenceAt::Failure(failure) => {
                format!(
                    "{}\n  first run:  no failure\n  second run: {}",
                    self.failed_at(&failure.at),
                    failure.failure.message
                )
            }
            DifferenceAt::Emitted { number, first: before, second: after, .. } => {
                self.emitted(*number, (first, before.as_ref()), (second, after.as_ref()))
            }
            DifferenceAt::State { key, first, second } => {
                let value = |value: &Option<bytes::Bytes>| {
                    value.as_ref().map_or_else(|| "not there".to_owned(), |value| quoted(value))
                };
                let (first, second) = (value(first), value(second));
                format!(
                    "state at the end, key {}\n  first run:  {first}\n  second run: {second}",
                    quoted(key)
                )
            }
            DifferenceAt::Timer { key, first, second } => {
                let at = |at: &Option<tidemill_protocol::Timestamp>| {
                    at.map_or_else(|| "not set".to_owned(), |at| text::time(at.get()))
                };
                let (first, second) = (at(first), at(second));
                format!(
                    "timer at the end, key {}\n  first run:  {first}\n  second run: {second}",
                    quoted(key)
                )
            }
        };
        let mut message = format!(
            "the plugin's answer depends on {cause}, which a broker promises nothing about; it differs first in\n  {what}"
        );
        if let DifferenceAt::Emitted { same_by_key: true, .. } = &difference.at {
            message.push_str(
                "\nThe last output of each key is the same in both runs: if that is what readers need, test with --outputs last.",
            );
        }
        message
    }

    fn emitted(
        &self,
        number: usize,
        (first, before): (&Run, Option<&EmittedRecord>),
        (second, after): (&Run, Option<&EmittedRecord>),
    ) -> String {
        let place = before.or(after).map_or_else(String::new, |emitted| {
            format!("{}-{}", self.target_name(emitted), emitted.partition)
        });
        let of = |run: &Run, emitted: Option<&EmittedRecord>| match emitted {
            None => "no more outputs".to_owned(),
            Some(emitted) => format!("{}{}", contents(&emitted.record), call_of(run, emitted.call)),
        };
        // The earlier of the two: what was handled when they parted.
        let last = |run: &Run, emitted: Option<&EmittedRecord>| run.last_record_of(emitted?.call);
        let record = [last(first, before), last(second, after)].into_iter().flatten().min();
        let record =
            record.map_or_else(String::new, |record| format!(", emitted at {}", self.record(record)));
        format!(
            "output {number} to {place}{record}\n  first run:  {}\n  second run: {}",
            of(first, before),
            of(second, after)
        )
    }
}

pub(super) fn kind(kind: PluginKind) -> &'static str {
    match kind {
        PluginKind::Partitioner => "partitioner",
        PluginKind::Filter => "filter",
        PluginKind::Consumer => "consumer",
    }
}

/// One word, and what belongs to it.
pub(super) fn answer(answer: &Answer) -> String {
    match answer {
        Answer::Placed(partition) => format!("partition {partition}"),
        Answer::PlacedAnywhere => "any partition".to_owned(),
        Answer::Kept => "keep".to_owned(),
        Answer::Dropped => "drop".to_owned(),
        Answer::Replaced(record) => format!("replace: {}", contents(record)),
        Answer::Handled => "handled".to_owned(),
        Answer::Rejected(reason) => format!("rejected: {reason}"),
    }
}

/// Which call an answer comes from.
fn call_of(run: &Run, call: usize) -> String {
    match run.calls.get(call) {
        Some(call) if call.records.len() == 1 => {
            format!("  (in a call of record {} alone)", call.records.start)
        }
        Some(call) if !call.records.is_empty() => {
            format!("  (in a call of records {} to {})", call.records.start, call.records.end - 1)
        }
        Some(call) if call.timers == 1 => "  (in a call of one timer)".to_owned(),
        Some(call) => format!("  (in a call of {} timers)", call.timers),
        None => String::new(),
    }
}

/// Key, value and headers, short.
pub(super) fn contents(record: &PlainRecord) -> String {
    let part =
        |part: &Option<bytes::Bytes>| part.as_ref().map_or_else(|| "null".to_owned(), |part| quoted(part));
    let mut text = format!("key {}, value {}", part(&record.key), part(&record.value));
    for (name, value) in &record.headers {
        text.push_str(&format!(", {name}={}", part(value)));
    }
    text
}

fn quoted(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => format!("\"{}\"", shortened(text, PART_CHARS_MAX)),
        Err(_) => readable(bytes, PART_CHARS_MAX),
    }
}

/// Text as it is; an eight-byte value that is no text as a little-endian number; other bytes in hexadecimal. Cut where it is long.
pub(super) fn readable(bytes: &[u8], chars_max: usize) -> String {
    let printable = |text: &str| !text.chars().any(char::is_control);
    match (std::str::from_utf8(bytes), <[u8; 8]>::try_from(bytes)) {
        (Ok(text), _) if printable(text) => shortened(text, chars_max),
        (_, Ok(number)) => u64::from_le_bytes(number).to_string(),
        _ => {
            let most = chars_max / 2;
            let more = if bytes.len() > most { ".." } else { "" };
            bytes.iter().take(most).map(|byte| format!("{byte:02x}")).chain([more.to_owned()]).collect()
        }
    }
}

fn shortened(text: &str, chars_max: usize) -> String {
    match text.char_indices().nth(chars_max) {
        None => text.to_owned(),
        Some((at, _)) => format!("{}..", text.get(..at).unwrap_or(text)),
    }
}
