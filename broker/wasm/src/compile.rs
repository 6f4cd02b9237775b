//! From an uploaded component to one that is ready to run.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use crate::artifact_cache::{ArtifactCache, ArtifactKey};
use crate::compiled::Compiled;
use crate::engine::{Engine, LoadError};
use crate::inspect::{ComponentInfo, InvalidComponent};
pub use crate::worker_process::WorkerCommand;
use crate::worker_process::WorkerProcess;

/// What a compilation may take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompileLimits {
    /// Of the component.
    pub component_bytes_max: usize,
    /// Of what it becomes.
    pub artifact_bytes_max: u64,
    /// Address space of the compiler's process.
    pub memory_bytes_max: u64,
    /// Until the compiler's process is killed.
    pub time: Duration,
    /// Compilations of uploads at one time, and of what is opened as many again.
    pub concurrent_max: usize,
}

impl Default for CompileLimits {
    fn default() -> Self {
        Self {
            component_bytes_max: 32 << 20,
            artifact_bytes_max: 256 << 20,
            memory_bytes_max: 2 << 30,
            time: Duration::from_secs(60),
            concurrent_max: 1,
        }
    }
}

/// Why a component was not compiled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    /// It can't be a plugin.
    #[error(transparent)]
    Invalid(#[from] InvalidComponent),
    /// It is larger than is taken.
    #[error("the component has {bytes} bytes; at most {bytes_max} are taken")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The bound.
        bytes_max: usize,
    },
    /// The compiler said no, or fell over it.
    #[error("the component does not compile: {0}")]
    Failed(String),
    /// The compiler took too long.
    #[error("the component does not compile within {limit_ms} ms")]
    TimedOut {
        /// The bound.
        limit_ms: u64,
    },
    /// The compiler could not be run. Not the component's fault.
    #[error("the plugin compiler can't be run: {0}")]
    Worker(String),
    /// It compiled, but does not load.
    #[error(transparent)]
    Load(#[from] LoadError),
}

/// Compiles components in a process of their own, and remembers what came out. Cheap to clone.
#[derive(Clone)]
pub struct CompileService {
    inner: Arc<Inner>,
}

struct Inner {
    engine: Engine,
    worker: WorkerCommand,
    limits: CompileLimits,
    cache: ArtifactCache,
    uploads: Queue,
    opened: Queue,
}

/// Those who wait for a compiler. Uploads have a queue of their own: they come from strangers and may each take all the time there is,
/// and what is deployed already must not wait for them.
struct Queue {
    turns: Semaphore,
    /// By digest: of several who want one component, the first compiles it and the others find it.
    flights: Mutex<HashMap<[u8; 32], Weak<Flight>>>,
}

type Flight = tokio::sync::Mutex<()>;

impl Queue {
    fn new(turns: usize) -> Self {
        Self { turns: Semaphore::new(turns.max(1)), flights: Mutex::default() }
    }

    fn flight(&self, digest: &blake3::Hash) -> Arc<Flight> {
        let mut flights = self.flights.lock();
        if let Some(flight) = flights.get(digest.as_bytes()).and_then(Weak::upgrade) {
            return flight;
        }
        // Bounded by those who wait: what nobody waits for any more goes when the next comes.
        flights.retain(|_, flight| flight.strong_count() > 0);
        let flight = Arc::new(Flight::default());
        flights.insert(*digest.as_bytes(), Arc::downgrade(&flight));
        flight
    }
}

impl CompileService {
    /// `worker` is started once per compilation.
    #[must_use]
    pub fn new(engine: Engine, worker: WorkerCommand, limits: CompileLimits, cache: ArtifactCache) -> Self {
        let (uploads, opened) = (Queue::new(limits.concurrent_max), Queue::new(limits.concurrent_max));
        Self { inner: Arc::new(Inner { engine, worker, limits, cache, uploads, opened }) }
    }

    /// The engine that the compiled plugins run on.
    #[must_use]
    pub fn engine(&self) -> &Engine {
        &self.inner.engine
    }

    /// The digests of the components that compiled code is kept of. Blocking.
    ///
    /// # Errors
    /// The cache's directory can't be read.
    pub fn cached(&self) -> io::Result<BTreeSet<[u8; 32]>> {
        self.inner.cache.components()
    }

