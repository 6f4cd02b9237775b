//! The receiver's side: everything is gathered in a staging directory beside the open shard, and one durable mark makes it the
//! shard.
//!
//! ```text
//! shard-NN/state, <partition>/...        the shard as it is, open and serving, untouched until the mark
//! shard-NN/staging/manifest              whose parts these are
//! shard-NN/staging/state                 rows of finished chunks, notes of finished segments
//! shard-NN/staging/<partition>/...       segment files
//! shard-NN/staging/complete              the mark: from now on the shard is what is staged
//! ```
//! A segment that the shard has already, by its recorded end and digest, stays where it is, pinned as long as the install lives: the
//! shard's checkpoints leave it alone. What the shard wrote behind the recorded end since then is cut off when the new one is opened. Of
//! a segment that it has the beginning of, that is copied. Nothing of this is noted in the staging: after a restart the shard may have let
//! these files go.
//!
//! With another manifest (the source made a newer checkpoint, or another source is asked) segments that it names too, or the beginning
//! of them, are kept; the state is fetched anew.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;

use bytes::Bytes;
use tidemill_log::segment::{ReadError, SegmentEnd, SegmentImport};
use tidemill_protocol::{ShardId, TopicPartition};

use super::chunk::rows;
use super::manifest::SnapshotManifest;
use super::staging::{self, Staging};
use crate::partition_log::{directory_name, stream_key};
use crate::shard::{ClosedShard, OwnSegments, Shard, ShardOpenError};
use crate::store::StoreError;

/// Bytes of an own segment copied at once.
const COPY_BYTES: usize = 1 << 20;

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
    /// The shard was replaced since the install began.
    #[error("another snapshot took the shard's place meanwhile; begin again")]
    Replaced,
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
    /// What is staged does not decode.
    #[error("the staged state is damaged: {0}")]
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
    /// It is in its place, and can't be opened there.
    #[error("the installed snapshot can't be opened: {0}")]
    Open(#[from] ShardOpenError),
}

impl InstallError {
    /// Whether a part was not what the manifest says, and nothing else is wrong: it can be fetched again.
    #[must_use]
    pub fn is_of_part(&self) -> bool {
        matches!(self, Self::Digest(_) | Self::Malformed | Self::Segment(ReadError::Damaged(_)))
    }
}

/// A snapshot on its way into a shard's directory, beside the shard, which is open and goes on. One at a time for a shard.
pub struct SnapshotInstall {
    live: Shard,
    manifest: SnapshotManifest,
    staged: Staging,
    missing_chunks: BTreeSet<usize>,
    missing_segments: BTreeSet<usize>,
    imports: BTreeMap<usize, SegmentImport>,
    own: OwnSegments,
    /// Ends to record: of what is staged, and of what stays where it is.
    ends: BTreeMap<usize, SegmentEnd>,
    /// Segments whose beginning is not taken from the shard's own: it was, and it was not what is wanted.
    afresh: BTreeSet<usize>,
}

impl std::fmt::Debug for SnapshotInstall {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SnapshotInstall").field("applied", &self.manifest.applied()).finish_non_exhaustive()
    }
}

impl SnapshotInstall {
    /// Begins, or goes on where an earlier try ended. Blocking, like all of it.
    ///
    /// # Errors
    /// See [`InstallError`].
    pub fn begin(live: &Shard, manifest: SnapshotManifest) -> Result<Self, InstallError> {
        let config = live.config();
        if manifest.shard != config.shard {
            return Err(InstallError::OtherShard { found: manifest.shard, expected: config.shard });
        }
        let staged = Staging::open(live.files(), config, &manifest)?;
        let mut install = Self {
            live: live.clone(),
            missing_chunks: (0..manifest.chunks.len()).collect(),
            missing_segments: (0..manifest.segments.len()).collect(),
            imports: BTreeMap::new(),
            own: live.own_segments(&manifest.bases()),
            ends: BTreeMap::new(),
            afresh: BTreeSet::new(),
            manifest,
            staged,
        };
        install.resume()?;
        install.reuse();
        Ok(install)
    }

