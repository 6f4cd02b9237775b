//! Runs of partitioners and filters: a call per batch, and nothing besides its answer.

use std::ops::Range;
use std::sync::Arc;

use tidemill_protocol::record_batch::RecordBatch;
use tidemill_wasm::ANY_PARTITION;

use super::record::{PlainRecord, batch_of, records_of};
use super::run::{Answer, FailedAt, Run, Verdict};
use super::{Manner, RehearsalError, Stage};
use crate::failure::CallFailure;
use crate::filter::{Filter, FilterOutcome, Kept};
use crate::meter::Meter;
use crate::plan::{BatchPlace, Lane};

/// Instances of a filter that wait for a next call: calls come one after the other.
const IDLE_INSTANCES: usize = 1;

/// The answers to a batch's records, and the bytes of what passes.
type Answers = Result<(Vec<Answer>, usize), CallFailure>;

pub(super) async fn partitioner(
    stage: &Stage<'_>,
    manner: Manner,
    meter: Arc<Meter>,
) -> Result<Run, RehearsalError> {
    let partitions = stage.rehearsal.partitions;
    // Every call gets a fresh instance in any case.
    let partitioner =
        stage.hosting.open_partitioner(&stage.rehearsal.plugin, Some(Arc::clone(&meter))).await?;
    let ask = async |batch: RecordBatch| -> Answers {
        let placement = partitioner.ask(&batch, partitions, batch.header().max_timestamp).await?;
        let placed = placement.partitions.into_iter().map(|partition| match partition {
            ANY_PARTITION => Answer::PlacedAnywhere,
            partition => Answer::Placed(partition),
        });
        let rejections = placement.rejections.into_iter().map(|r| (r.ordinal, r.reason));
        Ok((with_rejections(placed.collect(), rejections), 0))
    };
    play(stage, manner, &meter, ask).await
}

pub(super) async fn filter(
    stage: &Stage<'_>,
    manner: Manner,
    meter: Arc<Meter>,
) -> Result<Run, RehearsalError> {
    let idle_max = if manner.fresh { 0 } else { IDLE_INSTANCES };
    let filter: Filter =
        stage.hosting.open_filter(&stage.rehearsal.plugin, idle_max, Some(Arc::clone(&meter))).await?;
    // A filter is told the broker's clock, which is behind no record and does not stand for the cuts.
    let now = stage.rehearsal.records.iter().map(|record| record.timestamp).max().unwrap_or_default();
    let ask = async |batch: RecordBatch| -> Answers {
        let place = BatchPlace { topic: 0, partition: 0 };
        let outcome = filter.apply(&batch, place, now, Lane::Subscribe).await?;
        let passed = match &outcome.kept {
            Kept::All => batch.bytes().len(),
            Kept::None => 0,
            Kept::Some(kept) => kept.len(),
        };
        let answers = answers_of(&batch, outcome);
        Ok((
            answers.map_err(|reason| CallFailure::answer(&stage.rehearsal.plugin.deployment, reason))?,
            passed,
        ))
    };
    play(stage, manner, &meter, ask).await
}

async fn play(
    stage: &Stage<'_>,
    mut manner: Manner,
    meter: &Meter,
    ask: impl AsyncFn(RecordBatch) -> Answers,
) -> Result<Run, RehearsalError> {
    let records = &stage.rehearsal.records;
    let mut run = Run::default();
    let mut from = 0;
    while from < records.len() {
        let call = manner.cuts.next(records, from, records.len());
        let batch = batch_of(&records[call.clone()], from)?;
        let (bytes_in, now) = (batch.bytes().len(), batch.header().max_timestamp);
        meter.take();
        match ask(batch).await {
            Ok((answers, passed)) => {
                let number = run.calls.len();
                run.verdicts.extend(answers.into_iter().map(|answer| Verdict { answer, call: number }));
                run.bytes_in += bytes_in as u64;
                run.bytes_out += passed as u64;
                from = call.end;
                run.answered(call, 0, now, meter.take());
            }
            Err(failure) => {
                let (at, failure) = narrowed(records, call, failure, &ask).await?;
                run.failed(at, failure);
                return Ok(run);
            }
        }
    }
    Ok(run)
}

/// Halves a call that failed until the record that does it stands alone.
async fn narrowed(
    records: &[PlainRecord],
    mut call: Range<usize>,
    mut failure: CallFailure,
    ask: &impl AsyncFn(RecordBatch) -> Answers,
) -> Result<(FailedAt, CallFailure), RehearsalError> {
    while call.len() > 1 {
        let middle = call.start + call.len() / 2;
        let (left, right) = (call.start..middle, middle..call.end);
        let mut half = None;
        for part in [left, right] {
            if let Err(again) = ask(batch_of(&records[part.clone()], part.start)?).await {
                half = Some((part, again));
                break;
            }
        }
        let Some((part, again)) = half else { return Ok((FailedAt::Records(call), failure)) };
        (call, failure) = (part, again);
    }
    Ok((FailedAt::Record(call.start), failure))
}

fn answers_of(batch: &RecordBatch, outcome: FilterOutcome) -> Result<Vec<Answer>, String> {
    let input = records_of(batch.bytes())?;
    let answers = match outcome.kept {
        Kept::All => vec![Answer::Kept; input.len()],
        Kept::None => vec![Answer::Dropped; input.len()],
        Kept::Some(kept) => {
            let mut kept = records_of(&kept)?.into_iter().peekable();
            let answer = |(delta, record): (u32, PlainRecord)| match kept.next_if(|(kept, _)| *kept == delta)
            {
                None => Answer::Dropped,
                Some((_, passed)) if passed == record => Answer::Kept,
                Some((_, passed)) => Answer::Replaced(passed),
            };
            input.into_iter().map(answer).collect()
        }
    };
    Ok(with_rejections(answers, outcome.rejections))
}

fn with_rejections(
    mut answers: Vec<Answer>,
    rejections: impl IntoIterator<Item = (u32, String)>,
) -> Vec<Answer> {
    for (ordinal, reason) in rejections {
        if let Some(answer) = answers.get_mut(ordinal as usize) {
            *answer = Answer::Rejected(reason);
        }
    }
    answers
}
