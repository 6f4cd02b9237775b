//! Taking a segment over from another broker, or a whole copy of a damaged one.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::ends::SegmentEnd;
use super::files::SegmentFiles;
use super::frame::{FrameFault, HEAD_BYTES};
use super::header::FIRST_FRAME;
use super::key::{KeyHasher, StreamKey};
use super::read::ReadError;
use super::rebuild::write_index;
use super::single::Segment;
use super::store::SegmentConfig;
use super::survey::{Depth, Survey};
use super::walk::WalkError;
use crate::fs::StorageFile;

/// A log file that is being received into a directory no store has open: a staging directory, renamed when all of
/// it is there, or a file that takes another's place (`repair.rs`). Frames are checked as they come: all of a large file at its end
/// would keep a core, and who waits for it, for a tenth of a second and more.
pub struct SegmentImport {
    files: Arc<SegmentFiles>,
    key: KeyHasher,
    config: SegmentConfig,
    segment: Arc<Segment>,
    /// The frames that were checked.
    survey: Survey,
    /// The next one is not sound: there is no use in looking again before the end.
    stuck: bool,
    finished: bool,
}

impl SegmentImport {
    /// Begins, or resumes, to receive the segment that `end` describes.
    ///
    /// # Errors
    /// What the storage says.
    pub fn begin(
        files: &Arc<SegmentFiles>,
        dir: impl AsRef<Path>,
        key: StreamKey,
        config: SegmentConfig,
        end: SegmentEnd,
    ) -> io::Result<Self> {
        let dir: Arc<Path> = dir.as_ref().into();
        files.storage().create_dir_all(&dir)?;
        let segment = Segment::new(files, &dir, end);
        files.handle(&segment.log, true)?;
        let survey = Survey::new(segment.base_offset);
        let (files, key) = (Arc::clone(files), KeyHasher::new(key));
        Ok(Self { files, key, config, segment, survey, stuck: false, finished: false })
    }

    /// How many bytes are there already, in order: where a resumed transfer goes on.
    ///
    /// # Errors
    /// What the storage says.
    pub fn received(&self) -> io::Result<u64> {
        Ok(self.files.handle(&self.segment.log, true)?.size()?.min(self.segment.end().bytes))
    }

    /// Writes bytes of the log file as [`SegmentPin::read_raw`](super::SegmentPin::read_raw) gave them.
    ///
    /// # Errors
    /// What the storage says; `InvalidInput` for bytes beyond the described end.
    pub fn write(&mut self, position: u64, bytes: &[u8]) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        if position.saturating_add(bytes.len() as u64) > self.segment.end().bytes {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "bytes beyond the end of the segment"));
        }
        let handle = self.files.handle(&self.segment.log, true)?;
        self.segment.log.mark_dirty();
        handle.write_all_at(position, bytes)?;
        // In small steps from the start on: a sync of all of it at the end would hold up every other write to the disk.
        handle.start_writeback(position, bytes.len() as u64)?;
        if position < self.survey.position() {
            self.distrust();
        }
        self.look_ahead(position + bytes.len() as u64);
        Ok(())
    }

    /// Checks the frames that are all there. What is wrong is said in the end.
    fn look_ahead(&mut self, received: u64) {
        if self.stuck {
            return;
        }
        let Ok(file) = self.segment.log_file(&self.files, &self.key) else { return };
        match self.go_on(&file, received) {
            Ok(()) | Err(WalkError::Fault { fault: FrameFault::BeyondEnd, .. }) => {}
            Err(_) if received < self.survey.position() + HEAD_BYTES as u64 => {}
            Err(_) => self.stuck = true,
        }
    }

    fn go_on(&mut self, file: &Arc<dyn StorageFile>, end: u64) -> Result<(), WalkError> {
        self.survey.go_on(file, &self.key, end, self.config.index_interval_bytes, Depth::Bodies)
    }

    /// Whatever was checked is checked again.
    fn distrust(&mut self) {
        self.segment.distrust_header();
        self.survey = Survey::new(self.segment.base_offset);
        self.stuck = false;
    }

    /// Throws away what was received: it is not what was described.
    ///
    /// # Errors
    /// What the storage says.
    pub fn restart(&mut self) -> io::Result<()> {
        self.distrust();
        self.files.handle(&self.segment.log, true)?.set_len(0)
    }

    /// Checks every frame and the digest, makes the index, syncs, and returns the end to record: the one described,
    /// with this broker's index.
    ///
    /// # Errors
    /// `Damaged` with the first range that is not what was described: receive it again.
    pub fn finish(mut self) -> Result<SegmentEnd, ReadError> {
        self.check()?;
        write_index(&self.files, &self.key, &self.segment, &self.survey)?;
        for file in [&self.segment.log, &self.segment.index] {
            self.files.sync(file).map_err(|source| ReadError::Io { file: file.path(), source })?;
        }
        self.finished = true;
        Ok(self.segment.end())
    }

    /// Checks the frames that were not yet, and what all of them add up to.
    pub(super) fn check(&mut self) -> Result<(), ReadError> {
        let described = self.segment.end();
        let file = self.segment.log_file(&self.files, &self.key)?;
        file.set_len(described.bytes).map_err(|source| self.segment.io_error(source))?;
        let walked = self.go_on(&file, described.bytes);
        walked.map_err(|error| self.segment.walk_error(self.survey.position(), error))?;
        let found = self.survey.found();
        let same = (found.digest, found.next_offset, found.batches, found.max_timestamp)
            == (described.digest, described.next_offset, described.batches, described.max_timestamp);
        if same {
            return Ok(());
        }
        let range = FIRST_FRAME..described.bytes;
        Err(self.segment.damage(range, FrameFault::OtherContents).into())
    }

    /// The end of the segment that is received.
    #[must_use]
    pub fn described(&self) -> SegmentEnd {
        self.segment.end()
    }

    pub(super) fn log_path(&self) -> PathBuf {
        self.segment.log.path()
    }

    /// Makes the log file durable, and that it is there: else a power loss could forget whereto it is renamed.
    pub(super) fn sync_log(&self) -> io::Result<()> {
        self.files.sync(&self.segment.log)?;
        let path = self.segment.log.path();
        self.files.storage().sync_dir(path.parent().unwrap_or(Path::new("")))
    }

    /// The log file stands elsewhere now: there is nothing left to keep for a next try.
    pub(super) fn taken(mut self) {
        self.finished = true;
    }
}

impl Drop for SegmentImport {
    /// Nobody opens these files under this name again: they are moved. What was received so far is kept, for a snapshot's next try,
    /// unless the device did not take it.
    fn drop(&mut self) {
        let files = [&self.segment.log, &self.segment.index];
        if !self.finished && self.files.sync(&self.segment.log).is_err() {
            let _tried = self.files.remove(&self.segment.log);
        }
        files.into_iter().for_each(|file| self.files.close(file));
    }
}
