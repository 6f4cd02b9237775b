//! Uploaded components by digest, compiled when they are needed.

use std::collections::{HashMap, HashSet};
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

/// How the name of a component ends that is not written to its end.
const UNFINISHED: &str = "new";

/// Components on disk, and those that are loaded.
pub(crate) struct ComponentStore {
    directory: PathBuf,
    service: CompileService,
    loaded: Mutex<Recent<[u8; 32], Compiled>>,
    /// Digests that are not let go of though nothing names them, and how many want that.
    holds: Arc<Mutex<HashMap<[u8; 32], usize>>>,
    /// Held while a component is written.
    storing: Mutex<()>,
}

/// Keeps a component until this is dropped: while it is uploaded nothing names it.
#[must_use = "what is not held may be let go of"]
pub struct ComponentHold {
    digest: [u8; 32],
    holds: Arc<Mutex<HashMap<[u8; 32], usize>>>,
}

impl Drop for ComponentHold {
    fn drop(&mut self) {
        let mut holds = self.holds.lock();
        if let Some(count) = holds.get_mut(&self.digest) {
            *count -= 1;
            if *count == 0 {
                holds.remove(&self.digest);
            }
        }
    }
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
        Ok(Self {
            directory,
            service,
            loaded: Mutex::new(Recent::new(LOADED_MAX)),
            holds: Arc::default(),
            storing: Mutex::default(),
        })
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
        // Another upload of the same may be writing: one at a time. What is there and damaged is written again.
        let _storing = self.storing.lock();
        if fs::read(&path).is_ok_and(|stored| stored == component) {
            return Ok(());
        }
        let beside = path.with_extension(UNFINISHED);
        let mut file = fs::File::create(&beside)?;
        file.write_all(component)?;
        file.sync_all()?;
        fs::rename(&beside, &path)?;
        fs::File::open(&self.directory)?.sync_all()
    }

    /// Waits where components are being let go of, for one file's removal. Blocking.
    pub(crate) fn hold(&self, digest: [u8; 32]) -> ComponentHold {
        *self.holds.lock().entry(digest).or_insert(0) += 1;
        ComponentHold { digest, holds: Arc::clone(&self.holds) }
    }

    /// Removes components that nobody holds or names, and what was compiled of them. Blocking. `named` is asked for each again
    /// while it can't be held: one that was registered before its hold ended is named by then.
    pub(crate) fn let_go(&self, named: &dyn Fn() -> Option<HashSet<[u8; 32]>>) -> io::Result<usize> {
        let mut candidates = self.service.cached()?;
        for entry in fs::read_dir(&self.directory)? {
            candidates.extend(component_of(&entry?.path()));
        }
        let Some(known) = named() else { return Ok(0) };
        candidates.retain(|digest| !known.contains(digest));
        let mut gone = 0;
        for digest in &candidates {
            let holds = self.holds.lock();
            if holds.contains_key(digest) || named().is_none_or(|named| named.contains(digest)) {
                continue;
            }
            self.loaded.lock().remove(digest);
            for path in [self.path(digest), self.path(digest).with_extension(UNFINISHED)] {
                match fs::remove_file(&path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            }
            self.service.forget(digest)?;
            gone += 1;
        }
        Ok(gone)
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

/// The component that a file's name is of.
fn component_of(path: &Path) -> Option<[u8; 32]> {
    Some(*blake3::Hash::from_hex(path.file_stem()?.to_str()?).ok()?.as_bytes())
}
