//! A file system in memory that knows what a power loss would take.
//!
//! Each file holds what the kernel shows and, apart from it, what the device is sure to hold, with the writes that
//! no sync has covered yet in between. [`MemoryStorage::crash`] decides by a seed, for each of those writes and each
//! of its sectors, whether the device got it; likewise for names whose directory was not synced. Stricter than any
//! real file system, on purpose.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::{Create, DirEntry, LockGuard, OpenMode, Space, Storage, StorageFile, check_path};

/// What a device writes as a whole or not at all.
const SECTOR_BYTES: usize = 512;
/// A size no test reaches, so that arithmetic on it stays quiet.
const CAPACITY_DEFAULT_BYTES: u64 = 1 << 40;

/// Files in memory. Clones share them.
#[derive(Clone)]
pub struct MemoryStorage {
    disk: Arc<Mutex<Disk>>,
    direct_allowed: bool,
}

impl MemoryStorage {
    /// An empty file system.
    #[must_use]
    pub fn new() -> Self {
        Self::with_capacity(CAPACITY_DEFAULT_BYTES)
    }

    /// An empty file system of `bytes`: what goes beyond fails as a full disk does.
    #[must_use]
    pub fn with_capacity(bytes: u64) -> Self {
        Self::from_disk(Disk { capacity: bytes, ..Disk::default() })
    }

    /// The same files, refusing direct I/O as some file systems do.
    #[must_use]
    pub fn without_direct(mut self) -> Self {
        self.direct_allowed = false;
        self
    }

    /// What a machine finds after losing power at this moment: all that was synced, and of the rest what the seed
    /// leaves, writes torn at sectors included. This storage itself goes on untouched.
    #[must_use]
    pub fn crash(&self, seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        Self::from_disk(self.disk.lock().after_power_loss(&mut rng))
    }

    /// What the next process finds after this one was killed: every write that returned, though what was not synced
    /// can still be lost to a later [`MemoryStorage::crash`].
    #[must_use]
    pub fn kill(&self) -> Self {
        let mut disk = self.disk.lock().clone();
        disk.locks.clear();
        Self::from_disk(disk)
    }

    /// What Linux does when a sync fails: of what was not synced the device has what the seed leaves, and all of it counts as clean. Reads
    /// show it as before; no later sync writes it, and a power loss takes what the device does not have.
    pub fn forget_unsynced(&self, seed: u64) {
        let mut rng = StdRng::seed_from_u64(seed);
        for file in self.disk.lock().files.values_mut() {
            for change in std::mem::take(&mut file.pending) {
                change.apply_torn(&mut file.durable, &mut rng);
            }
        }
    }

    /// Changes a file's bytes behind everyone's back, durably: how tests damage files.
    ///
    /// # Panics
    /// Where there is no such file.
    pub fn edit(&self, path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
        let mut disk = self.disk.lock();
        let file = disk.file(path).unwrap_or_else(|| panic!("no file {}", path.display()));
        change(&mut file.current);
        file.durable = file.current.clone();
        file.pending.clear();
    }

    /// A copy of a file's bytes, `None` where there is no such file.
    #[must_use]
    pub fn contents(&self, path: &Path) -> Option<Vec<u8>> {
        self.disk.lock().file(path).map(|file| file.current.clone())
    }

    fn from_disk(disk: Disk) -> Self {
        Self { disk: Arc::new(Mutex::new(disk)), direct_allowed: true }
    }
}

impl Default for MemoryStorage {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for MemoryStorage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemoryStorage").finish_non_exhaustive()
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Node {
    Directory(u64),
    File(u64),
}

impl Node {
    const fn id(self) -> u64 {
        let (Self::Directory(id) | Self::File(id)) = self;
        id
    }
}

#[derive(Clone, Default)]
struct Disk {
    names: BTreeMap<PathBuf, Node>,
    durable_names: BTreeMap<PathBuf, Node>,
    pending_names: Vec<NameChange>,
    files: BTreeMap<u64, FileBytes>,
    next_node: u64,
    /// Directories, as on a real disk: a file that is removed takes no lock away.
    locks: BTreeSet<PathBuf>,
    capacity: u64,
}

#[derive(Clone)]
enum NameChange {
    Set(PathBuf, Node),
    /// The path, and what there was of it and in it: a directory that is made anew under the same name is another.
    Remove(PathBuf, BTreeSet<u64>),
    Rename(PathBuf, PathBuf),
}

impl NameChange {
    /// The directory whose sync makes the change durable.
    fn directory(&self) -> &Path {
        let (Self::Set(path, _) | Self::Remove(path, _) | Self::Rename(_, path)) = self;
        path.parent().unwrap_or(Path::new(""))
    }