    /// Lets go of what compiled code is kept of a component. Blocking.
    ///
    /// # Errors
    /// The cache's directory can't be read.
    pub fn forget(&self, component: &[u8; 32]) -> io::Result<()> {
        self.inner.cache.forget_component(component)
    }

    /// Inspects, compiles or finds in the cache, and loads. Dropping the future kills the compiler.
    pub async fn compile(&self, component: Bytes) -> Result<Compiled, CompileError> {
        self.compile_in(&self.inner.opened, component).await
    }

    /// As [`Self::compile`], for what a stranger has just uploaded: other uploads are waited for, and nobody else waits for this.
    pub async fn compile_upload(&self, component: Bytes) -> Result<Compiled, CompileError> {
        self.compile_in(&self.inner.uploads, component).await
    }

    async fn compile_in(&self, queue: &Queue, component: Bytes) -> Result<Compiled, CompileError> {
        let bytes_max = self.inner.limits.component_bytes_max;
        if component.len() > bytes_max {
            return Err(CompileError::TooLarge { bytes: component.len(), bytes_max });
        }
        let of_blocking = component.clone();
        let engine = self.inner.engine.clone();
        let (info, digest, key) = blocking(move || {
            let info = engine.admit(&of_blocking)?;
            let digest = blake3::hash(&of_blocking);
            Ok((info, digest, ArtifactKey::new(&digest, engine.compatibility())))
        })
        .await?;
        if let Some(compiled) = self.load_cached(&key, &info, digest).await? {
            return Ok(compiled);
        }
        let flight = queue.flight(&digest);
        let _flight = flight.lock().await;
        if let Some(compiled) = self.load_cached(&key, &info, digest).await? {
            return Ok(compiled);
        }
        let turn = queue.turns.acquire().await;
        let _turn = turn.map_err(|_| CompileError::Worker("it is shutting down".to_owned()))?;
        let artifact = self.worker().compile(&component, self.inner.engine.compatibility()).await?;
        self.load_and_store(key, info, digest, artifact).await
    }

    fn worker(&self) -> WorkerProcess<'_> {
        WorkerProcess {
            command: &self.inner.worker,
            memory_bytes_max: self.inner.limits.memory_bytes_max,
            time: self.inner.limits.time,
            artifact_bytes_max: self.inner.limits.artifact_bytes_max,
        }
    }

    async fn load_cached(
        &self,
        key: &ArtifactKey,
        info: &ComponentInfo,
        digest: blake3::Hash,
    ) -> Result<Option<Compiled>, CompileError> {
        let inner = Arc::clone(&self.inner);
        let (key, info) = (key.clone(), info.clone());
        blocking(move || {
            let Some(artifact) = inner.cache.load(&key) else { return Ok(None) };
            // SAFETY: the cache has compared the artifact with the digest of what this broker's own compiler made.
            #[allow(unsafe_code, reason = "wasmtime trusts compiled code; its digest has been checked")]
            let loaded = unsafe { inner.engine.load(&artifact, info, digest) };
            match loaded {
                Ok(compiled) => Ok(Some(compiled)),
                Err(LoadError::Artifact(error)) => {
                    // Another processor than it was made on, say.
                    tracing::info!(%error, "a compiled plugin does not load; it is made again");
                    inner.cache.forget(&key);
                    Ok(None)
                }
                Err(error) => Err(error.into()),
            }
        })
        .await
    }

    async fn load_and_store(
        &self,
        key: ArtifactKey,
        info: ComponentInfo,
        digest: blake3::Hash,
        artifact: Vec<u8>,
    ) -> Result<Compiled, CompileError> {
        let inner = Arc::clone(&self.inner);
        blocking(move || {
            // SAFETY: the compiler's process of this very build has just made the artifact, and only a pipe lies between.
            #[allow(unsafe_code, reason = "wasmtime trusts compiled code, and this was compiled just now")]
            let compiled = unsafe { inner.engine.load(&artifact, info, digest) }?;
            if let Err(error) = inner.cache.store(&key, &artifact) {
                tracing::warn!(%error, "a compiled plugin could not be kept; it is compiled again after a restart");
            }
            Ok(compiled)
        })
        .await
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, CompileError> + Send + 'static,
) -> Result<T, CompileError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => Err(CompileError::Worker(format!("its thread ended: {error}"))),
    }
}
