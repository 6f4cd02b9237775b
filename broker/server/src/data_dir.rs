//! The data directory: its lock, and the file that says whose it is.
//!
//! ```text
//! DIR/lock       held by the broker that runs on it
//! DIR/meta       format and the release that wrote it last, cluster and broker ids, incarnation, what was fixed for good
//!                when the directory was made, whether the last stop was clean (TOML)
//! DIR/wal/ shard-NN/ artifacts/ tls/
//! ```

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tidemill_log::fs::{
    DirectoryLock, DiskReserve, DiskStorage, LockError, OpenMode, ReservedStorage, Storage,
};
use tidemill_protocol::{BrokerId, ClusterId};
use uuid::Uuid;

use crate::config::DurabilitySetting;
use crate::disk;

/// Newest format of the data directory that this release reads and writes.
const FORMAT: u32 = 2;

/// What this release calls itself where it writes.
pub(crate) const RELEASE: &str = concat!("tidemill ", env!("CARGO_PKG_VERSION"));

/// There from the first start until the directory is complete.
const CREATING: &str = "creating";

/// A data directory, locked for this process.
pub(crate) struct DataDir {
    root: PathBuf,
    storage: Arc<dyn Storage>,
    reserve: Arc<DiskReserve>,
    meta: Meta,
    created: bool,
    _lock: DirectoryLock,
}

/// The contents of `meta`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Meta {
    pub(crate) format: u32,
    /// The release that wrote the directory last, for people; empty where that was before it was noted.
    #[serde(default)]
    pub(crate) written_by: String,
    pub(crate) cluster: ClusterId,
    pub(crate) broker_id: u32,
    /// Of the Raft node: rises when this broker comes back as another replica, never on a plain restart.
    pub(crate) incarnation: u32,
    /// Fixed when the directory was made.
    pub(crate) shards: u16,
    /// Fixed when the directory was made; one from before that was noted waits for every sync.
    #[serde(default = "fsync")]
    pub(crate) durability: DurabilitySetting,
    /// Random, of this very directory: another one under the same broker id and incarnation is a stranger to the peers. A directory from
    /// before that was noted gets its own with the next start.
    #[serde(default = "Uuid::new_v4")]
    pub(crate) directory: Uuid,
    /// The brokers that form the cluster together, this one among them; none where this one was taken in by them.
    #[serde(default)]
    pub(crate) forming: Vec<BrokerId>,
    /// Counts starts.
    pub(crate) starts: u64,
    /// The last stop wrote everything down.
    pub(crate) clean: bool,
}

/// Why a data directory can't be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// Another broker runs on it, or the lock file can't be made.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The file system.
    #[error("the data directory {path} can't be used: {source}")]
    Io {
        /// The directory or file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Not a data directory of this release.
    #[error("{path}: {reason}")]
    Meta {
        /// The file.
        path: PathBuf,
        /// What is wrong and what to do.
        reason: String,
    },
}

impl DataDir {
    /// Opens the directory, or makes it with `new` as its identity. The reserve, if it is held, is the last room for
    /// whatever is written from here on; see [`Self::begin`].
    pub(crate) fn open(
        root: &Path,
        reserve_bytes: u64,
        new: impl FnOnce() -> Meta,
    ) -> Result<Self, DataDirError> {
        let io = |path: &Path| {
            let path = path.to_owned();
            move |source| DataDirError::Io { path, source }
        };
        let disk: Arc<dyn Storage> = Arc::new(DiskStorage::new(root).map_err(io(root))?);
        let reserve = Arc::new(disk::reserve(&disk, reserve_bytes));
        let storage: Arc<dyn Storage> = Arc::new(ReservedStorage::new(disk, Arc::clone(&reserve)));
        let lock = DirectoryLock::acquire(storage.as_ref(), Path::new("lock"));
        let lock = lock.map_err(|error| named_whole(root, error))?;
        let path = root.join("meta");
        let stored = read_text(storage.as_ref(), "meta").map_err(io(&path))?;
        let created = stored.is_none();
        let meta = match stored {
            Some(text) => {
                parse_meta(&text).map_err(|reason| DataDirError::Meta { path: path.clone(), reason })?
            }
            None => {
                refuse_foreign(storage.as_ref(), root)?;
                begin_anew(storage.as_ref()).map_err(io(root))?;
                new()
            }
        };
        Ok(Self { root: root.to_owned(), storage, reserve, meta, created, _lock: lock })
    }