    fn apply(&self, names: &mut BTreeMap<PathBuf, Node>) {
        match self {
            Self::Set(path, node) => {
                names.insert(path.clone(), *node);
            }
            Self::Remove(path, nodes) => {
                names.retain(|name, node| !(name.starts_with(path) && nodes.contains(&node.id())));
            }
            Self::Rename(from, to) => {
                if let Some(node) = names.remove(from) {
                    names.insert(to.clone(), node);
                }
            }
        }
    }
}

#[derive(Clone, Default)]
struct FileBytes {
    current: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<ByteChange>,
}

#[derive(Clone)]
enum ByteChange {
    Write { offset: usize, bytes: Vec<u8> },
    Resize(usize),
}

impl ByteChange {
    fn apply(&self, file: &mut Vec<u8>) {
        match self {
            Self::Write { offset, bytes } => put(file, *offset, bytes),
            Self::Resize(len) => file.resize(*len, 0),
        }
    }

    /// The device got all of it, nothing, or some of its sectors, the last of them perhaps in part.
    fn apply_torn(&self, file: &mut Vec<u8>, rng: &mut StdRng) {
        match (self, rng.random_range(0..3)) {
            (_, 0) => {}
            (Self::Write { offset, bytes }, 1) => {
                let mut at = 0;
                while at < bytes.len() {
                    let to_sector_end = SECTOR_BYTES - (offset + at) % SECTOR_BYTES;
                    let count = to_sector_end.min(bytes.len() - at);
                    let kept = match rng.random_range(0..8) {
                        0..4 => 0,
                        4 => rng.random_range(0..=count),
                        _ => count,
                    };
                    if let Some(sector) = bytes.get(at..at + kept).filter(|sector| !sector.is_empty()) {
                        put(file, offset + at, sector);
                    }
                    at += count;
                }
            }
            (change, _) => change.apply(file),
        }
    }
}

fn put(file: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    let end = offset + bytes.len();
    if file.len() < end {
        file.resize(end, 0);
    }
    if let Some(target) = file.get_mut(offset..end) {
        target.copy_from_slice(bytes);
    }
}

impl Disk {
    fn file(&mut self, path: &Path) -> Option<&mut FileBytes> {
        match self.names.get(path) {
            Some(Node::File(id)) => self.files.get_mut(id),
            _ => None,
        }
    }

    fn change_name(&mut self, change: NameChange) {
        change.apply(&mut self.names);
        self.pending_names.push(change);
    }

    fn remove_name(&mut self, path: &Path) {
        let there = self.names.iter().chain(&self.durable_names);
        let nodes = there.filter(|(name, _)| name.starts_with(path)).map(|(_, node)| node.id()).collect();
        // What was still to become of a directory's names is over with it.
        self.pending_names.retain(|change| !change.directory().starts_with(path));
        self.change_name(NameChange::Remove(path.to_owned(), nodes));
    }

    fn is_directory(&self, path: &Path) -> bool {
        path.as_os_str().is_empty() || matches!(self.names.get(path), Some(Node::Directory(_)))
    }

    fn parent_exists(&self, path: &Path) -> bool {
        path.parent().is_none_or(|parent| self.is_directory(parent))
    }

    const fn new_node(&mut self) -> u64 {
        let id = self.next_node;
        self.next_node += 1;
        id
    }

    fn used(&self) -> u64 {
        let linked = self.names.values().filter_map(|node| match node {
            Node::File(id) => self.files.get(id),
            Node::Directory(_) => None,
        });
        linked.map(|file| file.current.len() as u64).sum()
    }

