//! Filters on produced or subscribed batches.

use std::sync::Arc;

use bytes::Bytes;
use tidemill_protocol::Timestamp;
use tidemill_protocol::record_batch::{
    BatchBuilder, BatchLimits, Compression, HeadersView, RecordBatch, Records,
};
use tidemill_wasm::{Claim, Fields, FilterPool, Part, Rejection, Selection, Verdict};

use crate::batch_view::view_of;
use crate::failure::CallFailure;
use crate::logs::DeploymentLog;
use crate::meter::Meter;
use crate::plan::{BatchPlace, Lane};
use crate::runtime::PluginRuntime;

/// A filter, configured. Cheap to clone.
#[derive(Clone)]
pub struct Filter {
    inner: Arc<FilterInner>,
}

pub(crate) struct FilterInner {
    pub(crate) name: String,
    pub(crate) pool: FilterPool,
    pub(crate) fields: Fields,
    pub(crate) limits: BatchLimits,
    pub(crate) runtime: Arc<PluginRuntime>,
    pub(crate) log: Option<Arc<DeploymentLog>>,
    /// Where calls are measured.
    pub(crate) meter: Option<Arc<Meter>>,
}

/// What of a batch passes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kept {
    /// The batch as it is.
    All,
    /// Nothing.
    None,
    /// This batch: the same offsets with gaps, perhaps other contents.
    Some(Bytes),
}

/// A filter's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilterOutcome {
    /// What passes; rejected records do not.
    pub kept: Kept,
    /// Records that the plugin will not accept, by ordinal, with its reasons.
    pub rejections: Vec<(u32, String)>,
}

impl Filter {
    pub(crate) fn new(inner: FilterInner) -> Self {
        Self { inner: Arc::new(inner) }
    }

    /// Asks the plugin about a batch. What is left of it is in the batch's own compression.
    ///
    /// # Errors
    /// [`CallFailure`] where there is no usable answer; the filter goes on with the next batch.
    pub async fn apply(
        &self,
        batch: &RecordBatch,
        place: BatchPlace,
        now: Timestamp,
        lane: Lane,
    ) -> Result<FilterOutcome, CallFailure> {
        let records = batch.records(&self.inner.limits);
        let records = records.map_err(|error| CallFailure::batch(&self.inner.name, &error))?;
        self.apply_to(&records, place, now, lane, batch.header().attributes.compression).await
    }

    /// The same for records that are at hand, decompressed. What is left of them is compressed as `kept_as` says.
    ///
    /// # Errors
    /// As [`apply`](Self::apply).
    pub async fn apply_to(
        &self,
        records: &Records,
        place: BatchPlace,
        now: Timestamp,
        lane: Lane,
        kept_as: Compression,
    ) -> Result<FilterOutcome, CallFailure> {
        let inner = &*self.inner;
        let view = view_of(records, inner.fields, place, now.get());
        let view = view.map_err(|error| CallFailure::batch(&inner.name, &error))?;
        let claim = match lane {
            Lane::Produce => Claim::Produce,
            Lane::Subscribe => Claim::Common,
        };
        let call = inner.pool.apply_for(claim, view);
        let answer = match &inner.meter {
            None => inner.runtime.run(lane, call).await,
            Some(meter) => inner.runtime.run(lane, Arc::clone(meter).measure(call)).await,
        };
        let answer = answer.map_err(|_| CallFailure::stopped(&inner.name))?;
        let outcome = answer
            .map_err(|error| CallFailure::of(&inner.name, &error))
            .and_then(|verdict| self.outcome(records, verdict, kept_as));
        if let Some(log) = &inner.log {
            count(log, records, &outcome);
        }
        outcome
    }

    fn outcome(
        &self,
        records: &Records,
        verdict: Verdict,
        kept_as: Compression,
    ) -> Result<FilterOutcome, CallFailure> {
        let Verdict { selection, rejections } = verdict;
        let kept = match (&selection, rejections.is_empty()) {
            (Selection::KeepAll, true) => Kept::All,
            (Selection::DropAll, _) => Kept::None,
            (Selection::KeepAll, false) => self.keep(records, 0..count_of(records), &rejections, kept_as)?,
            (Selection::Keep(bitmap), _) => self.keep(records, bitmap.ordinals(), &rejections, kept_as)?,
            (Selection::Replace(made), _) => self.replace(records, made, &rejections, kept_as)?,
        };
        let rejections =
            rejections.into_iter().map(|rejection| (rejection.ordinal, rejection.reason)).collect();
        Ok(FilterOutcome { kept, rejections })
    }

