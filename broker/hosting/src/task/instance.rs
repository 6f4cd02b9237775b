//! A task's instance of its plugin.

use std::sync::Arc;

use parking_lot::Mutex;
use tidemill_protocol::Timestamp;
use tidemill_wasm::ConsumerInstance;

use super::effects::{Effects, EffectsHost};
use super::runner::{Setback, TaskRunner};
use crate::hosting::context;
use crate::meter::measured;

/// An instance, and what its calls did.
pub(super) struct Running {
    pub(super) instance: ConsumerInstance,
    pub(super) effects: Arc<Mutex<Effects>>,
}

impl TaskRunner {
    /// The instance, started if there is none, with nothing done yet.
    pub(super) async fn running(&mut self, now: Timestamp) -> Result<&mut Running, Setback> {
        let usable = self.instance.as_ref().is_some_and(|running| running.instance.is_usable());
        if !usable {
            self.instance = None;
            let started = measured(self.parts.meter.as_ref(), self.start()).await?;
            self.instance = Some(started);
        }
        let running = self.instance.as_mut().ok_or_else(|| Setback::Broker("no instance".to_owned()))?;
        *running.effects.lock() = Effects { now, ..Effects::default() };
        Ok(running)
    }

    async fn start(&self) -> Result<Running, Setback> {
        let plan = &self.parts.plan;
        let compiled = self.parts.hosting.compiled(&plan.plugin).await;
        let compiled = compiled.map_err(|error| Setback::Broker(error.to_string()))?;
        let effects = Arc::new(Mutex::new(Effects::default()));
        let host = EffectsHost {
            task: self.task,
            port: Arc::clone(&self.parts.port),
            targets: plan.targets.clone().into(),
            effects: Arc::clone(&effects),
        };
        let limits = self.parts.hosting.task_limits(plan.plugin.memory_bytes_max);
        let partition = Some(plan.partition.get());
        let sink = self.parts.hosting.metered_sink(&plan.plugin, partition, self.parts.meter.as_ref());
        let instance =
            ConsumerInstance::start(compiled, context(&plan.plugin), limits, sink, Box::new(host)).await;
        // It started when it was deployed: no record is at fault, so none of them may be given up for it.
        let instance = instance
            .map_err(|error| Setback::Broker(format!("an instance of the plugin does not start: {error}")))?;
        Ok(Running { instance, effects })
    }
}