    /// Throws away what was staged for a shard: it is needed no more.
    ///
    /// # Errors
    /// What the storage says.
    pub fn discard(live: &Shard) -> io::Result<()> {
        staging::discard(&**live.files().storage(), &live.config().dir)
    }

    /// What is being installed.
    #[must_use]
    pub fn manifest(&self) -> &SnapshotManifest {
        &self.manifest
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
        self.staged.put_chunk(number, &rows(chunk)?)?;
        self.missing_chunks.remove(&number);
        Ok(())
    }

    /// How many bytes of a segment are here already, from its start.
    ///
    /// # Errors
    /// What the storage says.
    pub fn received(&mut self, number: usize) -> Result<u64, InstallError> {
        let path = self.staged.dir().to_owned();
        let io_error = |source| InstallError::Io { path: path.clone(), source };
        let received = self.import(number)?.received().map_err(io_error)?;
        if received > 0 || self.afresh.contains(&number) {
            return Ok(received);
        }
        self.copy_own(number)?;
        self.import(number)?.received().map_err(io_error)
    }

    /// Takes bytes of a segment's log file, in order.
    ///
    /// # Errors
    /// What the storage says.
    pub fn put_segment(&mut self, number: usize, position: u64, bytes: &[u8]) -> Result<(), InstallError> {
        let path = self.staged.dir().to_owned();
        self.import(number)?.write(position, bytes).map_err(|source| InstallError::Io { path, source })
    }

    /// Checks a segment that is all there, frame by frame.
    ///
    /// # Errors
    /// `Segment` where it is not what the manifest says. It is thrown away then: fetch it again from its start.
    pub fn finish_segment(&mut self, number: usize) -> Result<(), InstallError> {
        let (partition, _) = self.segment(number)?;
        self.import(number)?;
        let import = self.imports.remove(&number).ok_or(InstallError::UnknownPart)?;
        let end = match import.finish() {
            Ok(end) => end,
            Err(error) => {
                self.afresh.insert(number);
                let path = self.staged.dir().to_owned();
                let restarted = self.import(number)?.restart();
                restarted.map_err(|source| InstallError::Io { path, source })?;
                return Err(error.into());
            }
        };
        self.staged.note_segment(partition, &end)?;
        self.has(number, end);
        Ok(())
    }

    /// Makes the snapshot the shard's state, and opens it.
    ///
    /// # Errors
    /// `Incomplete` while parts are missing. After any other error the shard on the disk is the old or the new one: the broker is to be
    /// restarted.
    pub fn finish(mut self, closed: &ClosedShard) -> Result<Shard, InstallError> {
        let missing = (self.missing_chunks.len(), self.missing_segments.len());
        if missing != (0, 0) {
            return Err(InstallError::Incomplete { chunks: missing.0, segments: missing.1 });
        }
        if !closed.shard().is_same(&self.live) {
            return Err(InstallError::Replaced);
        }
        self.refresh_own();
        let ends = self.ends.iter().map(|(number, end)| self.segment(*number).map(|(id, _)| (id, *end)));
        let ends = ends.collect::<Result<Vec<_>, _>>()?;
        self.imports.clear();
        let Self { live, manifest, staged, own, .. } = self;
        staged.complete(manifest.chunks.len(), &ends)?;
        let opened = Shard::open(live.config().clone(), live.files())?;
        // The pins go last.
        drop(own);
        Ok(opened)
    }

    fn segment(&self, number: usize) -> Result<(TopicPartition, SegmentEnd), InstallError> {
        let segment = self.manifest.segments.get(number).ok_or(InstallError::UnknownPart)?;
        Ok((segment.partition, segment.end))
    }

    fn has(&mut self, number: usize, end: SegmentEnd) {
        self.ends.insert(number, end);
        self.missing_segments.remove(&number);
    }

