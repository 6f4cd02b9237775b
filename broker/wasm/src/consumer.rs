//! Calls of a hosted consumer's task.

use std::sync::Arc;

use crate::answer::Outcome;
use crate::batch::{Batch, Context, Fields, Timer};
use crate::bindings::exports::tidemill::plugin::consumer;
use crate::call::Call;
use crate::capacity::Claim;
use crate::check;
use crate::compiled::{Compiled, Exports, SeatedStore, wrong_interface};
use crate::deployment::Deployment;
use crate::error::{CallError, classify};
use crate::inspect::ComponentKind;
use crate::limits::PluginLimits;
use crate::sink::GuestSink;
use crate::task_host::TaskHost;

/// The running instance of one task. Its memory is a cache and no more: whoever drives it throws it away when a call's effects were
/// not committed.
pub struct ConsumerInstance {
    deployment: Deployment,
    seated: SeatedStore,
    guest: consumer::Guest,
    fields: Fields,
    usable: bool,
}

impl ConsumerInstance {
    /// Starts an instance; `host` serves it for as long as it lives.
    pub async fn start(
        compiled: Compiled,
        context: Context,
        limits: PluginLimits,
        sink: Arc<dyn GuestSink>,
        host: Box<dyn TaskHost>,
    ) -> Result<Self, CallError> {
        let wrong_kind = |kind: ComponentKind| format!("it is a {}, not a consumer", kind.name());
        let deployment = Deployment::new(compiled, context, limits, sink);
        let Deployment { compiled, context, limits, sink } = &deployment;
        let Exports::Consumer(indices) = compiled.exports() else {
            return Err(CallError::WrongInterface(wrong_kind(compiled.kind())));
        };
        let mut seated = compiled.new_store(limits, sink, Some(host), Claim::Common)?;
        let mut call = Call::begin(compiled.engine(), &mut seated.store, limits.init_time, 0);
        let (instance, fields) = compiled.initialise(call.store(), context).await?;
        let guest = indices.load(call.store(), &instance).map_err(|error| wrong_interface(&error))?;
        drop(call);
        Ok(Self { deployment, seated, guest, fields, usable: true })
    }

    /// Which parts of a record it asks for.
    #[must_use]
    pub fn fields(&self) -> Fields {
        self.fields
    }

    /// False after a call that trapped, overran, answered badly or was dropped.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        self.usable
    }

    /// Linear memory that the instance has grown to.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.seated.store.data().memory_bytes()
    }

    /// Hands it a batch. What it did through the host's port counts only if this is `Ok`.
    pub async fn handle(&mut self, batch: &Batch) -> Result<Outcome, CallError> {
        self.begin()?;
        let limits = &self.deployment.limits;
        let engine = self.deployment.compiled.engine();
        let mut call = Call::begin(engine, &mut self.seated.store, limits.call_time, batch.records());
        let answer = self.guest.call_handle(call.store(), batch.to_guest()).await;
        let answer = answer.map_err(|error| classify(&error, call.store().data()))?;
        let answer = match answer {
            Ok(outcome) => Ok(check::outcome(outcome, batch.records(), limits)?),
            Err(failure) => Err(self.deployment.failed(failure)),
        };
        drop(call);
        self.usable = true;
        answer
    }

    /// Hands it timers that are due. What it did through the host's port counts only if this is `Ok`.
    pub async fn on_timers(&mut self, due: &[Timer], now: i64) -> Result<(), CallError> {
        self.begin()?;
        let engine = self.deployment.compiled.engine();
        let due: Vec<_> = due.iter().map(|timer| consumer::Timer { key: &timer.key, at: timer.at }).collect();
        let call_time = self.deployment.limits.call_time;
        let mut call = Call::begin(engine, &mut self.seated.store, call_time, 0);
        let answer = self.guest.call_on_timers(call.store(), &due, now).await;
        let answer = answer.map_err(|error| classify(&error, call.store().data()))?;
        drop(call);
        self.usable = true;
        answer.map_err(|failure| self.deployment.failed(failure))
    }

    /// Not usable until the call that begins has come to its end.
    fn begin(&mut self) -> Result<(), CallError> {
        if std::mem::replace(&mut self.usable, false) { Ok(()) } else { Err(CallError::Discarded) }
    }
}
