//! The room's front: uploads checked, plugins opened, tasks started and stopped.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use parking_lot::Mutex;
use tidemill_protocol::record_batch::BatchLimits;
use tidemill_protocol::{DeploymentId, PartitionId};
use tidemill_wasm::{
    CallError, Compiled, ConfigError, ConfigKey, Context, Fields, FilterPool, GuestSink, NullSink,
    PartitionerPool, PluginLimits,
};
use tokio::task::JoinHandle;

use crate::components::{ComponentHold, ComponentStore};
use crate::config::HostingConfig;
use crate::failure::{ComponentError, HostingStartError, OpenError, UploadError};
use crate::filter::{Filter, FilterInner};
use crate::logs::{DeploymentLog, LogPage, TaskSink};
use crate::meter::{Meter, MeteredSink};
use crate::partitioner::{Partitioner, PartitionerInner};
use crate::plan::{Lane, PluginKind, PluginPlan, TaskPlan};
use crate::port::TaskPort;
use crate::recent::Recent;
use crate::runtime::{PluginRuntime, Stopped};
use crate::task::{KeptBytes, TaskParts, TaskRunner};

/// Filters kept open while nobody uses them, and as many partitioners: configurations come from clients.
const OPEN_MAX: usize = 256;
/// Instances of one filter that wait for a next call.
const IDLE_INSTANCES_MAX: usize = 4;

/// What an upload turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckedUpload {
    /// blake3 of the component.
    pub digest: [u8; 32],
    /// Its bytes.
    pub size: u64,
    /// Its world.
    pub kind: PluginKind,
    /// What it says of itself.
    pub summary: String,
    /// Its configuration keys.
    pub config: Vec<ConfigKey>,
}

/// Deployments at work. Cheap to clone.
#[derive(Clone)]
pub struct Hosting {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    config: HostingConfig,
    components: Arc<ComponentStore>,
    runtime: Arc<PluginRuntime>,
    port: OnceLock<Arc<dyn TaskPort>>,
    logs: Mutex<HashMap<DeploymentId, Arc<DeploymentLog>>>,
    filters: Mutex<Recent<PluginPlan, Filter>>,
    partitioners: Mutex<Recent<PluginPlan, Partitioner>>,
    tasks: Mutex<HashMap<(DeploymentId, PartitionId), RunningTask>>,
    kept_ahead: Arc<KeptBytes>,
}

struct RunningTask {
    plan: TaskPlan,
    handle: JoinHandle<()>,
}

impl Hosting {
    /// Opens the directories, the engine and the threads. Tasks run once a port is connected.
    ///
    /// # Errors
    /// [`HostingStartError`] says which of them can't be had.
    pub fn start(config: HostingConfig) -> Result<Self, HostingStartError> {
        let components = Arc::new(ComponentStore::open(&config)?);
        let runtime = Arc::new(PluginRuntime::start().map_err(HostingStartError::Threads)?);
        Ok(Self {
            inner: Arc::new(Inner {
                config,
                components,
                runtime,
                port: OnceLock::new(),
                logs: Mutex::default(),
                filters: Mutex::new(Recent::new(OPEN_MAX)),
                partitioners: Mutex::new(Recent::new(OPEN_MAX)),
                tasks: Mutex::default(),
                kept_ahead: Arc::default(),
            }),
        })
    }

    /// Gives tasks their shards. Only the first port counts.
    pub fn connect(&self, port: Arc<dyn TaskPort>) {
        let _ = self.inner.port.set(port);
    }

    /// Checks, compiles and asks a component what it is, then keeps it durably under its digest: until it is named, as long as
    /// somebody holds it.
    ///
    /// # Errors
    /// [`UploadError`] with the reason for its author.
    pub async fn check_upload(&self, component: Bytes) -> Result<CheckedUpload, UploadError> {
        let compiled = self.inner.components.compile_upload(component.clone()).await?;
        let (asked, limits) = (compiled.clone(), self.inner.inline_limits(u64::MAX));
        let description =
            self.inner.runtime.run(Lane::Subscribe, async move { asked.describe(&limits).await });
        let description = description.await.map_err(|Stopped| stopped())??;
        let (components, digest, size) =
            (Arc::clone(&self.inner.components), compiled.digest(), component.len() as u64);
        tokio::task::spawn_blocking(move || components.store(&digest, &component))
            .await
            .map_err(|error| UploadError::Store(std::io::Error::other(error)))?
            .map_err(UploadError::Store)?;
        Ok(CheckedUpload {
            digest,
            size,
            kind: PluginKind::of(compiled.kind()),
            summary: description.summary,
            config: description.config,
        })
    }

