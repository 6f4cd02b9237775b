//! Putting a whole copy of a sealed segment in the place of a damaged one.
//!
//! ```text
//!   <repair dir>/00000000000000000000.log    received from a replica, every frame and the digest checked, synced with its directory
//!        | rename, then sync of the partition's directory: before it readers have the damaged file, after it the whole one
//!        v
//!   <dir>/00000000000000000000.log
//! ```
//! What the file must be is what this broker recorded when it wrote it: whoever sends it is not believed. The index stays: it is this
//! broker's own, and leads to the same places.

use std::io;
use std::path::Path;

use tidemill_protocol::Offset;

use super::SegmentStore;
use super::ends::SegmentEnd;
use super::import::SegmentImport;
use super::read::ReadError;
use super::store::AppendError;

/// A copy of a segment, every frame of which was checked, and which is on the device.
pub struct CheckedSegment(SegmentImport);

impl SegmentImport {
    /// Checks what was received frame by frame and as a whole, and makes it durable. Blocking, and reads all of it.
    ///
    /// # Errors
    /// `Damaged` where it is not what was described: receive it from somebody else.
    pub fn checked(mut self) -> Result<CheckedSegment, ReadError> {
        self.check()?;
        self.sync_log().map_err(|source| ReadError::Io { file: self.log_path(), source })?;
        Ok(CheckedSegment(self))
    }
}

impl SegmentStore {
    /// The ends of all sealed segments that readers see.
    #[must_use]
    pub fn sealed(&self) -> Vec<SegmentEnd> {
        self.view().iter().map(|segment| segment.end()).filter(|end| end.sealed && !end.is_empty()).collect()
    }

    /// Begins to receive a copy of the sealed segment named after `base_offset` into `dir`, where nothing else is. `None` where there is
    /// no such segment any more. One at a time for a segment. Blocking, like all of it.
    ///
    /// # Errors
    /// What the storage says.
    pub fn begin_repair(
        &self,
        dir: impl AsRef<Path>,
        base_offset: Offset,
    ) -> io::Result<Option<SegmentImport>> {
        let Some(end) = self.sealed().into_iter().find(|end| end.base_offset == base_offset) else {
            return Ok(None);
        };
        let mut import =
            SegmentImport::begin(self.shared_files(), dir, self.key().key(), *self.config(), end)?;
        // What an earlier try left may be of anybody.
        import.restart()?;
        Ok(Some(import))
    }

    /// Puts a copy in the place of the segment's file. Reads under way go on with the file that they hold; later ones find the new one.
    /// `false` where the segment has left the view meanwhile.
    ///
    /// # Errors
    /// The storage refused, and the segment is as it was; or its word about a sync is lost, and the store takes no more writes.
    pub fn finish_repair(&self, CheckedSegment(import): CheckedSegment) -> Result<bool, AppendError> {
        let mut writer = self.writer.lock();
        self.check_usable(&writer)?;
        let described = import.described();
        let view = self.view();
        let segment = view.iter().find(|segment| segment.end().is_same_file(&described));
        let Some(segment) = segment else { return Ok(false) };
        let file = segment.log.path();
        let swapped = self.files().replace(&import.log_path(), &segment.log);
        swapped.map_err(|source| AppendError::Io { file: file.clone(), source })?;
        segment.log_replaced();
        import.taken();
        if let Err(source) = self.files().storage().sync_dir(self.dir()) {
            // Which of the two files a crash would leave is not known, nor what else this device does not keep.
            writer.failed = true;
            return Err(AppendError::Io { file, source });
        }
        Ok(true)
    }
}