    /// Opens a directory that is there, for other work than a broker's.
    pub(crate) fn open_existing(root: &Path) -> Result<Self, DataDirError> {
        let path = root.join("meta");
        let reason = "it is missing; restore it from a copy".to_owned();
        match path.is_file() {
            true => Self::open(root, 0, || unreachable!("it is there")),
            false => Err(DataDirError::Meta { path, reason }),
        }
    }

    /// From here on it forms no groups with others. Durable when this returns.
    pub(crate) fn form_nothing(&mut self) -> io::Result<()> {
        self.meta.forming.clear();
        self.save(self.meta.clean)
    }

    /// The start goes on: counts it, and notes that it has not stopped cleanly yet.
    pub(crate) fn begin(&mut self) -> io::Result<()> {
        self.meta.starts += 1;
        if self.created {
            // Written last when the directory is new: until then a crash leaves nothing that looks complete.
            return Ok(());
        }
        let clean = self.meta.clean;
        self.save(false)?;
        self.meta.clean = clean;
        Ok(())
    }

    pub(crate) fn storage(&self) -> &Arc<dyn Storage> {
        &self.storage
    }

    /// Given up by the first write that finds no room.
    pub(crate) fn reserve(&self) -> &Arc<DiskReserve> {
        &self.reserve
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// As found, or as given for a new directory.
    pub(crate) fn meta(&self) -> &Meta {
        &self.meta
    }

    /// Whether there was no data directory before.
    pub(crate) fn created(&self) -> bool {
        self.created
    }

    /// The directory is complete from here on: writes `meta`, then takes the mark of one under construction away.
    pub(crate) fn complete(&mut self) -> io::Result<()> {
        self.save(false)?;
        self.storage.remove(Path::new(CREATING))
    }

    /// Writes `meta` durably; `clean` says that everything else is written down too.
    pub(crate) fn save(&mut self, clean: bool) -> io::Result<()> {
        self.meta.clean = clean;
        self.meta.format = FORMAT;
        RELEASE.clone_into(&mut self.meta.written_by);
        let text = toml::to_string(&self.meta).map_err(io::Error::other)?;
        write_text(&*self.storage, "meta", &text)
    }
}

/// Puts a small file in the directory in the place of an older one, durably: whole or not at all.
pub(crate) fn write_text(storage: &dyn Storage, name: &str, text: &str) -> io::Result<()> {
    let beside = format!("{name}.new");
    let file = storage.open(Path::new(&beside), OpenMode::CREATE)?;
    file.set_len(0)?;
    file.write_all_at(0, text.as_bytes())?;
    file.sync_data()?;
    storage.rename(Path::new(&beside), Path::new(name))?;
    storage.sync_dir(Path::new(""))
}

/// A small file of the directory; `None` where it is not there.
pub(crate) fn read_text(storage: &dyn Storage, name: &str) -> io::Result<Option<String>> {
    const META_BYTES_MAX: u64 = 4 << 20;
    let file = match storage.open(Path::new(name), OpenMode::READ) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let size = file.size()?.min(META_BYTES_MAX);
    let mut text = vec![0; usize::try_from(size).unwrap_or_default()];
    let read = file.read_at(0, &mut text)?;
    text.truncate(read);
    String::from_utf8(text).map(Some).map_err(io::Error::other)
}

/// What every format's `meta` says, whatever else.
#[derive(Deserialize)]
struct Stamp {
    format: u32,
    #[serde(default)]
    written_by: String,
}

fn parse_meta(text: &str) -> Result<Meta, String> {
    let foreign = |error: toml::de::Error| {
        format!("this is not the meta file of a data directory: {}", error.message())
    };
    let stamp: Stamp = toml::from_str(text).map_err(foreign)?;
    if stamp.format > FORMAT {
        let writer = match &*stamp.written_by {
            "" => "a newer release",
            named => named,
        };
        return Err(format!(
            "the directory has format {}, written by {writer}; this is {RELEASE}, which reads up to format {FORMAT}: start \
             that release or a newer one, or restore the copy of the directory from before the upgrade",
            stamp.format
        ));
    }
    toml::from_str(text).map_err(foreign)
}

/// A lock file as whoever starts a broker names it: the storage knows it by its place in the directory.
fn named_whole(root: &Path, error: LockError) -> LockError {
    match error {
        LockError::Held { path, holder } => LockError::Held { path: root.join(path), holder },
        LockError::Io { path, source } => LockError::Io { path: root.join(path), source },
    }
}

/// A directory without `meta` must not hold a log: somebody lost the file, or named the wrong directory.
fn refuse_foreign(storage: &dyn Storage, root: &Path) -> Result<(), DataDirError> {
    let entries =
        storage.list(Path::new("")).map_err(|source| DataDirError::Io { path: root.to_owned(), source })?;
    const OURS: [&str; 15] = [
        "lock",
        CREATING,
        "meta.new",
        "artifacts",
        "artifact-digests",
        "reserve",
        "tls",
        "peers",
        "peers.new",
        "replicas",
        "replicas.new",
        "joining",
        "joining.new",
        "recovered",
        "recovered.new",
    ];
    let data = |name: &str| name == "wal" || name.starts_with("shard-");
    if let Some(entry) =
        entries.iter().find(|entry| !OURS.contains(&entry.name.as_str()) && !data(&entry.name))
    {
        return Err(DataDirError::Meta {
            path: root.join(&entry.name),
            reason: "this is no data directory, and it is not empty; name another".to_owned(),
        });
    }
    match entries.iter().find(|entry| data(&entry.name)) {
        None => Ok(()),
        // Made by a first start that did not get as far as writing `meta`: nothing was acknowledged from it.
        Some(_) if entries.iter().any(|entry| entry.name == CREATING) => Ok(()),
        Some(entry) => Err(DataDirError::Meta {
            path: root.join("meta"),
            reason: format!(
                "it is missing, though {} is there; restore it from a copy, or name another data directory",
                entry.name
            ),
        }),
    }
}

/// Marks the directory as under construction, and clears what an earlier first start left unfinished: it had not served.
fn begin_anew(storage: &dyn Storage) -> io::Result<()> {
    let unfinished = storage.list(Path::new(""))?;
    for entry in unfinished.iter().filter(|entry| entry.name == "wal" || entry.name.starts_with("shard-")) {
        storage.remove_dir_all(Path::new(&entry.name))?;
    }
    storage.open(Path::new(CREATING), OpenMode::CREATE)?.sync_data()?;
    storage.sync_dir(Path::new(""))
}

impl Meta {
    pub(crate) fn new(
        cluster: ClusterId,
        broker_id: u32,
        shards: u16,
        durability: DurabilitySetting,
    ) -> Self {
        Self {
            format: FORMAT,
            written_by: RELEASE.to_owned(),
            cluster,
            broker_id,
            incarnation: 1,
            shards,
            durability,
            directory: Uuid::new_v4(),
            forming: vec![BrokerId::new(broker_id)],
            starts: 0,
            clean: false,
        }
    }
}

const fn fsync() -> DurabilitySetting {
    DurabilitySetting::Fsync
}

#[cfg(test)]
mod tests {