    /// Keeps a component that is about to be uploaded from [`Self::let_go`].
    ///
    /// # Errors
    /// The broker is being stopped.
    pub async fn hold(&self, digest: [u8; 32]) -> std::io::Result<ComponentHold> {
        let components = Arc::clone(&self.inner.components);
        tokio::task::spawn_blocking(move || components.hold(digest)).await.map_err(std::io::Error::other)
    }

    /// Removes the components that nobody holds and that `named` does not list, and what was compiled of them; nothing where it answers
    /// `None`. `named` must list what is registered at the moment that it is called. Answers how many went.
    ///
    /// # Errors
    /// A directory can't be read, or a file not be removed; the others may still be there.
    pub async fn let_go(
        &self,
        named: impl Fn() -> Option<HashSet<[u8; 32]>> + Send + 'static,
    ) -> std::io::Result<usize> {
        let components = Arc::clone(&self.inner.components);
        tokio::task::spawn_blocking(move || components.let_go(&named))
            .await
            .unwrap_or_else(|error| Err(std::io::Error::other(error)))
    }

    /// A component that is kept here, checked against its digest.
    ///
    /// # Errors
    /// It is not here, or damaged; or the storage fails.
    pub async fn component(&self, digest: [u8; 32]) -> Result<Bytes, ComponentError> {
        self.inner.component(digest).await
    }

    /// Runs a plugin's `init` with the plan's context: a bad configuration is refused in the plugin's own words.
    ///
    /// # Errors
    /// [`OpenError`] names the deployment.
    pub async fn validate(&self, plan: &PluginPlan) -> Result<(), OpenError> {
        let compiled = self.inner.compiled(plan).await?;
        self.inner.fields(plan, &compiled).await.map(|_| ())
    }

    /// A filter, opened or found open.
    ///
    /// # Errors
    /// [`OpenError`] names the deployment.
    pub async fn filter(&self, plan: &PluginPlan) -> Result<Filter, OpenError> {
        if let Some(open) = self.inner.filters.lock().get(plan) {
            return Ok(open);
        }
        let filter = self.inner.open_filter(plan, IDLE_INSTANCES_MAX, None).await?;
        self.inner.filters.lock().insert(plan.clone(), filter.clone());
        Ok(filter)
    }

    /// A partitioner, opened or found open.
    ///
    /// # Errors
    /// [`OpenError`] names the deployment.
    pub async fn partitioner(&self, plan: &PluginPlan) -> Result<Partitioner, OpenError> {
        self.inner.partitioner(plan).await
    }

    /// Starts, stops and restarts tasks so that exactly these run here.
    pub fn reconcile(&self, plans: Vec<TaskPlan>) {
        let Some(port) = self.inner.port.get() else { return };
        let mut wanted: HashMap<(DeploymentId, PartitionId), TaskPlan> = HashMap::new();
        for plan in plans {
            if let Some(id) = plan.plugin.deployment_id {
                wanted.insert((id, plan.partition), plan);
            }
        }
        let mut tasks = self.inner.tasks.lock();
        tasks.retain(|key, running| {
            let stays = wanted.get(key) == Some(&running.plan) && !running.handle.is_finished();
            if !stays {
                // A step that is under way may still commit: whoever comes next looks where the task stands.
                running.handle.abort();
            }
            stays
        });
        for (key, plan) in wanted {
            tasks.entry(key).or_insert_with(|| {
                let log = self.inner.log(key.0);
                let runner = TaskRunner::new(TaskParts {
                    plan: plan.clone(),
                    hosting: Arc::clone(&self.inner),
                    port: Arc::clone(port),
                    log,
                    meter: None,
                });
                RunningTask { plan, handle: self.inner.runtime.spawn(runner.run()) }
            });
        }
    }

    pub(crate) fn inner(&self) -> &Arc<Inner> {
        &self.inner
    }

    /// How many tasks run here.
    #[must_use]
    pub fn task_count(&self) -> usize {
        self.inner.tasks.lock().len()
    }

    /// A deployment's log lines after a number.
    #[must_use]
    pub fn logs(&self, deployment: DeploymentId, after: u64, limit: usize) -> LogPage {
        let nothing = LogPage { next: after, ..LogPage::default() };
        self.inner.known_log(deployment).map_or(nothing, |log| log.page(after, limit))
    }

    /// A deployment's counters.
    #[must_use]
    pub fn counters(&self, deployment: DeploymentId) -> BTreeMap<String, u64> {
        self.inner.known_log(deployment).map(|log| log.counters()).unwrap_or_default()
    }

