//! The topic's produce filter: every batch passes it, whichever way it comes, before it is placed or logged.

use std::sync::Arc;

use bytes::Bytes;
use tidemill_controller::TopicRecord;
use tidemill_hosting::{BatchPlace, Filter, Kept, Lane};
use tidemill_protocol::messages::{Error, Rejection};
use tidemill_protocol::record_batch::{BatchLimits, Compression, RecordBatch, Records};
use tidemill_protocol::{DeploymentId, ErrorCode, Timestamp};

use crate::components;
use crate::context::Context;
use crate::{errors, plans};

/// A topic's produce filter, opened; or that it has none.
pub(crate) struct ProduceFilter {
    topic: Arc<TopicRecord>,
    batch_bytes_max: usize,
    bound: Option<Bound>,
}

struct Bound {
    deployment: DeploymentId,
    filter: Filter,
    drop_rejected: bool,
}

/// What the filter says of a batch.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Passed {
    /// All of it, as it came.
    All,
    /// This, not compressed: the same offsets with gaps, perhaps other contents.
    Some(RecordBatch),
    /// Nothing is left to store, and nobody objects: it counts as written.
    Nothing,
    /// The whole batch is refused, for these records.
    Refused(Vec<Rejection>),
}

impl ProduceFilter {
    /// Opens a deployment as the filter of a topic: the one that is bound now, or one that a batch passed before.
    pub(crate) async fn open(
        context: &Context,
        topic: &Arc<TopicRecord>,
        deployment: Option<DeploymentId>,
    ) -> Result<Self, Error> {
        let topic = Arc::clone(topic);
        let batch_bytes_max = context.batch_limits(topic.config.batch_bytes_max).batch_bytes_max;
        let Some(deployment) = deployment else { return Ok(Self { topic, batch_bytes_max, bound: None }) };
        let view = context.view.now();
        let record = view.deployment(deployment).ok_or_else(|| forgotten(&topic))?;
        let plan = plans::plugin(&view, record);
        let filter = components::filter(context, &plan).await?;
        let bound = Bound { deployment, filter, drop_rejected: record.spec.drop_rejected };
        Ok(Self { topic, batch_bytes_max, bound: Some(bound) })
    }

    /// Which deployment it is.
    pub(crate) fn deployment(&self) -> Option<DeploymentId> {
        self.bound.as_ref().map(|bound| bound.deployment)
    }

    /// Asks about a batch. `partition` is [`BatchPlace::UNPLACED`] where the broker has not placed its records yet.
    ///
    /// A client's batch has no gaps, so that ordinals and offsets within it are the same.
    pub(crate) async fn pass(
        &self,
        records: &Records,
        partition: u32,
        now: Timestamp,
    ) -> Result<Passed, Error> {
        let Some(bound) = &self.bound else { return Ok(Passed::All) };
        let place = BatchPlace { topic: 0, partition };
        let outcome = bound.filter.apply_to(records, place, now, Lane::Produce, Compression::None).await;
        let outcome = outcome.map_err(|failure| errors::call(&failure))?;
        if !outcome.rejections.is_empty() && !bound.drop_rejected {
            return Ok(Passed::Refused(rejections(outcome.rejections)));
        }
        match outcome.kept {
            Kept::All => Ok(Passed::All),
            Kept::None => Ok(Passed::Nothing),
            Kept::Some(kept) => {
                let kept = RecordBatch::decode_trusted(kept, &BatchLimits::MADE_HERE);
                kept.map(Passed::Some).map_err(|error| errors::batch(&error))
            }
        }
    }

    /// A filter that replaces contents may make a batch larger than it came. This is what is left, as it is to be stored.
    pub(crate) fn within_limits(&self, kept: Bytes) -> Result<Bytes, Error> {
        let limit = self.batch_bytes_max;
        if kept.len() <= limit {
            return Ok(kept);
        }
        Err(Error::new(
            ErrorCode::BatchTooLarge,
            format!(
                "the produce filter of topic '{}' made a batch of {} bytes, the topic allows {limit}; send smaller batches",
                self.topic.name,
                kept.len()
            ),
        ))
    }
}

/// A plugin's rejections as a client reads them.
pub(crate) fn rejections(named: impl IntoIterator<Item = (u32, String)>) -> Vec<Rejection> {
    named.into_iter().map(|(ordinal, reason)| Rejection { ordinal, reason }).collect()
}

fn forgotten(topic: &TopicRecord) -> Error {
    Error::new(
        ErrorCode::PartitionerChanged,
        format!(
            "the produce filter that this batch passed first is no longer known to topic '{}': a retry could \
             store other records than the first attempt; read back whether it was written",
            topic.name
        ),
    )
}
