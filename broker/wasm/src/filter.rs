//! Calls of a filter.

use std::future::Future;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::answer::Verdict;
use crate::batch::{Batch, Context};
use crate::bindings::exports::tidemill::plugin::filter;
use crate::call::Call;
use crate::capacity::{Claim, Idle};
use crate::check;
use crate::compiled::{Compiled, Exports, SeatedStore, WrongKind, wrong_interface};
use crate::deployment::Deployment;
use crate::error::{CallError, classify};
use crate::inspect::ComponentKind;
use crate::limits::PluginLimits;
use crate::sink::GuestSink;

/// A filter with its configuration, and instances that wait for a next call. Cheap to clone.
///
/// A filter is stateless by contract: which instance gets a call does not matter, and each may be discarded between two. One whose
/// call trapped, overran, answered badly or was dropped is.
#[derive(Clone)]
pub struct FilterPool {
    inner: Arc<Inner>,
}

struct Inner {
    deployment: Deployment,
    idle: Mutex<Vec<FilterInstance>>,
    idle_max: usize,
}

struct FilterInstance {
    seated: SeatedStore,
    guest: filter::Guest,
}

impl FilterPool {
    /// At most `idle_max` instances are kept between calls, and as many again for producers, until somebody needs their room; nothing
    /// is started before the first call.
    pub fn new(
        compiled: Compiled,
        context: Context,
        limits: PluginLimits,
        sink: Arc<dyn GuestSink>,
        idle_max: usize,
    ) -> Result<Self, WrongKind> {
        compiled.wants(ComponentKind::Filter)?;
        let deployment = Deployment::new(compiled, context, limits, sink);
        let inner = Arc::new(Inner { deployment, idle: Mutex::new(Vec::new()), idle_max });
        let weak: Weak<Inner> = Arc::downgrade(&inner);
        inner.deployment.compiled.engine().capacity().register(weak);
        Ok(Self { inner })
    }

    /// Asks which records pass. The future first gives way after one tick of running at most; it can be polled on one runtime and
    /// moved to another. Dropping it ends the call, and the instance with it.
    pub fn apply(&self, batch: Batch) -> impl Future<Output = Result<Verdict, CallError>> + Send + use<> {
        self.apply_for(Claim::Common, batch)
    }

    /// As [`Self::apply`], on behalf of a producer or of somebody else.
    pub fn apply_for(
        &self,
        claim: Claim,
        batch: Batch,
    ) -> impl Future<Output = Result<Verdict, CallError>> + Send + use<> {
        let inner = Arc::clone(&self.inner);
        async move {
            let mut instance = match inner.take_idle(claim) {
                Some(instance) => instance,
                None => FilterInstance::start(&inner.deployment, claim).await?,
            };
            let answer = instance.apply(&inner.deployment, &batch).await;
            // A failure that the plugin answered with is a value; after anything else the instance is not trusted again.
            if matches!(answer, Ok(_) | Err(CallError::Failed(_))) {
                inner.keep(instance);
            }
            answer
        }
    }

    /// Gives up the instances that wait, and the engine's room that they take.
    pub fn trim(&self) {
        // Dropped outside of the lock: each gives its memory back to the system.
        let idle = std::mem::take(&mut *self.inner.idle.lock());
        drop(idle);
    }

    /// How many instances wait for a call.
    #[must_use]
    pub fn idle(&self) -> usize {
        self.inner.idle.lock().len()
    }

    /// Linear memory of the instances that wait.
    #[must_use]
    pub fn idle_memory_bytes(&self) -> usize {
        self.inner.idle.lock().iter().map(|instance| instance.seated.store.data().memory_bytes()).sum()
    }
}

impl Idle for Inner {
    fn give_up(&self, claim: Claim) {
        let mut idle = self.idle.lock();
        let (given_up, kept): (Vec<_>, Vec<_>) =
            idle.drain(..).partition(|instance| instance.claim() == claim);
        *idle = kept;
        // Their memory goes back to the system without the lock.
        drop(idle);
        drop(given_up);
    }
}

impl Inner {
    /// An instance with a producer's seat is for producers alone; they take the others' too.
    fn take_idle(&self, claim: Claim) -> Option<FilterInstance> {
        let mut idle = self.idle.lock();
        let own = idle.iter().rposition(|instance| instance.claim() == claim);
        match own {
            Some(at) => Some(idle.swap_remove(at)),
            None if claim == Claim::Produce => idle.pop(),
            None => None,
        }
    }

    fn keep(&self, instance: FilterInstance) {
        let mut idle = self.idle.lock();
        if idle.iter().filter(|other| other.claim() == instance.claim()).count() < self.idle_max {
            idle.push(instance);
        } else {
            drop(idle);
            drop(instance);
        }
    }
}

impl FilterInstance {
    async fn start(deployment: &Deployment, claim: Claim) -> Result<Self, CallError> {
        let Deployment { compiled, context, limits, sink } = deployment;
        let Exports::Filter(indices) = compiled.exports() else {
            return Err(CallError::WrongInterface("it is not a filter".to_owned()));
        };
        let mut seated = compiled.new_store(limits, sink, None, claim)?;
        let mut call = Call::begin(compiled.engine(), &mut seated.store, limits.init_time, 0);
        let (instance, _) = compiled.initialise(call.store(), context).await?;
        let guest = indices.load(call.store(), &instance).map_err(|error| wrong_interface(&error))?;
        drop(call);
        Ok(Self { seated, guest })
    }

    fn claim(&self) -> Claim {
        self.seated.seat.claim()
    }

    async fn apply(&mut self, deployment: &Deployment, batch: &Batch) -> Result<Verdict, CallError> {
        let limits = &deployment.limits;
        let engine = deployment.compiled.engine();
        let mut call = Call::begin(engine, &mut self.seated.store, limits.call_time, batch.records());
        let answer = self.guest.call_apply(call.store(), batch.to_guest()).await;
        let answer = answer.map_err(|error| classify(&error, call.store().data()))?;
        let verdict = answer.map_err(|failure| deployment.failed(failure))?;
        Ok(check::verdict(verdict, batch.records(), limits)?)
    }
}