    fn import(&mut self, number: usize) -> Result<&mut SegmentImport, InstallError> {
        let (partition, end) = self.segment(number)?;
        let begun = match self.imports.remove(&number) {
            Some(import) => import,
            None => {
                let dir = self.staged.dir().join(directory_name(partition));
                let segment = self.live.config().segment;
                let begun =
                    SegmentImport::begin(self.live.files(), &dir, stream_key(partition), segment, end);
                begun.map_err(|source| InstallError::Io { path: dir, source })?
            }
        };
        Ok(self.imports.entry(number).or_insert(begun))
    }

    /// What an earlier try finished need not be fetched.
    fn resume(&mut self) -> Result<(), InstallError> {
        let (chunks, segments) = self.staged.progress()?;
        self.missing_chunks.retain(|number| !chunks.contains(number));
        for number in self.missing_segments.clone() {
            let (partition, wanted) = self.segment(number)?;
            let staged = segments.get(&(partition, wanted.base_offset));
            if let Some(end) = staged.filter(|end| same_bytes(end, &wanted)) {
                // It may have been open still when it was fetched.
                self.has(number, SegmentEnd { sealed: wanted.sealed, ..*end });
            }
        }
        Ok(())
    }

    /// What the shard has need not be fetched.
    fn reuse(&mut self) {
        for number in self.missing_segments.clone() {
            let Ok((partition, wanted)) = self.segment(number) else { continue };
            if wanted.is_empty() {
                self.has(number, wanted);
            } else if let Some(own) = self.own.find(partition, wanted.base_offset)
                && same_bytes(own, &wanted)
            {
                self.has(number, SegmentEnd { sealed: wanted.sealed, ..*own });
            }
        }
    }

    /// The shard may have rebuilt indexes of its own since the install began.
    fn refresh_own(&mut self) {
        let now = self.live.own_segments(&self.manifest.bases());
        for number in 0..self.manifest.segments.len() {
            let Ok((partition, wanted)) = self.segment(number) else { continue };
            let kept =
                self.own.find(partition, wanted.base_offset).is_some_and(|own| same_bytes(own, &wanted));
            let staged = self.staged.has_segment(partition, wanted.base_offset);
            let found = now.find(partition, wanted.base_offset).filter(|own| same_bytes(own, &wanted));
            if let Some(own) = found.filter(|_| kept && !staged) {
                self.ends.insert(number, SegmentEnd { sealed: wanted.sealed, ..*own });
            }
        }
    }

    /// Begins a segment with what the shard has of it.
    fn copy_own(&mut self, number: usize) -> Result<(), InstallError> {
        let (partition, wanted) = self.segment(number)?;
        self.import(number)?;
        let own = self.own.find(partition, wanted.base_offset).filter(|own| own.bytes <= wanted.bytes);
        let Some((_, pin)) = own.zip(self.own.pin(partition)) else { return Ok(()) };
        let Some(import) = self.imports.get_mut(&number) else { return Ok(()) };
        let mut buffer = vec![0; COPY_BYTES];
        let mut position = 0;
        loop {
            // Damage of one's own is no reason not to fetch the rest: the segment is checked as a whole.
            let read = pin.read_raw(wanted.base_offset, position, &mut buffer).unwrap_or(0);
            let Some(bytes) = buffer.get(..read).filter(|bytes| !bytes.is_empty()) else { return Ok(()) };
            let path = || self.staged.dir().to_owned();
            import.write(position, bytes).map_err(|source| InstallError::Io { path: path(), source })?;
            position += read as u64;
        }
    }
}

/// Whether two recorded ends describe the same log file; their indexes are each broker's own. One that the wanted end says is sealed may
/// not be yet: then nothing is ever added behind it either.
fn same_bytes(own: &SegmentEnd, wanted: &SegmentEnd) -> bool {
    let SegmentEnd { index_entries, indexed_to, sealed, .. } = *wanted;
    SegmentEnd { index_entries, indexed_to, sealed, ..*own } == *wanted
}