    fn check_growth(&self, id: u64, len: usize) -> io::Result<()> {
        let before = self.files.get(&id).map_or(0, |file| file.current.len());
        let growth = len.saturating_sub(before) as u64;
        if growth > 0 && self.used() + growth > self.capacity {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }

    fn change_bytes(&mut self, id: u64, change: ByteChange) {
        let file = self.files.entry(id).or_default();
        change.apply(&mut file.current);
        file.pending.push(change);
    }

    fn sync_file(&mut self, id: u64) {
        let file = self.files.entry(id).or_default();
        for change in file.pending.drain(..) {
            change.apply(&mut file.durable);
        }
    }

    fn sync_names(&mut self, directory: &Path) {
        let (synced, rest) = std::mem::take(&mut self.pending_names)
            .into_iter()
            .partition(|change| change.directory() == directory);
        self.pending_names = rest;
        let synced: Vec<NameChange> = synced;
        for change in synced {
            change.apply(&mut self.durable_names);
        }
    }

    fn after_power_loss(&self, rng: &mut StdRng) -> Self {
        let mut names = self.durable_names.clone();
        // Per directory a prefix of the changes survives: journals keep their order.
        let directories: BTreeSet<&Path> = self.pending_names.iter().map(NameChange::directory).collect();
        for directory in directories {
            let changes: Vec<_> = self.pending_names.iter().filter(|c| c.directory() == directory).collect();
            for change in changes.iter().take(rng.random_range(0..=changes.len())) {
                change.apply(&mut names);
            }
        }
        let orphaned = |path: &Path, names: &BTreeMap<PathBuf, Node>| {
            path.ancestors().skip(1).any(|up| !up.as_os_str().is_empty() && !names.contains_key(up))
        };
        let all = names.clone();
        names.retain(|path, _| !orphaned(path, &all));
        let mut files = BTreeMap::new();
        for (id, file) in &self.files {
            let mut bytes = file.durable.clone();
            for change in &file.pending {
                change.apply_torn(&mut bytes, rng);
            }
            files.insert(*id, FileBytes { current: bytes.clone(), durable: bytes, pending: Vec::new() });
        }
        Self {
            durable_names: names.clone(),
            names,
            pending_names: Vec::new(),
            files,
            next_node: self.next_node,
            locks: BTreeSet::new(),
            capacity: self.capacity,
        }
    }
}

impl Storage for MemoryStorage {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn StorageFile>> {
        check_path(path)?;
        if mode.direct && !self.direct_allowed {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut disk = self.disk.lock();
        let id = match (disk.names.get(path), mode.create) {
            (Some(Node::Directory(_)), _) => return Err(io::ErrorKind::IsADirectory.into()),
            (Some(Node::File(_)), Create::New) => return Err(io::ErrorKind::AlreadyExists.into()),
            (Some(Node::File(id)), _) => *id,
            (None, Create::Never) => return Err(io::ErrorKind::NotFound.into()),
            (None, _) if !disk.parent_exists(path) => return Err(io::ErrorKind::NotFound.into()),
            (None, _) => {
                let id = disk.new_node();
                disk.files.insert(id, FileBytes::default());
                disk.change_name(NameChange::Set(path.to_owned(), Node::File(id)));
                id
            }
        };
        Ok(Arc::new(MemoryFile {
            disk: Arc::clone(&self.disk),
            id,
            writable: mode.write,
            direct: mode.direct,
        }))
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        check_path(path)?;
        let mut disk = self.disk.lock();
        let mut ancestors: Vec<&Path> = path.ancestors().filter(|up| !up.as_os_str().is_empty()).collect();
        ancestors.reverse();
        for directory in ancestors {
            match disk.names.get(directory) {
                Some(Node::Directory(_)) => {}
                Some(Node::File(_)) => return Err(io::ErrorKind::AlreadyExists.into()),
                None => {
                    let node = Node::Directory(disk.new_node());
                    disk.change_name(NameChange::Set(directory.to_owned(), node));
                }
            }
        }
        Ok(())
    }

