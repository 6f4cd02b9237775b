//! Segments that do not read: found, and replaced by what another replica has.
//!
//! ```text
//!  this replica                               another one
//!  sealed_segments, scrub    suspect
//!  a read that meets damage  suspect
//!  begin_repair: its recorded end ----------> sound_copy: the same end, and every frame of it holds
//!  SegmentRepair::write  <------------------- the file's bytes
//!  finish: checked against the recorded end, swapped in
//! ```
//! Sealed segments are byte-identical on every replica, so whoever has one whole can mend it anywhere. The segment that is being
//! written is not: it is mended once it is sealed.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use tidemill_log::segment::{
    AppendError, OpenError, PartitionEnds, ReadError, Scrub, SegmentEnd, SegmentImport, SegmentPin,
};
use tidemill_protocol::{Offset, TopicPartition};

use super::poison::ShardStopped;
use super::{Inner, Shard};
use crate::partition_log::{FetchError, PartitionLog, directory_name};

/// Where what is received lies until it is checked, below the shard's directory.
pub(super) const REPAIR_DIR: &str = "repair";

/// Why a replica has no copy of a segment to give.
#[derive(Debug, thiserror::Error)]
pub enum NoCopy {
    /// The partition or the segment is not here, or still grows.
    #[error("it has no sealed segment of {partition} at offset {base_offset}")]
    Missing {
        /// The partition.
        partition: TopicPartition,
        /// Of the segment.
        base_offset: Offset,
    },
    /// It recorded something else: one of the two has gone astray.
    #[error("its segment of {partition} at offset {base_offset} is not the same by its record")]
    Other {
        /// The partition.
        partition: TopicPartition,
        /// Of the segment.
        base_offset: Offset,
    },
    /// Its own copy does not read either.
    #[error("its own copy does not read: {0}")]
    Damaged(#[from] ReadError),
    /// The partition's files can't be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
}

/// Why a segment was not mended. The shard is as it was, but that after `Storage` the partition's files may take no more writes.
#[derive(Debug, thiserror::Error)]
pub enum SegmentRepairError {
    /// The storage refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// Where, relative to the storage's root.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// What was received is not what this replica recorded.
    #[error("what was received is not the segment: {0}")]
    Received(#[from] ReadError),
    /// The storage refused when the copy was to take its place.
    #[error(transparent)]
    Storage(#[from] AppendError),
    /// The partition's files can't be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The shard has stopped, or another takes its place.
    #[error(transparent)]
    Stopped(#[from] ShardStopped),
}

/// A copy of a sealed segment on its way here. Dropped, it leaves nothing.
pub struct SegmentRepair {
    inner: Arc<Inner>,
    log: Arc<PartitionLog>,
    dir: PathBuf,
    import: Option<SegmentImport>,
    end: SegmentEnd,
}

impl Shard {
    /// The sealed segments of all partitions, by partition and base offset.
    #[must_use]
    pub fn sealed_segments(&self) -> Vec<(TopicPartition, Offset)> {
        let mut logs: Vec<_> = self.inner.logs.read().values().cloned().collect();
        logs.sort_unstable_by_key(|log| log.id());
        let sealed = logs.iter().filter_map(|log| Some((log.id(), log.opened()?.sealed())));
        sealed.flat_map(|(id, ends)| ends.into_iter().map(move |end| (id, end.base_offset))).collect()
    }

    /// Begins to check a segment; `None` where it is not here any more. Blocking.
    ///
    /// # Errors
    /// Its file can't be opened, or its header is damaged.
    pub fn scrub(&self, partition: TopicPartition, base_offset: Offset) -> Result<Option<Scrub>, FetchError> {
        match self.inner.log(partition) {
            Some(log) => Ok(log.store()?.scrub(base_offset)?),
            None => Ok(None),
        }
    }

    /// Notes that a segment does not read: it is among the [`Self::suspects`] until [`Self::trust`].
    pub fn suspect(&self, partition: TopicPartition, base_offset: Offset) {
        self.inner.log_files.suspects.add(partition, base_offset);
    }

    /// Segments that did not read, to readers or to a scrub, by partition and base offset.
    #[must_use]
    pub fn suspects(&self) -> Vec<(TopicPartition, Offset)> {
        self.inner.log_files.suspects.all()
    }

    /// A segment is whole again, or gone.
    pub fn trust(&self, partition: TopicPartition, base_offset: Offset) {
        self.inner.log_files.suspects.remove(partition, base_offset);
    }

    /// Holds the file of a sealed segment for another replica, which recorded `end` for it. All of it is checked first. Blocking.
    ///
    /// # Errors
    /// [`NoCopy`]; where it is damaged here, too, it is suspect from now on.
    pub fn sound_copy(&self, partition: TopicPartition, end: &SegmentEnd) -> Result<SegmentPin, NoCopy> {
        let base_offset = end.base_offset;
        let missing = NoCopy::Missing { partition, base_offset };
        let Some(log) = self.inner.log(partition) else { return Err(missing) };
        let store = log.store()?;
        let own = store.sealed().into_iter().find(|own| own.base_offset == base_offset);
        let Some(own) = own else { return Err(missing) };
        if !own.is_same_file(end) {
            return Err(NoCopy::Other { partition, base_offset });
        }
        let pin = store.pin(&PartitionEnds { segments: vec![own] }).ok_or(missing)?;
        store.verify(base_offset).inspect_err(|_| self.suspect(partition, base_offset))?;
        Ok(pin)
    }

    /// Begins to receive a sealed segment that does not read; `None` where there is no such segment any more, or it is not sealed yet.
    /// One at a time for a shard. Blocking.
    ///
    /// # Errors
    /// See [`SegmentRepairError`].
    pub fn begin_repair(
        &self,
        partition: TopicPartition,
        base_offset: Offset,
    ) -> Result<Option<SegmentRepair>, SegmentRepairError> {
        self.inner.poison.check()?;
        let Some(log) = self.inner.log(partition) else { return Ok(None) };
        let dir = self.inner.config.dir.join(REPAIR_DIR).join(directory_name(partition));
        let begun = log.store()?.begin_repair(&dir, base_offset);
        let import = begun.map_err(|source| SegmentRepairError::Io { path: dir.clone(), source })?;
        let Some(import) = import else { return Ok(None) };
        let end = import.described();
        Ok(Some(SegmentRepair { inner: Arc::clone(&self.inner), log, dir, import: Some(import), end }))
    }
}

impl SegmentRepair {
    /// What the segment must be, as this replica recorded it.
    #[must_use]
    pub fn end(&self) -> &SegmentEnd {
        &self.end
    }

    /// Takes bytes of the segment's log file, in order. Blocking.
    ///
    /// # Errors
    /// What the storage says; `InvalidInput` for bytes beyond the end.
    pub fn write(&mut self, position: u64, bytes: &[u8]) -> io::Result<()> {
        self.import.as_mut().map_or(Ok(()), |import| import.write(position, bytes))
    }

    /// Checks what came, and puts it in the place of the damaged file. Readers find it at once. Blocking.
    ///
    /// # Errors
    /// `Received` where it is not what was recorded; nothing has changed then.
    pub fn finish(mut self) -> Result<(), SegmentRepairError> {
        let Some(import) = self.import.take() else { return Ok(()) };
        let checked = import.checked()?;
        // No snapshot takes the shard's place meanwhile, whose files have the same names.
        let _recorded = self.inner.recorded.lock();
        self.inner.poison.check()?;
        self.log.store()?.finish_repair(checked)?;
        self.inner.log_files.suspects.remove(self.log.id(), self.end.base_offset);
        Ok(())
    }
}

impl Drop for SegmentRepair {
    fn drop(&mut self) {
        self.import = None;
        // What stays is removed at the next start, at the latest.
        let _tried = self.inner.files.storage().remove_dir_all(&self.dir);
    }
}
