//! The engine that all plugins of a broker share.

use std::sync::Arc;
use std::time::Duration;

use wasmtime::component::{Component, InstancePre};

use crate::capacity::Capacity;
use crate::compatibility::compatibility_digest;
use crate::compiled::Compiled;
use crate::config::EngineConfig;
use crate::first_calls::FirstCalls;
use crate::guest_state::GuestState;
use crate::inspect::{ComponentInfo, inspect};
use crate::linkers::Linkers;
use crate::ticker::{Running, Ticker};

/// Runs compiled plugins. Cheap to clone; one per process is enough, since it reserves address space for all its instances.
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

struct Inner {
    wasm: wasmtime::Engine,
    linkers: Linkers,
    ticker: Ticker,
    config: EngineConfig,
    compatibility: [u8; 32],
    capacity: Arc<Capacity>,
    first_calls: FirstCalls,
}

/// Why the engine could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The settings do not fit together, or not this machine.
    #[error("the WebAssembly engine could not be set up: {0}; lower instances_max if address space is short")]
    Setup(String),
    /// The thread that interrupts overrunning plugins could not be started.
    #[error("the WebAssembly engine's timer thread could not be started: {0}")]
    Thread(#[from] std::io::Error),
}

/// Why an artifact, or a component, did not load.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// Made for another processor or by another version, or larger than the engine's instances may be.
    #[error("the compiled plugin can't be loaded: {0}")]
    Artifact(String),
    /// It wants more memory to begin with than any deployment can have.
    #[error("the component wants {bytes} bytes of memory to begin with; at most {bytes_max} can be given")]
    TooMuchMemory {
        /// What it wants.
        bytes: u64,
        /// The bound.
        bytes_max: usize,
    },
    /// Imports or exports have other types than the contract says.
    #[error("the component does not fit the contract tidemill:plugin@0.1: {0}")]
    WrongInterface(String),
}

impl Engine {
    /// Sets up the engine and starts its timer thread.
    pub fn new(config: EngineConfig) -> Result<Self, EngineError> {
        let setup = |error: wasmtime::Error| EngineError::Setup(format!("{error:#}"));
        let wasm = wasmtime::Engine::new(&config.to_wasmtime()).map_err(setup)?;
        let linkers = Linkers::new(&wasm).map_err(setup)?;
        let ticker = Ticker::start(wasm.clone(), config.tick)?;
        let compatibility = compatibility_digest(&wasm);
        let capacity = Arc::new(Capacity::new(&config));
        let first_calls = FirstCalls::new();
        let inner = Inner { wasm, linkers, ticker, config, compatibility, capacity, first_calls };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The settings.
    #[must_use]
    pub fn config(&self) -> &EngineConfig {
        &self.inner.config
    }

    /// Compiles in this very process, without limits on time and memory and without a cache: for tools that run a user's own
    /// components, and for tests. A broker uses [`CompileService`](crate::CompileService).
    pub fn compile_here(&self, component: &[u8]) -> Result<Compiled, crate::CompileError> {
        let info = self.admit(component)?;
        let artifact = self.inner.wasm.precompile_component(component);
        let artifact = artifact.map_err(|error| crate::CompileError::Failed(format!("{error:#}")))?;
        // SAFETY: this engine has just made the artifact.
        #[allow(unsafe_code, reason = "wasmtime trusts compiled code, and this was compiled here")]
        let loaded = unsafe { self.load(&artifact, info, blake3::hash(component)) };
        Ok(loaded?)
    }

    /// Inspects a component, and refuses one that could not be loaded in any case.
    pub(crate) fn admit(&self, component: &[u8]) -> Result<ComponentInfo, crate::CompileError> {
        let info = inspect(component)?;
        let (bytes, bytes_max) = (info.initial_memory_bytes, self.config().memory_bytes_max);
        if bytes > bytes_max as u64 {
            return Err(LoadError::TooMuchMemory { bytes, bytes_max }.into());
        }
        Ok(info)
    }

    /// Loads compiled code.
    ///
    /// # Safety
    ///
    /// `artifact` is what a compiler process of this build made of the component: damaged or forged bytes run as code.
    #[allow(unsafe_code, reason = "wasmtime trusts compiled code; callers check its digest")]
    pub(crate) unsafe fn load(
        &self,
        artifact: &[u8],
        info: ComponentInfo,
        digest: blake3::Hash,
    ) -> Result<Compiled, LoadError> {
        // SAFETY: the caller's promise.
        let component = unsafe { Component::deserialize(&self.inner.wasm, artifact) };
        let component = component.map_err(|error| LoadError::Artifact(format!("{error:#}")))?;
        let wrong = |error: wasmtime::Error| LoadError::WrongInterface(format!("{error:#}"));
        let pre: InstancePre<GuestState> =
            self.inner.linkers.of(info.kind).instantiate_pre(&component).map_err(wrong)?;
        Compiled::new(self.clone(), pre, info, digest).map_err(wrong)
    }

    pub(crate) fn wasm(&self) -> &wasmtime::Engine {
        &self.inner.wasm
    }

    pub(crate) fn tick(&self) -> Duration {
        self.inner.config.tick
    }

    pub(crate) fn running(&self) -> Running<'_> {
        self.inner.ticker.running()
    }

    pub(crate) fn capacity(&self) -> &Arc<Capacity> {
        &self.inner.capacity
    }

    pub(crate) fn first_calls(&self) -> &FirstCalls {
        &self.inner.first_calls
    }

    pub(crate) fn compatibility(&self) -> &[u8; 32] {
        &self.inner.compatibility
    }
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("config", &self.inner.config).finish_non_exhaustive()
    }
}
