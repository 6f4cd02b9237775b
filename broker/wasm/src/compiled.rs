//! A plugin that is ready to be started: compiled code with its imports resolved.

use std::sync::Arc;

use wasmtime::component::{Instance, InstancePre};
use wasmtime::{AsContextMut, Store};

use crate::batch::{Context, Fields};
use crate::bindings::exports::tidemill::plugin::{consumer, filter, lifecycle, partitioner};
use crate::bindings::tidemill::plugin::types;
use crate::call::Call;
use crate::capacity::{Claim, Need, Seat};
use crate::description::Description;
use crate::engine::Engine;
use crate::error::{CallError, classify, reason};
use crate::first_calls::key_of;
use crate::guest_state::GuestState;
use crate::inspect::{ComponentInfo, ComponentKind};
use crate::limits::PluginLimits;
use crate::sink::{GuestSink, NullSink};
use crate::task_host::TaskHost;
use crate::text::cut;

/// A loaded plugin version. Cheap to clone; instances share its code.
#[derive(Clone)]
pub struct Compiled {
    inner: Arc<Inner>,
}

struct Inner {
    engine: Engine,
    pre: InstancePre<GuestState>,
    info: ComponentInfo,
    digest: blake3::Hash,
    lifecycle: lifecycle::GuestIndices,
    exports: Exports,
    seats: usize,
}

/// A store that an instance runs in, and the room that it takes.
pub(crate) struct SeatedStore {
    pub(crate) store: Store<GuestState>,
    /// Given back after the store.
    pub(crate) seat: Seat,
}

/// Where the world's own interface lies.
pub(crate) enum Exports {
    Partitioner(partitioner::GuestIndices),
    Filter(filter::GuestIndices),
    Consumer(consumer::GuestIndices),
}

/// Why a configuration is not usable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The plugin says so; its own words.
    #[error("the plugin refuses its configuration: {0}")]
    Refused(String),
    /// The plugin did not get as far as answering.
    #[error(transparent)]
    Call(#[from] CallError),
}

/// The component is of another world than it is used as.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this plugin is a {actual}, not a {wanted}", actual = actual.name(), wanted = wanted.name())]
pub struct WrongKind {
    /// What it is.
    pub actual: ComponentKind,
    /// What was asked for.
    pub wanted: ComponentKind,
}

impl Compiled {
    pub(crate) fn new(
        engine: Engine,
        pre: InstancePre<GuestState>,
        info: ComponentInfo,
        digest: blake3::Hash,
    ) -> wasmtime::Result<Self> {
        let lifecycle = lifecycle::GuestIndices::new(&pre)?;
        let exports = match info.kind {
            ComponentKind::Partitioner => Exports::Partitioner(partitioner::GuestIndices::new(&pre)?),
            ComponentKind::Filter => Exports::Filter(filter::GuestIndices::new(&pre)?),
            ComponentKind::Consumer => Exports::Consumer(consumer::GuestIndices::new(&pre)?),
        };
        let resources = pre.component().resources_required();
        let seats = resources.map_or(1, |needs| Need::seats(needs.num_memories, needs.num_tables));
        Ok(Self { inner: Arc::new(Inner { engine, pre, info, digest, lifecycle, exports, seats }) })
    }

    /// Its world.
    #[must_use]
    pub fn kind(&self) -> ComponentKind {
        self.inner.info.kind
    }

    /// Its world and imports.
    #[must_use]
    pub fn info(&self) -> &ComponentInfo {
        &self.inner.info
    }

