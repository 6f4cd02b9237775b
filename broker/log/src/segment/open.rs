//! Recovery: the files are made what the state store says they are, without reading them.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use thiserror::Error;
use tidemill_protocol::Offset;
use tracing::{error, warn};

use super::SegmentStore;
use super::ends::{EndsError, PartitionEnds, SegmentEnd};
use super::files::SegmentFiles;
use super::header::FileKind;
use super::index::index_bytes;
use super::key::{KeyHasher, StreamKey};
use super::rebuild::rebuild_index;
use super::store::SegmentConfig;
use crate::fs::{DirEntry, OpenMode};

/// Why a partition's files can't be used.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The recorded ends make no sense.
    #[error("{}: {source}; the state store is damaged; restore the data directory from a copy", dir.display())]
    Ends {
        /// The partition's directory.
        dir: PathBuf,
        /// What is wrong.
        source: EndsError,
    },
    /// A segment that was recorded is not there.
    #[error(
        "segment file {} is missing, {recorded} bytes were recorded; restore it from a copy of the data directory",
        file.display()
    )]
    Missing {
        /// The file, relative to the storage's root.
        file: PathBuf,
        /// Its recorded length.
        recorded: u64,
    },
    /// A segment lost bytes that had been made durable.
    #[error(
        "segment file {} has {found} bytes, {recorded} were recorded as durable: it is damaged; restore it from a copy of the data directory",
        file.display()
    )]
    Short {
        /// The file, relative to the storage's root.
        file: PathBuf,
        /// Its recorded length.
        recorded: u64,
        /// Its length.
        found: u64,
    },
    /// The storage refused.
    #[error("opening {}: {source}", path.display())]
    Io {
        /// The file or directory, relative to the storage's root.
        path: PathBuf,
        /// What the storage said.
        source: io::Error,
    },
}

impl OpenError {
    /// Whether what is on the disk is not what was recorded. Otherwise the storage refused, and it may be whole.
    #[must_use]
    pub const fn is_damage(&self) -> bool {
        match self {
            Self::Ends { .. } | Self::Missing { .. } | Self::Short { .. } => true,
            Self::Io { .. } => false,
        }
    }
}

/// What opening changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OpenReport {
    /// Bytes beyond the recorded ends that were cut from log files.
    pub cut_bytes: u64,
    /// Files that no recorded segment has, now removed.
    pub removed_files: usize,
    /// Indexes that were missing or too short, now rebuilt.
    pub rebuilt_indexes: usize,
}

struct Opening<'a> {
    files: &'a SegmentFiles,
    dir: &'a Path,
    found: Vec<DirEntry>,
    report: OpenReport,
}

impl SegmentStore {
    /// Opens the partition in `dir` as `ends` describe it: longer files are cut back, files of other segments are
    /// removed, and no data is read. A missing or short index is rebuilt by reading its one segment. Without a
    /// segment in `ends` the partition is new, and nothing is created before the first append.
    ///
    /// # Errors
    /// See [`OpenError`]. Damage inside a file of the right length is not looked for.
    pub fn open(
        files: &Arc<SegmentFiles>,
        dir: impl AsRef<Path>,
        key: StreamKey,
        config: SegmentConfig,
        ends: PartitionEnds,
    ) -> Result<(Self, OpenReport), OpenError> {
        let dir: Arc<Path> = dir.as_ref().into();
        ends.check().map_err(|source| OpenError::Ends { dir: dir.to_path_buf(), source })?;
        let found = match files.storage().list(&dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            listed => listed.map_err(|source| OpenError::Io { path: dir.to_path_buf(), source })?,
        };
        let mut opening = Opening { files, dir: &dir, found, report: OpenReport::default() };
        opening.remove_unnamed(&ends)?;
        let mut suspects = Vec::new();
        for end in ends.segments.iter().filter(|end| !end.is_empty()) {
            opening.cut_log(end)?;
            if !opening.cut_index(end)? {
                suspects.push(end.base_offset);
            }
        }
        let mut report = opening.report;
        let store = Self::assemble(Arc::clone(files), dir, KeyHasher::new(key), config, ends);
        for base_offset in suspects {
            report.rebuilt_indexes += usize::from(store.rebuild_at_open(base_offset));
        }
        Ok((store, report))
    }

    /// Rebuilds an index that is not as recorded. Where that fails the store works, and slowly, without.
    fn rebuild_at_open(&self, base_offset: Offset) -> bool {
        let view = self.view();
        let Some(segment) = view.iter().find(|segment| segment.base_offset == base_offset) else {
            return false;
        };
        warn!(file = %segment.index.path().display(), "an index is missing or too short, rebuilding it");
        let rebuilt = rebuild_index(self.files(), self.key(), segment, self.config().index_interval_bytes);
        match &rebuilt {
            Ok(()) => {
                let mut writer = self.writer.lock();
                writer.dirty.push(Arc::clone(segment));
                writer.created_files = true;
            }
            Err(error) => {
                error!(%error, "an index could not be rebuilt");
                segment.suspect_index();
            }
        }
        rebuilt.is_ok()
    }
}

impl Opening<'_> {
    /// Removes files of segments that have no recorded bytes, and indexes of those that have no recorded entry.
    fn remove_unnamed(&mut self, ends: &PartitionEnds) -> Result<(), OpenError> {
        for entry in self.found.iter().filter(|entry| !entry.is_dir) {
            let Some((kind, base_offset)) = FileKind::parse(&entry.name) else {
                warn!(dir = %self.dir.display(), name = entry.name, "a file here is none of ours and is left alone");
                continue;
            };
            let named = ends.find(base_offset).is_some_and(|end| match kind {
                FileKind::Log => !end.is_empty(),
                FileKind::Index => end.index_entries > 0,
            });
            if !named {
                let path = self.dir.join(&entry.name);
                let removed = self.files.storage().remove(&path);
                removed.map_err(|source| OpenError::Io { path, source })?;
                self.report.removed_files += 1;
            }
        }
        Ok(())
    }

    fn cut_log(&mut self, end: &SegmentEnd) -> Result<(), OpenError> {
        let (file, recorded) = (self.path(FileKind::Log, end), end.bytes);
        let Some(found) = self.length(FileKind::Log, end) else {
            return Err(OpenError::Missing { file, recorded });
        };
        if found < recorded {
            return Err(OpenError::Short { file, recorded, found });
        }
        if found > recorded {
            self.cut(file, recorded)?;
            self.report.cut_bytes += found - recorded;
        }
        Ok(())
    }

    /// Cuts the index to its recorded entries; says whether they are all there.
    fn cut_index(&self, end: &SegmentEnd) -> Result<bool, OpenError> {
        if end.index_entries == 0 {
            return Ok(true);
        }
        let recorded = index_bytes(end.index_entries);
        let found = self.length(FileKind::Index, end).unwrap_or(0);
        if found > recorded {
            self.cut(self.path(FileKind::Index, end), recorded)?;
        }
        Ok(found >= recorded)
    }

    fn cut(&self, path: PathBuf, bytes: u64) -> Result<(), OpenError> {
        let cut = self.files.storage().open(&path, OpenMode::WRITE).and_then(|file| file.set_len(bytes));
        cut.map_err(|source| OpenError::Io { path, source })
    }

    fn path(&self, kind: FileKind, end: &SegmentEnd) -> PathBuf {
        self.dir.join(kind.file_name(end.base_offset))
    }

    fn length(&self, kind: FileKind, end: &SegmentEnd) -> Option<u64> {
        let name = kind.file_name(end.base_offset);
        self.found.iter().find(|entry| entry.name == name).map(|entry| entry.len)
    }
}