    fn list(&self, path: &Path) -> io::Result<Vec<DirEntry>> {
        check_path(path)?;
        let disk = self.disk.lock();
        if !disk.is_directory(path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let inside = disk.names.iter().filter(|(name, _)| name.parent() == Some(path));
        Ok(inside
            .map(|(name, node)| DirEntry {
                name: name.file_name().unwrap_or_default().to_string_lossy().into_owned(),
                is_dir: matches!(node, Node::Directory(_)),
                len: match node {
                    Node::Directory(_) => 0,
                    Node::File(id) => disk.files.get(id).map_or(0, |file| file.current.len() as u64),
                },
            })
            .collect())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut disk = self.disk.lock();
        match disk.names.get(path) {
            Some(Node::File(_)) => {
                disk.remove_name(path);
                Ok(())
            }
            Some(Node::Directory(_)) => Err(io::ErrorKind::IsADirectory.into()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        check_path(path)?;
        let mut disk = self.disk.lock();
        if disk.names.contains_key(path) {
            disk.remove_name(path);
        }
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        check_path(to)?;
        let mut disk = self.disk.lock();
        if disk.file(from).is_none() || !disk.parent_exists(to) {
            return Err(io::ErrorKind::NotFound.into());
        }
        disk.change_name(NameChange::Rename(from.to_owned(), to.to_owned()));
        Ok(())
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.disk.lock().sync_names(path);
        Ok(())
    }

    fn sync_all(&self) -> io::Result<()> {
        let mut disk = self.disk.lock();
        let ids: Vec<u64> = disk.files.keys().copied().collect();
        for id in ids {
            disk.sync_file(id);
        }
        disk.pending_names.clear();
        disk.durable_names = disk.names.clone();
        Ok(())
    }

    fn free_space(&self) -> io::Result<Space> {
        let disk = self.disk.lock();
        Ok(Space { free: disk.capacity.saturating_sub(disk.used()), total: disk.capacity })
    }

    fn try_lock(&self, path: &Path) -> io::Result<Box<dyn LockGuard>> {
        check_path(path)?;
        let directory = path.parent().unwrap_or(path).to_owned();
        if !self.disk.lock().locks.insert(directory.clone()) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let lock = MemoryLock { storage: self.clone(), path: path.to_owned(), directory };
        self.open(path, OpenMode::CREATE)?;
        Ok(Box::new(lock))
    }
}

struct MemoryLock {
    storage: MemoryStorage,
    path: PathBuf,
    directory: PathBuf,
}

impl LockGuard for MemoryLock {
    fn describe(&self, text: &str) -> io::Result<()> {
        let file = self.storage.open(&self.path, OpenMode::WRITE)?;
        file.set_len(0)?;
        file.write_all_at(0, text.as_bytes())
    }
}

impl Drop for MemoryLock {
    fn drop(&mut self) {
        self.storage.disk.lock().locks.remove(&self.directory);
    }
}

struct MemoryFile {
    disk: Arc<Mutex<Disk>>,
    id: u64,
    writable: bool,
    direct: bool,
}

impl MemoryFile {
    fn check_writable(&self) -> io::Result<()> {
        if self.writable { Ok(()) } else { Err(io::ErrorKind::PermissionDenied.into()) }
    }

    /// As strict as a real device, so that a misaligned call is found without one.
    fn check_aligned(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let alignment = super::DIRECT_ALIGNMENT;
        let aligned = offset.is_multiple_of(alignment as u64)
            && bytes.len().is_multiple_of(alignment)
            && bytes.as_ptr().addr().is_multiple_of(alignment);
        if self.direct && !aligned { Err(io::ErrorKind::InvalidInput.into()) } else { Ok(()) }
    }
}

impl StorageFile for MemoryFile {
    fn size(&self) -> io::Result<u64> {
        Ok(self.disk.lock().files.get(&self.id).map_or(0, |file| file.current.len() as u64))
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        self.check_aligned(offset, buffer)?;
        let disk = self.disk.lock();
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let Some(rest) = disk.files.get(&self.id).and_then(|file| file.current.get(start..)) else {
            return Ok(0);
        };
        let count = rest.len().min(buffer.len());
        if let (Some(target), Some(source)) = (buffer.get_mut(..count), rest.get(..count)) {
            target.copy_from_slice(source);
        }
        Ok(count)
    }

    fn write_all_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.check_writable()?;
        self.check_aligned(offset, bytes)?;
        let offset = usize::try_from(offset).map_err(|_| io::ErrorKind::FileTooLarge)?;
        let mut disk = self.disk.lock();
        disk.check_growth(self.id, offset.saturating_add(bytes.len()))?;
        disk.change_bytes(self.id, ByteChange::Write { offset, bytes: bytes.to_vec() });
        Ok(())
    }

    fn write_all_vectored_at(&self, offset: u64, slices: &mut [IoSlice<'_>]) -> io::Result<()> {
        let joined: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).collect();
        if self.direct {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.write_all_at(offset, &joined)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.disk.lock().sync_file(self.id);
        Ok(())
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.check_writable()?;
        let len = usize::try_from(bytes).map_err(|_| io::ErrorKind::FileTooLarge)?;
        let mut disk = self.disk.lock();
        disk.check_growth(self.id, len)?;
        disk.change_bytes(self.id, ByteChange::Resize(len));
        Ok(())
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        if self.size()? < bytes { self.set_len(bytes) } else { Ok(()) }
    }

    fn advise_dont_need(&self, _offset: u64, _bytes: u64) -> io::Result<()> {
        Ok(())
    }

    fn start_writeback(&self, _offset: u64, _bytes: u64) -> io::Result<()> {
        Ok(())
    }

    fn is_direct(&self) -> bool {
        self.direct
    }
}
