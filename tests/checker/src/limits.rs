//! What numbers of a history may be, so that a record fits in eight bytes.

use crate::error::EventError;
use crate::event::{Damaged, Event};
use crate::ids::{OFFSETS_MAX, PRODUCERS_MAX, RUN_RECORDS_MAX, Run, SEQUENCES_MAX, Span};

pub(crate) fn check(event: &Event) -> Result<(), EventError> {
    let is_within = match event {
        Event::Producer { producer, .. } => *producer < PRODUCERS_MAX,
        Event::Send { records, .. } | Event::Failed { records } | Event::Unknown { records } => {
            span(*records)
        }
        Event::Sent { records, offset: at, .. } => {
            span(*records) && at.is_none_or(|at| at < OFFSETS_MAX - u64::from(records.count))
        }
        Event::Poll { runs, damaged, next, .. } => all(runs, damaged) && next.is_none_or(offset),
        Event::Stored { runs, damaged, .. } => all(runs, damaged),
        Event::Seek { next, .. } => next.is_none_or(offset),
        Event::LogStart { offset: at, .. }
        | Event::Commit { offset: at, .. }
        | Event::Committed { offset: at, .. }
        | Event::Output { offset: at, .. } => offset(*at),
        Event::Position { offset: at, .. } => at.is_none_or(offset),
        Event::Replica { log_start, end, segments, .. } => {
            offset(*log_start)
                && offset(*end)
                && segments.iter().all(|segment| offset(segment.base) && offset(segment.end))
        }
        Event::Task { inputs, .. } => inputs.iter().all(|input| offset(input.from) && offset(input.next)),
        Event::Note { .. }
        | Event::Topic { .. }
        | Event::Consumer { .. }
        | Event::Assign { .. }
        | Event::Subscribe { .. }
        | Event::Drained { .. }
        | Event::Begin { .. }
        | Event::End { .. }
        | Event::Ended { .. }
        | Event::State { .. } => true,
    };
    if is_within { Ok(()) } else { Err(EventError::TooLarge) }
}

const fn offset(offset: u64) -> bool {
    offset < OFFSETS_MAX
}

fn span(records: Span) -> bool {
    records.first.producer < PRODUCERS_MAX
        && records.count <= RUN_RECORDS_MAX
        && records.first.sequence < SEQUENCES_MAX - u64::from(records.count)
}

fn all(runs: &[Run], damaged: &[Damaged]) -> bool {
    let fits = |run: &Run| span(run.span) && run.offset < OFFSETS_MAX - u64::from(run.span.count);
    runs.iter().all(fits) && damaged.iter().all(|record| record.offset < OFFSETS_MAX - 1)
}
