//! Compiled plugins on disk.
//!
//! ```text
//! <directory, mode 0700>/<blake3 of the component>-<blake3 of what compiled code depends on>.cwasm
//! ```
//!
//! wasmtime runs what it loads: of 24 artifacts with one bit flipped it took all 24. So an artifact's own blake3 is kept
//! elsewhere, in a [`DigestIndex`], and what does not match is not loaded but removed, and compiled again.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use crate::digest_index::{DigestIndex, replace_file};

const SUFFIX: &str = ".cwasm";

/// Which artifact: of which component, for which engine.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ArtifactKey {
    name: String,
}

impl ArtifactKey {
    pub(crate) fn new(component: &blake3::Hash, compatibility: &[u8; 32]) -> Self {
        let engine = blake3::Hash::from_bytes(*compatibility).to_hex();
        Self { name: format!("{}-{engine}{SUFFIX}", component.to_hex()) }
    }

    /// The file's name in the cache's directory.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// Artifacts in a directory of their own, up to so many bytes. Blocking. Losing any of it costs time and nothing else.
#[derive(Clone)]
pub struct ArtifactCache {
    directory: PathBuf,
    digests: Arc<dyn DigestIndex>,
    bytes_max: u64,
}

impl ArtifactCache {
    /// Makes the directory if it is not there, and its mode 0700 in any case.
    pub fn open(
        directory: impl Into<PathBuf>,
        digests: Arc<dyn DigestIndex>,
        bytes_max: u64,
    ) -> io::Result<Self> {
        let directory = directory.into();
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o700))?;
        Ok(Self { directory, digests, bytes_max })
    }

    /// The artifact, if it is there and is what was stored.
    pub(crate) fn load(&self, key: &ArtifactKey) -> Option<Vec<u8>> {
        let path = self.path(key);
        let expected = self.digests.get(&key.name)?;
        let artifact = match fs::read(&path) {
            Ok(artifact) => artifact,
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::warn!(path = %path.display(), %error, "a compiled plugin can't be read");
                }
                return None;
            }
        };
        // The comparison of two `blake3::Hash` takes the same time wherever they differ.
        if blake3::hash(&artifact) != blake3::Hash::from_bytes(expected) {
            tracing::warn!(path = %path.display(), "a compiled plugin is not what was stored; it is made again");
            metrics::counter!("tidemill_artifact_digest_mismatches_total").increment(1);
            self.forget(key);
            return None;
        }
        Some(artifact)
    }

    /// Keeps an artifact; the oldest ones make room.
    pub(crate) fn store(&self, key: &ArtifactKey, artifact: &[u8]) -> io::Result<()> {
        let bytes = artifact.len() as u64;
        if bytes > self.bytes_max {
            return Ok(());
        }
        self.make_room(bytes)?;
        replace_file(&self.path(key), artifact)?;
        self.digests.put(&key.name, *blake3::hash(artifact).as_bytes())
    }

    pub(crate) fn forget(&self, key: &ArtifactKey) {
        self.remove(&self.path(key), &key.name);
    }

    /// The digests of the components that something is kept of.
    pub(crate) fn components(&self) -> io::Result<BTreeSet<[u8; 32]>> {
        let names = self.names()?;
        Ok(names.iter().filter_map(|name| component_of(name)).collect())
    }

    /// Lets go of all that is kept of a component, for whichever engine.
    pub(crate) fn forget_component(&self, component: &[u8; 32]) -> io::Result<()> {
        for name in self.names()?.iter().filter(|name| component_of(name).as_ref() == Some(component)) {
            self.remove(&self.directory.join(name), name);
        }
        Ok(())
    }

    fn names(&self) -> io::Result<Vec<String>> {
        let names = fs::read_dir(&self.directory)?.map(|entry| Ok(entry?.file_name().into_string().ok()));
        Ok(names.collect::<io::Result<Vec<_>>>()?.into_iter().flatten().collect())
    }

    fn path(&self, key: &ArtifactKey) -> PathBuf {
        self.directory.join(&key.name)
    }

    fn make_room(&self, wanted: u64) -> io::Result<()> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            let meta = entry.metadata()?;
            let written = meta.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            files.push((written, meta.len(), entry.path()));
        }
        files.sort();
        let mut total: u64 = files.iter().map(|(_, bytes, _)| bytes).sum();
        for (_, bytes, path) in files {
            if total.saturating_add(wanted) <= self.bytes_max {
                break;
            }
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
            self.remove(&path, &name);
            total -= bytes;
        }
        Ok(())
    }

    /// A file or note that stays is found wanting when it is looked at next, so a failure here is only told.
    fn remove(&self, path: &Path, name: &str) {
        let gone = fs::remove_file(path).or_else(|error| match error.kind() {
            io::ErrorKind::NotFound => Ok(()),
            _ => Err(error),
        });
        if let Err(error) = gone.and_then(|()| self.digests.remove(name)) {
            tracing::warn!(path = %path.display(), %error, "a compiled plugin could not be removed");
        }
    }
}