    use super::*;

    fn meta() -> Meta {
        let new = Meta::new(ClusterId::new(Uuid::from_u128(9)), 4, 3, DurabilitySetting::Replicated);
        Meta { directory: Uuid::from_u128(11), ..new }
    }

    fn open(root: &Path, new: impl FnOnce() -> Meta) -> Result<DataDir, DataDirError> {
        let mut opened = DataDir::open(root, 0, new)?;
        opened.begin().expect("written");
        Ok(opened)
    }

    #[test]
    fn a_directory_keeps_its_identity_and_whether_it_stopped_cleanly() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut first = open(dir.path(), meta).expect("new");
        assert!(first.created());
        first.complete().expect("completed");
        first.save(true).expect("saved");
        drop(first);
        let second = open(dir.path(), || panic!("it is there")).expect("opens");
        assert!(!second.created() && second.meta().clean);
        assert_eq!((second.meta().cluster, second.meta().starts), (meta().cluster, 2));
        assert_eq!((second.meta().shards, second.meta().durability), (3, DurabilitySetting::Replicated));
        drop(second);
        let third = open(dir.path(), || panic!("it is there")).expect("opens");
        assert!(!third.meta().clean, "the second start did not stop cleanly");
    }

    #[test]
    fn a_first_start_that_did_not_finish_begins_anew() {
        let dir = tempfile::tempdir().expect("a directory");
        drop(open(dir.path(), meta).expect("new"));
        std::fs::create_dir(dir.path().join("wal")).expect("made");
        let again = open(dir.path(), meta).expect("begins anew");
        assert!(again.created() && !dir.path().join("wal").exists());
    }

