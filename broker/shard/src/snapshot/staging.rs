//! The staging directory: what was received so far, kept over a crash, and its move into the shard's place.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use tidemill_log::fs::{OpenMode, Storage};
use tidemill_log::segment::{SegmentEnd, SegmentFiles};
use tidemill_protocol::{Offset, TopicPartition};

use super::install::InstallError;
use super::manifest::SnapshotManifest;
use crate::keys::{KeyPart, key, space};
use crate::partition_log::directory_name;
use crate::shard::{STATE_FILE, ShardConfig};
use crate::state::{decode_end, encode_end};
use crate::store::{StateFile, StoreError};

const STAGING: &str = "staging";
const MANIFEST: &str = "manifest";
const COMPLETE: &str = "complete";
/// Rows that note finished chunks, while the staging lasts.
const CHUNK_DONE: u8 = 0xff;
/// Rows that note finished segments, while the staging lasts.
const SEGMENT_DONE: u8 = 0xfe;

/// Finished segments, with the ends to record.
pub(super) type StagedSegments = BTreeMap<(TopicPartition, Offset), SegmentEnd>;

/// The staging directory of a shard, open.
pub(super) struct Staging {
    files: Arc<SegmentFiles>,
    dir: PathBuf,
    state: StateFile,
    segments: StagedSegments,
}

