//! The receiver's side: everything is gathered in a staging directory, and one durable mark makes it the shard.
//!
//! ```text
//! shard-NN/state, <partition>/...        the shard as it is, untouched until the mark
//! shard-NN/staging/manifest              whose parts these are: another manifest begins anew
//! shard-NN/staging/state                 rows of finished chunks, ends of finished segments
//! shard-NN/staging/<partition>/...       segment files
//! shard-NN/staging/complete              the mark: from now on the shard is what is staged
//! ```
//! A segment that the shard has already, by its recorded end and digest, stays where it is. After the mark files are
//! moved one by one, the state file last; after a crash [`Shard::open`](crate::Shard::open) goes on with it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use tidemill_log::fs::{OpenMode, Storage};
use tidemill_log::segment::{ReadError, SegmentEnd, SegmentFiles, SegmentImport};
use tidemill_protocol::{ShardId, TopicPartition};

use super::chunk::rows;
use super::manifest::SnapshotManifest;
use crate::keys::{key, space};
use crate::partition_log::{directory_name, stream_key};
use crate::shard::{STATE_FILE, ShardConfig};
use crate::state::{SegmentEnds, encode_end, read_ends};
use crate::store::{StateFile, StoreError};

const STAGING: &str = "staging";
const MANIFEST: &str = "manifest";
const COMPLETE: &str = "complete";
/// Rows that note finished chunks, while the staging lasts.
const PROGRESS: u8 = 0xff;

/// Why a snapshot can't be installed.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// It is another shard's.
    #[error("the snapshot is of shard {found}, not of shard {expected}")]
    OtherShard {
        /// Of which shard it is.
        found: ShardId,
        /// Which shard asked.
        expected: ShardId,
    },
    /// The storage refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// Where, relative to the storage's root.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// The staged state, or the shard's own, can't be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A segment is not what the manifest says: fetch it again.
    #[error(transparent)]
    Segment(#[from] ReadError),
    /// A chunk is not what the manifest says: fetch it again.
    #[error("chunk {0} is not the one that the manifest names; fetch it again")]
    Digest(usize),
    /// A chunk's rows do not read, though its digest is right.
    #[error("a chunk's rows are malformed; the sender's release may be newer")]
    Malformed,
    /// The shard's own state does not decode.
    #[error("the shard's own state is damaged: {0}")]
    Damaged(String),
    /// A part that the manifest does not name.
    #[error("the manifest has no such part")]
    UnknownPart,
    /// Finished too early.
    #[error("the snapshot is not complete: {chunks} chunks and {segments} segments are missing")]
    Incomplete {
        /// Chunks that are missing.
        chunks: usize,
        /// Segments that are missing.
        segments: usize,
    },
}

/// A snapshot on its way into a shard's directory. The shard must be closed.
pub struct SnapshotInstall {
    files: Arc<SegmentFiles>,
    config: ShardConfig,
    manifest: SnapshotManifest,
    staged: StateFile,
    missing_chunks: BTreeSet<usize>,
    missing_segments: BTreeSet<usize>,
    imports: BTreeMap<usize, SegmentImport>,
}

impl std::fmt::Debug for SnapshotInstall {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SnapshotInstall").field("applied", &self.manifest.applied()).finish_non_exhaustive()
    }
}

impl SnapshotInstall {
    /// Begins, or goes on where an earlier try with the same manifest ended. Blocking, like all of it.
    ///
    /// # Errors
    /// See [`InstallError`].
    pub fn begin(
        files: &Arc<SegmentFiles>,
        config: &ShardConfig,
        manifest: SnapshotManifest,
    ) -> Result<Self, InstallError> {
        if manifest.shard != config.shard {
            return Err(InstallError::OtherShard { found: manifest.shard, expected: config.shard });
        }
        let storage = &**files.storage();
        let staging = config.dir.join(STAGING);
        let has = own_ends(storage, config)?;
        prepare(storage, &staging, &manifest)?;
        let staged = StateFile::open(storage, &staging.join(STATE_FILE), config.state_cache_bytes)?;
        let mut install = Self {
            files: Arc::clone(files),
            config: config.clone(),
            missing_chunks: (0..manifest.chunks.len()).collect(),
            missing_segments: (0..manifest.segments.len()).collect(),
            imports: BTreeMap::new(),
            manifest,
            staged,
        };
        install.resume()?;
        install.reuse(&has)?;
        Ok(install)
    }

