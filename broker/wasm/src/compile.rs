//! From an uploaded component to one that is ready to run.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
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
    /// Compilations at one time.
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
    turns: Semaphore,
}

impl CompileService {
    /// `worker` is started once per compilation.
    #[must_use]
    pub fn new(engine: Engine, worker: WorkerCommand, limits: CompileLimits, cache: ArtifactCache) -> Self {
        let turns = Semaphore::new(limits.concurrent_max.max(1));
        Self { inner: Arc::new(Inner { engine, worker, limits, cache, turns }) }
    }

    /// The engine that the compiled plugins run on.
    #[must_use]
    pub fn engine(&self) -> &Engine {
        &self.inner.engine
    }

    /// Inspects, compiles or finds in the cache, and loads. Dropping the future kills the compiler.
    pub async fn compile(&self, component: Bytes) -> Result<Compiled, CompileError> {
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
        // Acquired before the cache is asked: of several uploads of one component, the first compiles and the others find it.
        let turn = self.inner.turns.acquire().await;
        let _turn = turn.map_err(|_| CompileError::Worker("it is shutting down".to_owned()))?;
        if let Some(compiled) = self.load_cached(&key, &info, digest).await? {
            return Ok(compiled);
        }
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