impl Staging {
    /// Makes the directory, or finds what is left of an earlier try.
    pub(super) fn open(
        files: &Arc<SegmentFiles>,
        config: &ShardConfig,
        manifest: &SnapshotManifest,
    ) -> Result<Self, InstallError> {
        let storage = &**files.storage();
        let dir = config.dir.join(STAGING);
        let open_state = || StateFile::open(storage, &dir.join(STATE_FILE), config.state_cache_bytes);
        let encoded = manifest.encode();
        let same = read_file(storage, &dir.join(MANIFEST), encoded.len()).is_ok_and(|found| found == encoded);
        if same && let Ok(state) = open_state() {
            let staging =
                Self { files: Arc::clone(files), dir: dir.clone(), state, segments: StagedSegments::new() };
            return staging.without_ends();
        }
        let finished = match storage.open(&dir.join(STATE_FILE), OpenMode::READ) {
            Ok(_) => open_state().map_err(InstallError::from).and_then(|state| read_segments(&state)),
            Err(_) => Ok(StagedSegments::new()),
        };
        // Unreadable is as good as none: what is in the segment files is looked at again.
        let finished = finished.unwrap_or_default();
        let io_error = |source| InstallError::Io { path: dir.clone(), source };
        begin(storage, &dir, manifest).map_err(io_error)?;
        write_file(storage, &dir.join(MANIFEST), &encoded)?;
        let state = open_state()?;
        storage.sync_dir(&dir).map_err(io_error)?;
        let mut staging = Self { files: Arc::clone(files), dir, state, segments: StagedSegments::new() };
        staging.keep(finished, manifest)?;
        Ok(staging)
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The numbers of finished chunks, and finished segments.
    pub(super) fn progress(&self) -> Result<(BTreeSet<usize>, StagedSegments), InstallError> {
        let mut chunks = BTreeSet::new();
        for_rows(&self.state, CHUNK_DONE, |mut key, _| {
            chunks.extend(u64::take(&mut key).and_then(|number| usize::try_from(number).ok()));
            Ok(())
        })?;
        Ok((chunks, self.segments.clone()))
    }

    pub(super) fn has_segment(&self, partition: TopicPartition, base_offset: Offset) -> bool {
        self.segments.contains_key(&(partition, base_offset))
    }

    pub(super) fn put_chunk(&self, number: usize, rows: &[(Bytes, Bytes)]) -> Result<(), StoreError> {
        self.state.commit(|put| {
            rows.iter().try_for_each(|(key, value)| put(key, Some(value)))?;
            put(&key(CHUNK_DONE, &(number as u64)), Some(&[]))
        })
    }

    /// A segment is all there, checked and synced.
    pub(super) fn note_segment(
        &mut self,
        partition: TopicPartition,
        end: &SegmentEnd,
    ) -> Result<(), InstallError> {
        let dir = self.dir.join(directory_name(partition));
        let storage = self.files.storage();
        // The directory itself may be new.
        for dir in [&dir, &self.dir] {
            storage.sync_dir(dir).map_err(|source| InstallError::Io { path: dir.clone(), source })?;
        }
        let row = key(SEGMENT_DONE, &(partition, end.base_offset));
        self.state.commit(|put| put(&row, Some(&encode_end(end))))?;
        self.segments.insert((partition, end.base_offset), *end);
        Ok(())
    }

    /// Makes what is staged the shard: the mark, then the move.
    pub(super) fn complete(
        self,
        chunks: usize,
        ends: &[(TopicPartition, SegmentEnd)],
    ) -> Result<(), InstallError> {
        self.state.commit(|put| {
            (0..chunks as u64).try_for_each(|number| put(&key(CHUNK_DONE, &number), None))?;
            self.segments.keys().try_for_each(|segment| put(&key(SEGMENT_DONE, segment), None))?;
            ends.iter().try_for_each(|(partition, end)| {
                put(&key(space::SEGMENT_END, &(*partition, end.base_offset)), Some(&encode_end(end)))
            })
        })?;
        let Self { files, dir, state, segments } = self;
        // Closed before it is moved.
        drop(state);
        let storage = &**files.storage();
        let io_error = |source| InstallError::Io { path: dir.clone(), source };
        // A segment that was begun here, and that the shard came to have by itself, must not be put over the shard's own.
        let mut finished: BTreeMap<String, Vec<Offset>> = BTreeMap::new();
        for (partition, base_offset) in segments.into_keys() {
            finished.entry(directory_name(partition)).or_default().push(base_offset);
        }
        keep_only(storage, &dir, &finished).map_err(io_error)?;
        // What the mark vouches for is there before it.
        storage.sync_dir(&dir).map_err(io_error)?;
        write_file(storage, &dir.join(COMPLETE), &[])?;
        storage.sync_dir(&dir).map_err(io_error)?;
        complete_install(storage, dir.parent().unwrap_or(Path::new(""))).map_err(io_error)
    }

    /// A try that ended while it was completed recorded ends, among them of segments that the shard had then and may not have now; the
    /// notes went with the same commit.
    fn without_ends(mut self) -> Result<Self, InstallError> {
        let mut recorded = Vec::new();
        for_rows(&self.state, space::SEGMENT_END, |identity, _| {
            recorded.push([&[space::SEGMENT_END], identity].concat());
            Ok(())
        })?;
        if !recorded.is_empty() {
            self.state.commit(|put| recorded.iter().try_for_each(|row| put(row, None)))?;
        }
        self.segments = read_segments(&self.state)?;
        Ok(self)
    }

    /// Notes again what was finished for another manifest and is what this one wants.
    fn keep(&mut self, finished: StagedSegments, manifest: &SnapshotManifest) -> Result<(), InstallError> {
        let wanted: BTreeMap<_, _> = manifest
            .segments
            .iter()
            .map(|segment| ((segment.partition, segment.end.base_offset), segment.end))
            .collect();
        let same = |(segment, end): &((TopicPartition, Offset), SegmentEnd)| {
            wanted.get(segment).is_some_and(|wanted| wanted.bytes == end.bytes && wanted.digest == end.digest)
        };
        self.segments = finished.into_iter().filter(same).collect();
        self.state.commit(|put| {
            self.segments
                .iter()
                .try_for_each(|(segment, end)| put(&key(SEGMENT_DONE, segment), Some(&encode_end(end))))
        })?;
        Ok(())
    }
}

/// An empty state, and of the rest what the manifest names.
fn begin(storage: &dyn Storage, dir: &Path, manifest: &SnapshotManifest) -> io::Result<()> {
    storage.create_dir_all(dir)?;
    storage.sync_dir(dir.parent().unwrap_or(Path::new("")))?;
    for name in [MANIFEST, STATE_FILE, COMPLETE] {
        match storage.remove(&dir.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    let bases = manifest.bases().into_iter().map(|(id, bases)| (directory_name(id), bases));
    keep_only(storage, dir, &bases.collect())?;
    storage.sync_dir(dir)
}

/// Removes the files of all segments but these, by directory and base offset.
fn keep_only(storage: &dyn Storage, dir: &Path, kept: &BTreeMap<String, Vec<Offset>>) -> io::Result<()> {
    for entry in storage.list(dir)?.into_iter().filter(|entry| entry.is_dir) {
        let path = dir.join(&entry.name);
        let Some(bases) = kept.get(&entry.name) else {
            storage.remove_dir_all(&path)?;
            continue;
        };
        for file in storage.list(&path)? {
            let base = file.name.split('.').next().and_then(|base| base.parse().ok()).map(Offset::new);
            if base.is_none_or(|base| bases.binary_search(&base).is_err()) {
                storage.remove(&path.join(&file.name))?;
            }
        }
        storage.sync_dir(&path)?;
    }
    Ok(())
}

/// Removes what was staged, where there is anything that is not complete.
pub(super) fn discard(storage: &dyn Storage, shard_dir: &Path) -> io::Result<()> {
    let dir = shard_dir.join(STAGING);
    match storage.open(&dir.join(COMPLETE), OpenMode::READ) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            storage.remove_dir_all(&dir)?;
            storage.sync_dir(shard_dir)
        }
        Err(error) => Err(error),
        Ok(_) => Ok(()),
    }
}

fn read_segments(state: &StateFile) -> Result<StagedSegments, InstallError> {
    let mut segments = StagedSegments::new();
    for_rows(state, SEGMENT_DONE, |mut key, value| {
        let damaged = || InstallError::Damaged("the note of a segment does not decode".to_owned());
        let segment = <(TopicPartition, Offset)>::take(&mut key).ok_or_else(damaged)?;
        segments
            .insert(segment, decode_end(value).map_err(|error| InstallError::Damaged(error.to_string()))?);
        Ok(())
    })?;
    Ok(segments)
}

/// Calls `each` with the rows of one space: their keys without it, and their values.
fn for_rows(
    state: &StateFile,
    space: u8,
    mut each: impl FnMut(&[u8], &[u8]) -> Result<(), InstallError>,
) -> Result<(), InstallError> {
    let Some(rows) = state.rows()? else { return Ok(()) };
    let start = [space];
    let next = space.checked_add(1).map(|next| [next]);
    let end = next.as_ref().map_or(Bound::Unbounded, |next| Bound::Excluded(&next[..]));
    for row in rows.range(Bound::Included(&start), end)? {
        let (key, value) = row.map_err(|error| StoreError::new("can't be read", error))?;
        each(key.value().get(1..).unwrap_or_default(), value.value())?;
    }
    Ok(())
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
