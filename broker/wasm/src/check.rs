//! What a plugin answers is input from a stranger: here it is checked, and becomes the types of [`crate::answer`].

use bytes::Bytes;

use crate::answer::{
    ANY_PARTITION, Bitmap, OUTPUT_ENTRY_BYTES, Outcome, OutputEntry, Placement, Records, Rejection, Span,
};
use crate::answer::{Selection, Verdict};
use crate::batch::{LENGTH_ABSENT, LENGTH_NULL};
use crate::bindings::exports::tidemill::plugin::{consumer, filter, partitioner};
use crate::bindings::tidemill::plugin::{output, types};
use crate::headers;
use crate::limits::PluginLimits;
use crate::text::cut;

/// Why an answer is not usable: a sentence for the plugin's author.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BadAnswer(pub(crate) String);

macro_rules! bad {
    ($($text:tt)*) => { return Err(BadAnswer(format!($($text)*))) };
}

pub(crate) fn placement(
    answer: partitioner::Placement,
    records: u32,
    partitions: u32,
    limits: &PluginLimits,
) -> Result<Placement, BadAnswer> {
    if answer.partitions.len() != records as usize {
        bad!("the placement names {} partitions for {records} records", answer.partitions.len());
    }
    let outside =
        answer.partitions.iter().position(|&number| number >= partitions && number != ANY_PARTITION);
    if let Some(ordinal) = outside {
        bad!("record {ordinal} is placed in partition {}, of {partitions}", answer.partitions[ordinal]);
    }
    let rejections = rejections(answer.rejections, records, "records in the batch", limits)?;
    Ok(Placement { partitions: answer.partitions, rejections })
}

pub(crate) fn verdict(
    answer: filter::Verdict,
    records: u32,
    limits: &PluginLimits,
) -> Result<Verdict, BadAnswer> {
    let selection = match answer.selection {
        filter::Selection::KeepAll => Selection::KeepAll,
        filter::Selection::DropAll => Selection::DropAll,
        filter::Selection::Keep(bits) => Selection::Keep(bitmap(bits, records)?),
        filter::Selection::Replace(made) => Selection::Replace(replacement(made, records, limits)?),
    };
    let rejections = rejections(answer.rejections, records, "records in the batch", limits)?;
    Ok(Verdict { selection, rejections })
}

pub(crate) fn outcome(
    answer: consumer::Outcome,
    records: u32,
    limits: &PluginLimits,
) -> Result<Outcome, BadAnswer> {
    let processed = answer.processed;
    if processed > records {
        bad!("{processed} records were processed, of {records}");
    }
    let rejections = rejections(answer.rejections, processed, "records processed", limits)?;
    Ok(Outcome { processed, rejections })
}

fn bitmap(mut bytes: Vec<u8>, records: u32) -> Result<Bitmap, BadAnswer> {
    let needed = records.div_ceil(8) as usize;
    if bytes.len() != needed {
        bad!("the bitmap has {} bytes where {records} records need {needed}", bytes.len());
    }
    // The last byte's bits past the last record mean nothing: cleared, so that counting bits counts records.
    if let Some(last) = bytes.last_mut()
        && !records.is_multiple_of(8)
    {
        *last &= (1 << (records % 8)) - 1;
    }
    Ok(Bitmap { bytes })
}

fn rejections(
    list: Vec<types::Rejection>,
    below: u32,
    of_what: &str,
    limits: &PluginLimits,
) -> Result<Vec<Rejection>, BadAnswer> {
    let mut next = 0;
    let mut checked = Vec::with_capacity(list.len().min(below as usize));
    for rejection in list {
        let ordinal = rejection.ordinal;
        if ordinal >= below {
            bad!("record {ordinal} is rejected, of {below} {of_what}");
        }
        if ordinal < next {
            bad!("the rejections' ordinals do not rise at record {ordinal}");
        }
        next = ordinal + 1;
        checked.push(Rejection { ordinal, reason: cut(rejection.reason, limits.reason_bytes_max) });
    }
    Ok(checked)
}

/// Records that a filter puts in place of the input's.
fn replacement(made: output::Records, records: u32, limits: &PluginLimits) -> Result<Records, BadAnswer> {
    let mut next = 0;
    checked_records(made, limits.answer_bytes_max, |at, entry, data| {
        if !entry.has_ordinal() || entry.ordinal >= records {
            bad!("made record {at} is for input record {}, of {records}", entry.ordinal);
        }
        if entry.ordinal < next {
            bad!("the made records' ordinals do not rise at input record {}", entry.ordinal);
        }
        next = entry.ordinal + 1;
        if entry.has_partition() {
            bad!("made record {at} names partition {}: a filter moves no records", entry.partition);
        }
        let absent = |span: Span| span.length == LENGTH_ABSENT;
        check_parts(at, entry, data, absent)
    })
}

/// Records that a task emits. `input_records` are those of the batch under way, none while timers fire.
pub(crate) fn emitted(
    made: output::Records,
    input_records: u32,
    limits: &PluginLimits,
) -> Result<Records, BadAnswer> {
    checked_records(made, limits.emitted_bytes_per_call_max, |at, entry, data| {
        if entry.has_ordinal() && entry.ordinal >= input_records {
            bad!("emitted record {at} is of input record {}, of {input_records}", entry.ordinal);
        }
        check_parts(at, entry, data, |_| false)
    })
}

fn checked_records(
    made: output::Records,
    referenced_bytes_max: usize,
    mut check: impl FnMut(usize, &OutputEntry, &[u8]) -> Result<usize, BadAnswer>,
) -> Result<Records, BadAnswer> {
    if !made.index.len().is_multiple_of(OUTPUT_ENTRY_BYTES) {
        bad!("the index has {} bytes, which is not a multiple of {OUTPUT_ENTRY_BYTES}", made.index.len());
    }
    let mut referenced_bytes = 0usize;
    for (at, entry) in made.index.chunks_exact(OUTPUT_ENTRY_BYTES).enumerate() {
        let entry = OutputEntry::read(entry);
        if entry.timestamp < -1 {
            bad!("made record {at} has the timestamp {}", entry.timestamp);
        }
        // Small data can stand for large records when many of them point to the same bytes, so what they add up to is bounded too.
        referenced_bytes = referenced_bytes.saturating_add(check(at, &entry, &made.data)?);
        if referenced_bytes > referenced_bytes_max {
            bad!("the made records add up to more than {referenced_bytes_max} bytes");
        }
    }
    Ok(Records { data: Bytes::from(made.data), index: made.index, referenced_bytes })
}

fn check_parts(
    at: usize,
    entry: &OutputEntry,
    data: &[u8],
    absent_allowed: impl Fn(Span) -> bool,
) -> Result<usize, BadAnswer> {
    let mut bytes = 0usize;
    for (name, span) in [("key", entry.key), ("value", entry.value), ("headers", entry.headers)] {
        if span.length == LENGTH_NULL || absent_allowed(span) {
            continue;
        }
        let start = span.offset as usize;
        let part = start.checked_add(span.length as usize).and_then(|end| data.get(start..end));
        let Some(part) = part else {
            bad!(
                "made record {at} has its {name} at {start}, {} bytes long, in {} bytes of data",
                span.length,
                data.len()
            );
        };
        if name == "headers"
            && let Err(reason) = headers::check(part)
        {
            bad!("made record {at} has bad headers: {reason}");
        }
        bytes = bytes.saturating_add(part.len());
    }
    Ok(bytes)
}

#[cfg(test)]
#[path = "check_tests.rs"]
mod tests;
