//! Uploaded components by digest, compiled when they are needed.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tidemill_wasm::{
    ArtifactCache, CompileError, CompileLimits, CompileService, Compiled, Engine, EngineConfig,
    FileDigestIndex,
};

use crate::config::HostingConfig;
use crate::failure::HostingStartError;
use crate::recent::Recent;

/// Compiled code kept on disk.
const ARTIFACTS_BYTES_MAX: u64 = 4 << 30;
/// Loaded components that nobody uses at the moment.
const LOADED_MAX: usize = 64;

/// Components on disk, and those that are loaded.
pub(crate) struct ComponentStore {
    directory: PathBuf,
    service: CompileService,
    loaded: Mutex<Recent<[u8; 32], Compiled>>,
}

impl ComponentStore {
    pub(crate) fn open(config: &HostingConfig) -> Result<Self, HostingStartError> {
        let bytes_max = usize::try_from(config.memory_bytes_max).unwrap_or(usize::MAX);
        let engine = Engine::new(EngineConfig { memory_bytes_max: bytes_max, ..EngineConfig::default() })?;
        let directory = config.artifacts_dir.join("components");
        fs::create_dir_all(&directory).map_err(HostingStartError::Directory)?;
        let digests = FileDigestIndex::open(&config.digests_file).map_err(HostingStartError::Directory)?;
        let cache = ArtifactCache::open(
            config.artifacts_dir.join("compiled"),
            Arc::new(digests),
            ARTIFACTS_BYTES_MAX,
        )
        .map_err(HostingStartError::Directory)?;
        let limits = CompileLimits {
            component_bytes_max: usize::try_from(config.component_bytes_max).unwrap_or(usize::MAX),
            memory_bytes_max: config.compile_memory_bytes_max,
            time: config.compile_time,
            ..CompileLimits::default()
        };
        let service = CompileService::new(engine, config.worker.clone(), limits, cache);
        Ok(Self { directory, service, loaded: Mutex::new(Recent::new(LOADED_MAX)) })
    }

    /// Compiles a component, or finds it compiled.
    pub(crate) async fn compile(&self, component: Bytes) -> Result<Compiled, CompileError> {
        let compiled = self.service.compile(component).await?;
        self.loaded.lock().insert(compiled.digest(), compiled.clone());
        Ok(compiled)
    }

    /// Compiles what was just uploaded. It is not kept loaded: uploads that nobody deploys push out nothing.
    pub(crate) async fn compile_upload(&self, component: Bytes) -> Result<Compiled, CompileError> {
        self.service.compile_upload(component).await
    }

    /// The component of a digest, where it is loaded.
    pub(crate) fn loaded(&self, digest: &[u8; 32]) -> Option<Compiled> {
        self.loaded.lock().get(digest)
    }

    /// Keeps a component durably. Blocking.
    pub(crate) fn store(&self, digest: &[u8; 32], component: &[u8]) -> io::Result<()> {
        let path = self.path(digest);
        if path.exists() {
            return Ok(());
        }
        let beside = path.with_extension("new");
        let mut file = fs::File::create(&beside)?;
        file.write_all(component)?;
        file.sync_all()?;
        fs::rename(&beside, &path)?;
        fs::File::open(&self.directory)?.sync_all()
    }

    /// Reads a component and checks that it is what was stored. Blocking.
    pub(crate) fn read(&self, digest: &[u8; 32]) -> io::Result<Bytes> {
        let component = fs::read(self.path(digest))?;
        if blake3::hash(&component).as_bytes() != digest {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "its bytes do not have its digest"));
        }
        Ok(component.into())
    }

    fn path(&self, digest: &[u8; 32]) -> PathBuf {
        let name = blake3::Hash::from_bytes(*digest).to_hex();
        Path::new(&self.directory).join(format!("{name}.wasm"))
    }
}