    fn keep(
        &self,
        records: &Records,
        ordinals: impl Iterator<Item = u32>,
        rejections: &[Rejection],
        kept_as: Compression,
    ) -> Result<Kept, CallFailure> {
        let mut bits = vec![0_u8; records.len().div_ceil(8)];
        let mut set = |ordinal: u32, keep: bool| {
            if let Some(byte) = bits.get_mut(ordinal as usize / 8) {
                let bit = 1 << (ordinal % 8);
                if keep { *byte |= bit } else { *byte &= !bit }
            }
        };
        ordinals.for_each(|ordinal| set(ordinal, true));
        rejections.iter().for_each(|rejection| set(rejection.ordinal, false));
        if bits.iter().map(|byte| byte.count_ones() as usize).sum::<usize>() == records.len() {
            return Ok(Kept::All);
        }
        match records.filter(&bits, kept_as) {
            Ok(Some(batch)) => Ok(Kept::Some(batch.bytes().clone())),
            Ok(None) => Ok(Kept::None),
            Err(error) => Err(CallFailure::answer(&self.inner.name, error)),
        }
    }

    /// The records that the plugin made, each in the place of the one that it comes from.
    fn replace(
        &self,
        records: &Records,
        made: &tidemill_wasm::Records,
        rejections: &[Rejection],
        kept_as: Compression,
    ) -> Result<Kept, CallFailure> {
        let bad = |reason: &dyn std::fmt::Display| CallFailure::answer(&self.inner.name, reason);
        let mut builder = BatchBuilder::replacing(records.header(), kept_as);
        let mut inputs = records.iter();
        for made in made.iter() {
            // Ordinals strictly increase: both lists are walked once.
            let wanted = made.ordinal.ok_or_else(|| bad(&"a record of no input record"))?;
            let input = loop {
                match inputs.next() {
                    Some(Ok(input)) if input.ordinal == wanted => break input,
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return Err(CallFailure::batch(&self.inner.name, &error)),
                    None => return Err(bad(&"a record of no input record")),
                }
            };
            if rejections.iter().any(|rejection| rejection.ordinal == wanted) {
                continue;
            }
            let headers = match made.headers {
                Part::AsInput => input.headers,
                Part::Null => HeadersView::EMPTY,
                Part::Bytes(bytes) => HeadersView::parse(bytes).map_err(|error| bad(&error))?,
            };
            let timestamp = made.timestamp.map_or(input.timestamp, Timestamp::new);
            builder
                .append_encoded_at(
                    input.offset_delta,
                    timestamp,
                    part(made.key, input.key),
                    part(made.value, input.value),
                    headers,
                )
                .map_err(|error| bad(&error))?;
        }
        if builder.is_empty() {
            return Ok(Kept::None);
        }
        builder.build().map(Kept::Some).map_err(|error| bad(&error))
    }
}

fn part<'a>(made: Part<'a>, input: Option<&'a [u8]>) -> Option<&'a [u8]> {
    match made {
        Part::AsInput => input,
        Part::Null => None,
        Part::Bytes(bytes) => Some(bytes),
    }
}

fn count_of(records: &Records) -> u32 {
    u32::try_from(records.len()).unwrap_or(u32::MAX)
}

fn count(log: &DeploymentLog, records: &Records, outcome: &Result<FilterOutcome, CallFailure>) {
    log.count("calls", 1);
    log.count("records_in", records.len() as u64);
    match outcome {
        Ok(outcome) if !outcome.rejections.is_empty() => {
            log.count("rejections", outcome.rejections.len() as u64);
        }
        Ok(_) => {}
        Err(failure) => {
            log.count("failures", 1);
            log.line(tidemill_wasm::LogLevel::Error, None, &failure.message);
        }
    }
}