    /// The chunks to fetch, by their number in the manifest.
    pub fn missing_chunks(&self) -> impl Iterator<Item = usize> + '_ {
        self.missing_chunks.iter().copied()
    }

    /// The segments to fetch, by their number in the manifest.
    pub fn missing_segments(&self) -> impl Iterator<Item = usize> + '_ {
        self.missing_segments.iter().copied()
    }

    /// Takes a chunk.
    ///
    /// # Errors
    /// `Digest` where it is not the one that was asked for.
    pub fn put_chunk(&mut self, number: usize, chunk: Bytes) -> Result<(), InstallError> {
        let wanted = self.manifest.chunks.get(number).ok_or(InstallError::UnknownPart)?;
        if *blake3::hash(&chunk).as_bytes() != wanted.digest {
            return Err(InstallError::Digest(number));
        }
        let rows = rows(chunk)?;
        self.staged.commit(|put| {
            rows.iter().try_for_each(|(key, value)| put(key, Some(value)))?;
            put(&key(PROGRESS, &(number as u64)), Some(&[]))
        })?;
        self.missing_chunks.remove(&number);
        Ok(())
    }

    /// How many bytes of a segment are here already, from its start.
    ///
    /// # Errors
    /// What the storage says.
    pub fn received(&mut self, number: usize) -> Result<u64, InstallError> {
        let path = self.config.dir.join(STAGING);
        self.import(number)?.received().map_err(|source| InstallError::Io { path, source })
    }

    /// Takes bytes of a segment's log file, in order.
    ///
    /// # Errors
    /// What the storage says.
    pub fn put_segment(&mut self, number: usize, position: u64, bytes: &[u8]) -> Result<(), InstallError> {
        let path = self.config.dir.join(STAGING);
        self.import(number)?.write(position, bytes).map_err(|source| InstallError::Io { path, source })
    }

    /// Checks a segment that is all there, frame by frame.
    ///
    /// # Errors
    /// `Segment` where it is not what the manifest says: fetch it again from its start.
    pub fn finish_segment(&mut self, number: usize) -> Result<(), InstallError> {
        let partition = self.segment(number)?.0;
        self.import(number)?;
        let import = self.imports.remove(&number).ok_or(InstallError::UnknownPart)?;
        let end = import.finish()?;
        let dir = self.config.dir.join(STAGING).join(directory_name(partition));
        let storage = &**self.files.storage();
        storage.sync_dir(&dir).map_err(|source| InstallError::Io { path: dir, source })?;
        self.record_end(number, partition, &end)
    }

    /// Makes the snapshot the shard's state: [`Shard::open`](crate::Shard::open) finds it.
    ///
    /// # Errors
    /// `Incomplete` while parts are missing. After any other error it can be begun again.
    pub fn finish(self) -> Result<(), InstallError> {
        let missing = (self.missing_chunks.len(), self.missing_segments.len());
        if missing != (0, 0) {
            return Err(InstallError::Incomplete { chunks: missing.0, segments: missing.1 });
        }
        let chunks = self.manifest.chunks.len() as u64;
        self.staged.commit(|put| (0..chunks).try_for_each(|number| put(&key(PROGRESS, &number), None)))?;
        let Self { files, config, staged, .. } = self;
        // Closed before it is moved.
        drop(staged);
        let storage = &**files.storage();
        let staging = config.dir.join(STAGING);
        write_file(storage, &staging.join(COMPLETE), &[])?;
        storage.sync_dir(&staging).map_err(|source| InstallError::Io { path: staging.clone(), source })?;
        complete_install(storage, &config.dir).map_err(|source| InstallError::Io { path: staging, source })
    }

    fn segment(&self, number: usize) -> Result<(TopicPartition, SegmentEnd), InstallError> {
        let segment = self.manifest.segments.get(number).ok_or(InstallError::UnknownPart)?;
        Ok((segment.partition, segment.end))
    }

    fn import(&mut self, number: usize) -> Result<&SegmentImport, InstallError> {
        let (partition, end) = self.segment(number)?;
        let dir = self.config.dir.join(STAGING).join(directory_name(partition));
        let begun = match self.imports.remove(&number) {
            Some(import) => import,
            None => {
                let config = self.config.segment;
                let begun = SegmentImport::begin(&self.files, &dir, stream_key(partition), config, end);
                begun.map_err(|source| InstallError::Io { path: dir, source })?
            }
        };
        Ok(self.imports.entry(number).or_insert(begun))
    }

    fn record_end(
        &mut self,
        number: usize,
        partition: TopicPartition,
        end: &SegmentEnd,
    ) -> Result<(), InstallError> {
        let row = key(space::SEGMENT_END, &(partition, end.base_offset));
        self.staged.commit(|put| put(&row, Some(&encode_end(end))))?;
        self.missing_segments.remove(&number);
        Ok(())
    }

    /// What an earlier try finished need not be fetched.
    fn resume(&mut self) -> Result<(), InstallError> {
        let Some(rows) = self.staged.rows()? else { return Ok(()) };
        for number in self.missing_chunks.clone() {
            if rows.get(&key(PROGRESS, &(number as u64)))?.is_some() {
                self.missing_chunks.remove(&number);
            }
        }
        for number in self.missing_segments.clone() {
            let (partition, end) = self.segment(number)?;
            if rows.get(&key(space::SEGMENT_END, &(partition, end.base_offset)))?.is_some() {
                self.missing_segments.remove(&number);
            }
        }
        Ok(())
    }

    /// What the shard has need not be fetched.
    fn reuse(&mut self, has: &SegmentEnds) -> Result<(), InstallError> {
        for number in self.missing_segments.clone() {
            let (partition, wanted) = self.segment(number)?;
            let own = has.get(&partition).and_then(|ends| ends.find(wanted.base_offset));
            if let Some(own) = own.copied().filter(|own| same_bytes(own, &wanted)) {
                self.record_end(number, partition, &own)?;
            }
        }
        Ok(())
    }
}

