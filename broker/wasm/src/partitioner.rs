//! Calls of a partitioner.

use std::future::Future;
use std::sync::Arc;

use crate::answer::Placement;
use crate::batch::{Batch, Context};
use crate::call::Call;
use crate::capacity::Claim;
use crate::check;
use crate::compiled::{Compiled, Exports, WrongKind, wrong_interface};
use crate::deployment::Deployment;
use crate::error::{CallError, classify};
use crate::inspect::ComponentKind;
use crate::limits::PluginLimits;
use crate::sink::GuestSink;

/// A partitioner with its configuration. Each call runs in a fresh instance, so that an answer can depend on nothing but its
/// arguments; the pool behind it is the engine's, of memory and stacks. Cheap to clone.
#[derive(Clone)]
pub struct PartitionerPool {
    deployment: Arc<Deployment>,
}

impl PartitionerPool {
    /// Nothing is started before the first call.
    pub fn new(
        compiled: Compiled,
        context: Context,
        limits: PluginLimits,
        sink: Arc<dyn GuestSink>,
    ) -> Result<Self, WrongKind> {
        compiled.wants(ComponentKind::Partitioner)?;
        Ok(Self { deployment: Arc::new(Deployment::new(compiled, context, limits, sink)) })
    }

    /// Asks for a partition for each record, below `partitions`. The future first gives way after one tick of running at most; it
    /// can be polled on one runtime and moved to another. Dropping it ends the call.
    pub fn partition(
        &self,
        batch: Batch,
        partitions: u32,
    ) -> impl Future<Output = Result<Placement, CallError>> + Send + use<> {
        let deployment = Arc::clone(&self.deployment);
        async move { partition(&deployment, &batch, partitions).await }
    }
}

async fn partition(deployment: &Deployment, batch: &Batch, partitions: u32) -> Result<Placement, CallError> {
    let Deployment { compiled, context, limits, sink } = deployment;
    let Exports::Partitioner(indices) = compiled.exports() else {
        return Err(CallError::WrongInterface("it is not a partitioner".to_owned()));
    };
    let mut seated = compiled.new_store(limits, sink, None, Claim::Produce)?;
    let mut call = Call::begin(compiled.engine(), &mut seated.store, limits.call_time, batch.records());
    let (instance, _) = compiled.initialise(call.store(), context).await?;
    let guest = indices.load(call.store(), &instance).map_err(|error| wrong_interface(&error))?;
    let answer = guest.call_partition(call.store(), batch.to_guest(), partitions).await;
    let answer = answer.map_err(|error| classify(&error, call.store().data()))?;
    let placement = answer.map_err(|failure| deployment.failed(failure))?;
    Ok(check::placement(placement, batch.records(), partitions, limits)?)
}