    /// Why a task does not come on at present, though it runs.
    #[must_use]
    pub fn waits(&self, deployment: DeploymentId, partition: PartitionId) -> Option<String> {
        self.inner.known_log(deployment)?.waits(partition.get())
    }

    /// Forgets deployments that are gone: their logs, their counters, what is open of them. `is_live` must say what is so at the moment that
    /// it is called: meanwhile somebody may open what is of a new one.
    pub fn retain(&self, is_live: impl Fn(DeploymentId) -> bool) {
        let stays = |plan: &PluginPlan| plan.deployment_id.is_none_or(&is_live);
        self.inner.logs.lock().retain(|deployment, _| is_live(*deployment));
        self.inner.filters.lock().retain(stays);
        self.inner.partitioners.lock().retain(stays);
    }

    /// Stops all tasks.
    pub async fn stop(&self) {
        let tasks: Vec<RunningTask> = self.inner.tasks.lock().drain().map(|(_, task)| task).collect();
        for task in tasks {
            task.handle.abort();
            let _ = task.handle.await;
        }
    }
}

impl Inner {
    async fn component(&self, digest: [u8; 32]) -> Result<Bytes, ComponentError> {
        let components = Arc::clone(&self.components);
        let read = tokio::task::spawn_blocking(move || components.read(&digest)).await;
        Ok(read.map_err(std::io::Error::other)??)
    }

    /// The compiled component of a plan: loaded, or read, checked and compiled or found in the cache.
    pub(crate) async fn compiled(&self, plan: &PluginPlan) -> Result<Compiled, OpenError> {
        if let Some(compiled) = self.components.loaded(&plan.digest) {
            return Ok(compiled);
        }
        let component = self.component(plan.digest).await.map_err(|error| {
            let deployment = plan.deployment.clone();
            match error {
                ComponentError::Absent(reason) => OpenError::Component { deployment, reason },
                ComponentError::Storage(reason) => OpenError::Storage { deployment, reason },
            }
        })?;
        self.components
            .compile(component)
            .await
            .map_err(|source| OpenError::Compile { deployment: plan.deployment.clone(), source })
    }

    async fn fields(&self, plan: &PluginPlan, compiled: &Compiled) -> Result<Fields, OpenError> {
        let limits = match plan.kind {
            PluginKind::Consumer => self.task_limits(plan.memory_bytes_max),
            PluginKind::Partitioner | PluginKind::Filter => self.inline_limits(plan.memory_bytes_max),
        };
        let (compiled, context, sink) = (compiled.clone(), context(plan), self.sink(plan, None));
        let tried = async move { compiled.validate_config(&context, &limits, sink).await };
        let fields = self.runtime.run(Lane::Subscribe, tried).await;
        fields
            .unwrap_or_else(|Stopped| Err(ConfigError::Call(stopped())))
            .map_err(|source| OpenError::Config { deployment: plan.deployment.clone(), source })
    }

    pub(crate) async fn partitioner(&self, plan: &PluginPlan) -> Result<Partitioner, OpenError> {
        if let Some(open) = self.partitioners.lock().get(plan) {
            return Ok(open);
        }
        let partitioner = Partitioner::plugin(self.open_partitioner(plan, None).await?);
        self.partitioners.lock().insert(plan.clone(), partitioner.clone());
        Ok(partitioner)
    }

    /// `idle_max`: instances that wait for a next call.
    pub(crate) async fn open_filter(
        &self,
        plan: &PluginPlan,
        idle_max: usize,
        meter: Option<Arc<Meter>>,
    ) -> Result<Filter, OpenError> {
        let compiled = self.compiled(plan).await?;
        let fields = self.fields(plan, &compiled).await?;
        let limits = self.inline_limits(plan.memory_bytes_max);
        let sink = self.metered_sink(plan, None, meter.as_ref());
        let pool = FilterPool::new(compiled, context(plan), limits, sink, idle_max)
            .map_err(|source| OpenError::Kind { deployment: plan.deployment.clone(), source })?;
        Ok(Filter::new(FilterInner {
            name: plan.deployment.clone(),
            pool,
            fields,
            limits: BatchLimits::STORED,
            runtime: Arc::clone(&self.runtime),
            log: plan.deployment_id.map(|id| self.log(id)),
            meter,
        }))
    }

    pub(crate) async fn open_partitioner(
        &self,
        plan: &PluginPlan,
        meter: Option<Arc<Meter>>,
    ) -> Result<PartitionerInner, OpenError> {
        let compiled = self.compiled(plan).await?;
        let fields = self.fields(plan, &compiled).await?;
        let limits = self.inline_limits(plan.memory_bytes_max);
        let sink = self.metered_sink(plan, None, meter.as_ref());
        let pool = PartitionerPool::new(compiled, context(plan), limits, sink)
            .map_err(|source| OpenError::Kind { deployment: plan.deployment.clone(), source })?;
        Ok(PartitionerInner {
            name: plan.deployment.clone(),
            pool,
            fields,
            limits: BatchLimits::STORED,
            runtime: Arc::clone(&self.runtime),
            log: plan.deployment_id.map(|id| self.log(id)),
            meter,
        })
    }