/// The component that an artifact's name begins with.
fn component_of(name: &str) -> Option<[u8; 32]> {
    let (component, _) = name.strip_suffix(SUFFIX)?.split_once('-')?;
    Some(*blake3::Hash::from_hex(component).ok()?.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest_index::FileDigestIndex;

    struct World {
        dir: tempfile::TempDir,
        cache: ArtifactCache,
    }

    fn world(bytes_max: u64) -> World {
        let dir = tempfile::tempdir().unwrap();
        let digests = FileDigestIndex::open(dir.path().join("digests")).unwrap();
        let cache = ArtifactCache::open(dir.path().join("artifacts"), Arc::new(digests), bytes_max).unwrap();
        World { dir, cache }
    }

    fn key(of: &[u8]) -> ArtifactKey {
        ArtifactKey::new(&blake3::hash(of), &[7; 32])
    }

    #[test]
    fn what_was_stored_comes_back() {
        let world = world(1000);
        let (a, b) = (key(b"a"), key(b"b"));
        world.cache.store(&a, b"artifact of a").unwrap();
        assert_eq!(world.cache.load(&a).unwrap(), b"artifact of a");
        assert_eq!(world.cache.load(&b), None);
        let other_engine = ArtifactKey::new(&blake3::hash(b"a"), &[8; 32]);
        assert_eq!(world.cache.load(&other_engine), None);
    }

    #[test]
    fn the_directory_is_its_owners_alone() {
        let world = world(1000);
        world.cache.store(&key(b"a"), b"artifact").unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&world.dir.path().join("artifacts")), 0o700);
        assert_eq!(mode(&world.cache.path(&key(b"a"))), 0o600);
        assert_eq!(mode(&world.dir.path().join("digests")), 0o600);
    }

    #[test]
    fn each_flipped_bit_is_noticed_and_the_file_removed() {
        let world = world(1000);
        let artifact = b"compiled code".to_vec();
        for bit in 0..artifact.len() * 8 {
            world.cache.store(&key(b"a"), &artifact).unwrap();
            let mut flipped = artifact.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            fs::write(world.cache.path(&key(b"a")), flipped).unwrap();
            assert_eq!(world.cache.load(&key(b"a")), None, "bit {bit}");
            assert!(!world.cache.path(&key(b"a")).exists());
        }
    }

    #[test]
    fn no_digest_no_artifact() {
        let world = world(1000);
        world.cache.store(&key(b"a"), b"artifact").unwrap();
        fs::write(world.cache.path(&key(b"b")), b"from somewhere else").unwrap();
        assert_eq!(world.cache.load(&key(b"b")), None);
        fs::remove_file(world.dir.path().join("digests")).unwrap();
        let fresh = FileDigestIndex::open(world.dir.path().join("digests")).unwrap();
        let reopened =
            ArtifactCache::open(world.dir.path().join("artifacts"), Arc::new(fresh), 1000).unwrap();
        assert_eq!(reopened.load(&key(b"a")), None);
    }

    #[test]
    fn what_is_kept_of_a_component_goes_as_a_whole() {
        let world = world(1000);
        let other_engine = ArtifactKey::new(&blake3::hash(b"a"), &[8; 32]);
        for key in [&key(b"a"), &other_engine, &key(b"b")] {
            world.cache.store(key, b"artifact").unwrap();
        }
        let digest = |of: &[u8]| *blake3::hash(of).as_bytes();
        assert_eq!(world.cache.components().unwrap(), [digest(b"a"), digest(b"b")].into());
        world.cache.forget_component(&digest(b"a")).unwrap();
        assert_eq!(world.cache.components().unwrap(), [digest(b"b")].into());
        assert_eq!((world.cache.load(&key(b"a")), world.cache.load(&other_engine)), (None, None));
        assert!(world.cache.load(&key(b"b")).is_some());
        world.cache.forget_component(&digest(b"never there")).unwrap();
    }

    #[test]
    fn the_oldest_make_room() {
        let world = world(100);
        for name in 0..5u8 {
            world.cache.store(&key(&[name]), &[name; 40]).unwrap();
            let past = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(u64::from(name));
            let file = fs::File::options().write(true).open(world.cache.path(&key(&[name]))).unwrap();
            file.set_modified(past).unwrap();
        }
        let there: Vec<_> = (0..5u8).filter(|name| world.cache.load(&key(&[*name])).is_some()).collect();
        assert_eq!(there, [3, 4]);
        world.cache.store(&key(b"too large"), &[0; 101]).unwrap();
        assert_eq!(world.cache.load(&key(b"too large")), None);
    }
}