    /// blake3 of the component that it was compiled from.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        *self.inner.digest.as_bytes()
    }

    /// What the plugin says of itself: called at upload. Also the first time that the component runs, so functions of other types
    /// than the contract's, and a start function that traps, come to light here.
    pub async fn describe(&self, limits: &PluginLimits) -> Result<Description, CallError> {
        let key = key_of(&self.inner.digest, None, limits);
        self.engine().first_calls().run(key, self.ask_to_describe(limits)).await
    }

    async fn ask_to_describe(&self, limits: &PluginLimits) -> Result<Description, CallError> {
        let sink: Arc<dyn GuestSink> = Arc::new(NullSink);
        let mut seated = self.new_store(&Arc::new(limits.clone()), &sink, None, Claim::Common)?;
        let mut call = Call::begin(self.engine(), &mut seated.store, limits.init_time, 0);
        let instance = self.instantiate(call.store()).await?;
        let lifecycle = self.lifecycle(call.store(), &instance)?;
        let answer = lifecycle.call_describe(call.store()).await;
        let answer = answer.map_err(|error| classify(&error, call.store().data()));
        Ok(Description::from_guest(answer?)?)
    }

    /// Starts an instance with this context, at deploy time, and throws it away: whether the configuration is good, and which parts of
    /// a record the plugin asks for.
    pub async fn validate_config(
        &self,
        context: &Context,
        limits: &PluginLimits,
        sink: Arc<dyn GuestSink>,
    ) -> Result<Fields, ConfigError> {
        let key = key_of(&self.inner.digest, Some(context), limits);
        match self.engine().first_calls().run(key, self.try_config(context, limits, &sink)).await {
            Ok(fields) => Ok(fields),
            Err(CallError::InitRefused(reason)) => Err(ConfigError::Refused(reason)),
            Err(error) => Err(ConfigError::Call(error)),
        }
    }

    async fn try_config(
        &self,
        context: &Context,
        limits: &PluginLimits,
        sink: &Arc<dyn GuestSink>,
    ) -> Result<Fields, CallError> {
        let mut seated = self.new_store(&Arc::new(limits.clone()), sink, None, Claim::Common)?;
        let mut call = Call::begin(self.engine(), &mut seated.store, limits.init_time, 0);
        let (_, fields) = self.initialise(call.store(), context).await?;
        Ok(fields)
    }

    pub(crate) fn engine(&self) -> &Engine {
        &self.inner.engine
    }

    pub(crate) fn exports(&self) -> &Exports {
        &self.inner.exports
    }

    pub(crate) fn wants(&self, wanted: ComponentKind) -> Result<(), WrongKind> {
        let actual = self.kind();
        if actual == wanted { Ok(()) } else { Err(WrongKind { actual, wanted }) }
    }

    pub(crate) fn new_store(
        &self,
        limits: &Arc<PluginLimits>,
        sink: &Arc<dyn GuestSink>,
        task: Option<Box<dyn TaskHost>>,
        claim: Claim,
    ) -> Result<SeatedStore, CallError> {
        let need = Need { seats: self.inner.seats, memory_bytes: limits.memory_bytes_max };
        let seat = self.engine().capacity().take(claim, need)?;
        let store = self.start_store(GuestState::new(Arc::clone(limits), Arc::clone(sink), task));
        Ok(SeatedStore { store, seat })
    }

    /// Instantiates and calls `init`, within the call that the caller has begun.
    pub(crate) async fn initialise(
        &self,
        store: &mut Store<GuestState>,
        context: &Context,
    ) -> Result<(Instance, Fields), CallError> {
        let instance = self.instantiate(store).await?;
        let lifecycle = self.lifecycle(store, &instance)?;
        let topics: Vec<&str> = context.topics.iter().map(String::as_str).collect();
        let targets: Vec<&str> = context.targets.iter().map(String::as_str).collect();
        let config: Vec<(&str, &str)> =
            context.config.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        let guest_context = types::Context {
            deployment: &context.deployment,
            topics: &topics,
            targets: &targets,
            config: &config,
        };
        let answer = lifecycle.call_init(&mut *store, guest_context).await;
        match answer.map_err(|error| classify(&error, store.data()))? {
            Ok(fields) => Ok((instance, Fields::from_guest(fields))),
            Err(reason) => Err(CallError::InitRefused(cut(reason, store.data().limits().reason_bytes_max))),
        }
    }

    fn start_store(&self, state: GuestState) -> Store<GuestState> {
        let answer_bytes_max = state.limits().answer_bytes_max;
        let mut store = Store::new(self.engine().wasm(), state);
        store.limiter(|state| state);
        store.set_hostcall_fuel(answer_bytes_max);
        store.epoch_deadline_callback(|mut context| context.data_mut().tick());
        store.set_epoch_deadline(1);
        store
    }

    async fn instantiate(&self, store: &mut Store<GuestState>) -> Result<Instance, CallError> {
        let instance = self.inner.pre.instantiate_async(&mut *store).await;
        instance.map_err(|error| classify(&error, store.data()))
    }

    fn lifecycle(
        &self,
        store: &mut Store<GuestState>,
        instance: &Instance,
    ) -> Result<lifecycle::Guest, CallError> {
        self.inner.lifecycle.load(store.as_context_mut(), instance).map_err(|error| wrong_interface(&error))
    }
}

pub(crate) fn wrong_interface(error: &wasmtime::Error) -> CallError {
    CallError::WrongInterface(reason(error))
}

impl std::fmt::Debug for Compiled {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Compiled")
            .field("info", &self.inner.info)
            .field("digest", &self.inner.digest)
            .finish()
    }
}