    pub(crate) fn log(&self, deployment: DeploymentId) -> Arc<DeploymentLog> {
        let mut logs = self.logs.lock();
        let new = || DeploymentLog::new(self.config.log_bytes_max, Arc::clone(&self.config.clock));
        Arc::clone(logs.entry(deployment).or_insert_with(new))
    }

    /// The log of a deployment that has one here: whoever only looks makes none.
    fn known_log(&self, deployment: DeploymentId) -> Option<Arc<DeploymentLog>> {
        self.logs.lock().get(&deployment).cloned()
    }

    fn sink(&self, plan: &PluginPlan, partition: Option<u32>) -> Arc<dyn GuestSink> {
        match plan.deployment_id {
            Some(id) => Arc::new(TaskSink { log: self.log(id), partition }),
            None => Arc::new(NullSink),
        }
    }

    pub(crate) fn metered_sink(
        &self,
        plan: &PluginPlan,
        partition: Option<u32>,
        meter: Option<&Arc<Meter>>,
    ) -> Arc<dyn GuestSink> {
        let sink = self.sink(plan, partition);
        match meter {
            Some(meter) => Arc::new(MeteredSink { sink, meter: Arc::clone(meter) }),
            None => sink,
        }
    }

    pub(crate) fn task_limits(&self, memory_bytes_max: u64) -> PluginLimits {
        PluginLimits {
            memory_bytes_max: self.memory(memory_bytes_max),
            call_time: self.config.task_call_time,
            ..PluginLimits::task()
        }
    }

    /// What all tasks together keep of what they read ahead.
    pub(crate) const fn kept_ahead(&self) -> &Arc<KeptBytes> {
        &self.kept_ahead
    }

    fn inline_limits(&self, memory_bytes_max: u64) -> PluginLimits {
        PluginLimits {
            memory_bytes_max: self.memory(memory_bytes_max),
            call_time: self.config.call_time,
            ..PluginLimits::inline()
        }
    }

    fn memory(&self, asked: u64) -> usize {
        usize::try_from(asked.min(self.config.memory_bytes_max)).unwrap_or(usize::MAX)
    }
}

fn stopped() -> CallError {
    CallError::HostFailed("plugins are being stopped".to_owned())
}

pub(crate) fn context(plan: &PluginPlan) -> Context {
    Context {
        deployment: plan.deployment.clone(),
        topics: plan.topics.clone(),
        targets: plan.targets.clone(),
        config: plan.config.iter().map(|(key, value)| (key.clone(), value.clone())).collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tidemill_protocol::Timestamp;
    use tidemill_wasm::WorkerCommand;

    use super::*;

    #[test]
    fn of_deployments_that_are_gone_nothing_is_kept() {
        let home = tempfile::tempdir().expect("a directory");
        let hosting = Hosting::start(HostingConfig {
            artifacts_dir: home.path().join("artifacts"),
            digests_file: home.path().join("digests"),
            // Nothing is compiled here.
            worker: WorkerCommand { program: "nothing".into(), args: Vec::new() },
            call_time: Duration::from_secs(1),
            task_call_time: Duration::from_secs(1),
            memory_bytes_max: 64 << 20,
            compile_time: Duration::from_secs(1),
            compile_memory_bytes_max: 1 << 30,
            component_bytes_max: 1 << 20,
            log_bytes_max: 1 << 20,
            clock: Arc::new(|| Timestamp::new(0)),
        });
        let hosting = hosting.expect("a room");
        let (stays, goes) = (DeploymentId::new(1), DeploymentId::new(2));
        let kept = || hosting.inner.logs.lock().len();
        assert!(hosting.counters(stays).is_empty() && hosting.waits(stays, PartitionId::new(0)).is_none());
        assert_eq!(hosting.logs(stays, 5, 10), LogPage { next: 5, ..LogPage::default() });
        assert_eq!(kept(), 0, "whoever looks leaves nothing behind");
        for deployment in [stays, goes] {
            hosting.inner.log(deployment).count("calls", 7);
        }
        hosting.retain(|deployment| deployment == stays);
        assert_eq!(hosting.counters(stays).get("calls"), Some(&7));
        assert!(hosting.counters(goes).is_empty());
        assert_eq!(kept(), 1);
    }
}
