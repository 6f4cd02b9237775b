//! The filter of a subscription: opened once, asked for each batch. Batches are unpacked where produced ones are.

use std::sync::Arc;

use bytes::Bytes;
use tidemill_controller::DeploymentKind;
use tidemill_hosting::{BatchPlace, Filter, Kept, Lane, PluginKind, PluginPlan};
use tidemill_protocol::messages::{Error, FilterSpec};
use tidemill_protocol::record_batch::{BatchLimits, Compression, RecordBatch};
use tidemill_protocol::{ErrorCode, Offset, TopicPartition};

use crate::components;
use crate::context::Context;
use crate::naming::unknown_filter;
use crate::unpacking::Unpacker;
use crate::view::ClusterView;
use crate::{errors, plans};

/// What stands between the log and a subscription.
pub(super) enum Filtering {
    /// Stored batches go out as they are.
    None,
    /// Each batch passes this first.
    By(BatchFilter),
}

/// A filter, and where what it reads is unpacked.
pub(super) struct BatchFilter {
    filter: Filter,
    unpacker: Unpacker,
    /// What the broker takes by now; what is stored may have more.
    decompressed_bytes_max: usize,
}

/// What became of a batch.
pub(super) struct Passed {
    /// As it goes out, or nothing of it.
    pub(super) kept: Option<Bytes>,
    /// The offset behind the batch.
    pub(super) next: Offset,
    /// Bytes of its records, decompressed.
    pub(super) unpacked_bytes: usize,
}

impl Filtering {
    /// `unpacker` is the connection's: what its streams unpack is one share, whichever way they go.
    pub(super) async fn open(
        context: &Arc<Context>,
        unpacker: Unpacker,
        spec: Option<&FilterSpec>,
    ) -> Result<Self, Error> {
        let Some(spec) = spec else { return Ok(Self::None) };
        let plan = plan_fresh(context, spec).await?;
        let opened = components::filter(context, &plan).await;
        let filter = opened.map_err(|error| components::elsewhere(context, error))?;
        let decompressed_bytes_max = context.config.limits.decompressed_bytes_max;
        Ok(Self::By(BatchFilter { filter, unpacker, decompressed_bytes_max }))
    }
}

impl BatchFilter {
    /// Asks about a stored batch. What is left of it is in its own compression.
    pub(super) async fn pass(&self, partition: TopicPartition, stored: Bytes) -> Result<Passed, Error> {
        let batch =
            RecordBatch::decode(stored, &BatchLimits::STORED).map_err(|error| errors::batch(&error))?;
        let records = self.unpacker.unpack_stored(&batch, self.decompressed_bytes_max).await?;
        let (next, unpacked_bytes) = (batch.header().next_offset(), records.data().len());
        let place = BatchPlace { topic: 0, partition: partition.partition.get() };
        // As the log tells it of the batch: whoever reads the range again gets the same.
        let now = batch.header().max_timestamp;
        let outcome = self.filter.apply_to(&records, place, now, Lane::Subscribe, Compression::None).await;
        let kept = match outcome.map_err(|failure| errors::call(&failure))?.kept {
            Kept::All => Some(batch.into_bytes()),
            Kept::None => None,
            Kept::Some(left) => {
                let left = RecordBatch::decode_trusted(left, &BatchLimits::MADE_HERE);
                let left = left.map_err(|error| errors::batch(&error))?;
                let compression = batch.header().attributes.compression;
                Some(self.unpacker.repack(records, left, compression).await?.into_bytes())
            }
        };
        Ok(Passed { kept, next, unpacked_bytes })
    }
}

/// As [`plan`]: the filter may be newer than what this broker has heard.
async fn plan_fresh(context: &Context, spec: &FilterSpec) -> Result<PluginPlan, Error> {
    let unknown = match plan(context, &context.view.now(), spec) {
        Err(error) if error.error_code() == Some(ErrorCode::UnknownPlugin) => error,
        planned => return planned,
    };
    let view = context.asked_view().await.ok_or_else(|| errors::not_heard_of(&unknown))?;
    plan(context, &view, spec)
}

/// A named deployment first, then a plugin with a configuration of its own.
fn plan(context: &Context, view: &ClusterView, spec: &FilterSpec) -> Result<PluginPlan, Error> {
    let plain = spec.version.is_empty() && spec.config.is_empty();
    if plain && let Some(record) = view.deployment_by_name(&spec.name) {
        if record.spec.kind != DeploymentKind::SubscriptionFilter {
            return Err(Error::new(
                ErrorCode::InvalidDeployment,
                format!("deployment '{}' is not a filter for subscriptions", spec.name),
            ));
        }
        return Ok(plans::plugin(view, record));
    }
    let version = Some(spec.version.as_str()).filter(|version| !version.is_empty());
    let plugin = view.plugin(&spec.name, version).ok_or_else(|| unknown_filter(view, &spec.name, version))?;
    if plugin.kind != tidemill_controller::PluginKind::Filter {
        return Err(Error::new(ErrorCode::WrongWorld, format!("plugin '{}' is not a filter", spec.name)));
    }
    Ok(PluginPlan {
        deployment: format!("{}@{}", plugin.name, plugin.version),
        deployment_id: None,
        digest: plugin.digest,
        kind: PluginKind::Filter,
        config: spec.config.clone().into_iter().collect(),
        topics: Vec::new(),
        targets: Vec::new(),
        memory_bytes_max: context.config.plugins.memory_bytes_default,
    })
}
