//! The filter of a subscription: opened once, asked for each batch.

use std::sync::Arc;

use bytes::Bytes;
use tidemill_controller::DeploymentKind;
use tidemill_hosting::{BatchPlace, Filter, Kept, Lane, PluginKind, PluginPlan};
use tidemill_protocol::messages::{Error, FilterSpec};
use tidemill_protocol::record_batch::{BatchLimits, RecordBatch};
use tidemill_protocol::{ErrorCode, TopicPartition};

use crate::context::Context;
use crate::naming::unknown_filter;
use crate::{errors, plans};

/// What stands between the log and a subscription.
pub(super) enum Filtering {
    /// Stored batches go out as they are.
    None,
    /// Each batch passes this first.
    By(Filter),
}

impl Filtering {
    pub(super) async fn open(context: &Arc<Context>, spec: Option<&FilterSpec>) -> Result<Self, Error> {
        let Some(spec) = spec else { return Ok(Self::None) };
        let plan = plan(context, spec)?;
        let filter = context.hosting.filter(&plan).await.map_err(|error| errors::open_plugin(&error))?;
        Ok(Self::By(filter))
    }

    /// The batch as it goes out, or nothing of it.
    pub(super) async fn pass(
        &self,
        partition: TopicPartition,
        stored: Bytes,
    ) -> Result<Option<Bytes>, Error> {
        let Self::By(filter) = self else { return Ok(Some(stored)) };
        let batch =
            RecordBatch::decode(stored, &BatchLimits::STORED).map_err(|error| errors::batch(&error))?;
        let place = BatchPlace { topic: 0, partition: partition.partition.get() };
        // As the log tells it of the batch: whoever reads the range again gets the same.
        let now = batch.header().max_timestamp;
        let outcome = filter
            .apply(&batch, place, now, Lane::Subscribe)
            .await
            .map_err(|failure| errors::call(&failure))?;
        Ok(match outcome.kept {
            Kept::All => Some(batch.bytes().clone()),
            Kept::None => None,
            Kept::Some(kept) => Some(kept),
        })
    }
}

/// A named deployment first, then a plugin with a configuration of its own.
fn plan(context: &Context, spec: &FilterSpec) -> Result<PluginPlan, Error> {
    let view = context.view.now();
    let plain = spec.version.is_empty() && spec.config.is_empty();
    if plain && let Some(record) = view.deployment_by_name(&spec.name) {
        if record.spec.kind != DeploymentKind::SubscriptionFilter {
            return Err(Error::new(
                ErrorCode::InvalidDeployment,
                format!("deployment '{}' is not a filter for subscriptions", spec.name),
            ));
        }
        return Ok(plans::plugin(&view, record));
    }
    let version = Some(spec.version.as_str()).filter(|version| !version.is_empty());
    let plugin =
        view.plugin(&spec.name, version).ok_or_else(|| unknown_filter(&view, &spec.name, version))?;
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
