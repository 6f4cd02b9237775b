//! Making an index from its log file.

use super::files::SegmentFiles;
use super::frame::FrameFault;
use super::header::FIRST_FRAME;
use super::key::KeyHasher;
use super::read::ReadError;
use super::single::{Segment, encode_entries};
use super::survey::{Depth, Survey};

/// Replaces the index of a segment by one made from the heads of its frames. Only the writer, or whoever has the
/// segment alone, calls it; readers meanwhile find an index that leads nowhere and walk instead.
///
/// # Errors
/// `Damaged` where the log file is damaged; the index is as it was then.
pub(super) fn rebuild_index(
    files: &SegmentFiles,
    key: &KeyHasher,
    segment: &Segment,
    interval_bytes: u64,
) -> Result<(), ReadError> {
    let recorded = segment.end();
    let file = segment.log_file(files, key)?;
    let mut survey = Survey::new(segment.base_offset);
    survey
        .go_on(&file, key, recorded.bytes, interval_bytes, Depth::Heads)
        .map_err(|error| segment.walk_error(survey.position(), error))?;
    let found = survey.found();
    if found.digest != recorded.digest || found.next_offset != recorded.next_offset {
        return Err(segment.damage(FIRST_FRAME..recorded.bytes, FrameFault::OtherContents).into());
    }
    write_index(files, key, segment, &survey)
}

/// Replaces the index of a segment by the one that a survey of all of it found.
///
/// # Errors
/// What the storage says.
pub(super) fn write_index(
    files: &SegmentFiles,
    key: &KeyHasher,
    segment: &Segment,
    survey: &Survey,
) -> Result<(), ReadError> {
    let bytes = encode_entries(survey.entries(), segment.base_offset, 0, key);
    let index_error = |source| ReadError::Io { file: segment.index.path(), source };
    let handle = files.handle(&segment.index, true).map_err(index_error)?;
    segment.index.mark_dirty();
    handle.write_all_at(0, &bytes).and_then(|()| handle.set_len(bytes.len() as u64)).map_err(index_error)?;
    segment.index_replaced(survey.found().index_entries, survey.found().indexed_to);
    Ok(())
}