/// Whether two recorded ends describe the same log file; their indexes are each broker's own.
fn same_bytes(own: &SegmentEnd, wanted: &SegmentEnd) -> bool {
    SegmentEnd { index_entries: wanted.index_entries, indexed_to: wanted.indexed_to, ..*own } == *wanted
}

/// The segments that the shard's last checkpoint names.
fn own_ends(storage: &dyn Storage, config: &ShardConfig) -> Result<SegmentEnds, InstallError> {
    let path = config.dir.join(STATE_FILE);
    match storage.open(&path, OpenMode::READ) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(SegmentEnds::new()),
        Err(source) => return Err(InstallError::Io { path, source }),
        Ok(_) => {}
    }
    let store = StateFile::open(storage, &path, config.state_cache_bytes)?;
    match store.rows()? {
        Some(rows) => read_ends(&rows).map_err(|error| InstallError::Damaged(error.to_string())),
        None => Ok(SegmentEnds::new()),
    }
}

/// Makes the staging directory, or finds it with the same manifest.
fn prepare(storage: &dyn Storage, staging: &Path, manifest: &SnapshotManifest) -> Result<(), InstallError> {
    let path = staging.join(MANIFEST);
    let encoded = manifest.encode();
    if read_file(storage, &path, encoded.len()).is_ok_and(|found| found == encoded) {
        return Ok(());
    }
    let made = storage
        .remove_dir_all(staging)
        .and_then(|()| storage.create_dir_all(staging))
        .and_then(|()| storage.sync_dir(staging.parent().unwrap_or(Path::new(""))));
    made.map_err(|source| InstallError::Io { path: staging.to_owned(), source })?;
    write_file(storage, &path, &encoded)?;
    storage.sync_dir(staging).map_err(|source| InstallError::Io { path, source })
}

fn read_file(storage: &dyn Storage, path: &Path, expected: usize) -> io::Result<Vec<u8>> {
    let file = storage.open(path, OpenMode::READ)?;
    if file.size()? != expected as u64 {
        return Ok(Vec::new());
    }
    let mut bytes = vec![0; expected];
    file.read_exact_at(0, &mut bytes)?;
    Ok(bytes)
}

fn write_file(storage: &dyn Storage, path: &Path, bytes: &[u8]) -> Result<(), InstallError> {
    let written = storage.open(path, OpenMode::CREATE).and_then(|file| {
        file.set_len(0)?;
        file.write_all_at(0, bytes)?;
        file.sync_data()
    });
    written.map_err(|source| InstallError::Io { path: path.to_owned(), source })
}

/// Moves what is staged and complete into its place; again after a crash. Does nothing where nothing is complete.
pub(crate) fn complete_install(storage: &dyn Storage, dir: &Path) -> io::Result<()> {
    let staging = dir.join(STAGING);
    match storage.open(&staging.join(COMPLETE), OpenMode::READ) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
        Ok(_) => {}
    }
    let staged = storage.list(&staging)?;
    for entry in staged.iter().filter(|entry| entry.is_dir) {
        let (from, to) = (staging.join(&entry.name), dir.join(&entry.name));
        storage.create_dir_all(&to)?;
        for file in storage.list(&from)? {
            storage.rename(&from.join(&file.name), &to.join(&file.name))?;
        }
        storage.sync_dir(&to)?;
    }
    storage.sync_dir(dir)?;
    // The state last: while it is staged, all of this is done again.
    if staged.iter().any(|entry| entry.name == STATE_FILE) {
        storage.rename(&staging.join(STATE_FILE), &dir.join(STATE_FILE))?;
        storage.sync_dir(dir)?;
    }
    // The mark before the rest: without it nothing of a half-removed staging counts.
    storage.remove(&staging.join(COMPLETE))?;
    storage.sync_dir(&staging)?;
    storage.remove_dir_all(&staging)?;
    storage.sync_dir(dir)
}