    #[test]
    fn a_start_that_is_refused_leaves_no_trace() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut first = open(dir.path(), meta).expect("new");
        first.complete().expect("completed");
        first.save(true).expect("saved");
        drop(first);
        drop(DataDir::open(dir.path(), 0, || panic!("it is there")).expect("opens"));
        let third = open(dir.path(), || panic!("it is there")).expect("opens");
        assert!(third.meta().clean && third.meta().starts == 2);
    }

    #[test]
    fn a_directory_from_before_durability_was_noted_waits_for_every_sync() {
        let text = toml::to_string(&meta()).expect("encodes");
        let older: String =
            text.lines().filter(|line| !line.starts_with("durability")).map(|l| format!("{l}\n")).collect();
        assert_ne!(older, text);
        assert_eq!(parse_meta(&older).expect("reads").durability, DurabilitySetting::Fsync);
    }

    /// Beside the other stored formats of that directory, which `broker/raft/src/tests/format.rs` reads.
    #[test]
    fn meta_of_format_1_reads_as_it_always_did() {
        let text = include_str!("../../../tests/fixtures/format-1/meta");
        let read = parse_meta(text).expect("format 1");
        let written = Meta {
            format: 1,
            written_by: "tidemill 0.1.0".to_owned(),
            incarnation: 2,
            directory: read.directory,
            forming: Vec::new(),
            starts: 17,
            clean: true,
            ..meta()
        };
        assert_eq!(read, written);
        assert_ne!(read.directory, parse_meta(text).expect("format 1").directory, "each has its own");
    }

    #[test]
    fn meta_of_format_2_reads_as_it_always_did() {
        let text = include_str!("../../../tests/fixtures/format-2/meta");
        let read = parse_meta(text).expect("format 2");
        let written = Meta {
            written_by: "tidemill 0.1.0".to_owned(),
            incarnation: 2,
            starts: 17,
            clean: true,
            ..meta()
        };
        assert_eq!(read, written);
        let again = toml::to_string(&read).expect("encodes");
        assert_eq!(again, text, "meta changed: raise the format, and keep this one readable");
    }

    #[test]
    fn the_release_that_wrote_last_is_named() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut first = open(dir.path(), || Meta { written_by: String::new(), ..meta() }).expect("new");
        first.complete().expect("completed");
        let stored = std::fs::read_to_string(dir.path().join("meta")).expect("there");
        assert_eq!(parse_meta(&stored).expect("reads").written_by, RELEASE);
    }

    #[test]
    fn two_brokers_do_not_share_a_directory() {
        let dir = tempfile::tempdir().expect("a directory");
        let _held = open(dir.path(), meta).expect("new");
        let error = open(dir.path(), meta).err().expect("locked");
        assert!(matches!(error, DataDirError::Lock(_)), "{error}");
        let file = dir.path().join("lock").display().to_string();
        assert!(error.to_string().contains(&file), "of several directories it says which: {error}");
    }

    #[test]
    fn newer_foreign_and_incomplete_directories_are_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let write = |text: &str| std::fs::write(dir.path().join("meta"), text).expect("written");
        let refusal = || open(dir.path(), meta).err().expect("refused").to_string();
        // Whatever else a newer one says, and whatever it no longer does.
        write("format = 3\nwritten_by = \"tidemill 9.8.7\"\n");
        let newer = refusal();
        assert!(newer.contains("has format 3, written by tidemill 9.8.7"), "{newer}");
        assert!(newer.contains(RELEASE) && newer.contains("start that release or a newer one"), "{newer}");
        write("format = 3\n");
        assert!(refusal().contains("written by a newer release"));
        write("hello");
        assert!(refusal().contains("not the meta file"));
        std::fs::remove_file(dir.path().join("meta")).expect("removed");
        std::fs::create_dir(dir.path().join("wal")).expect("made");
        assert!(refusal().contains("missing"));
    }
}
