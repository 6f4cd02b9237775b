//! Making an index from its log file.

use super::ends::SegmentEnd;
use super::files::SegmentFiles;
use super::frame::FrameFault;
use super::header::FIRST_FRAME;
use super::index::{IndexEntry, wants_entry};
use super::key::KeyHasher;
use super::read::ReadError;
use super::single::{Segment, encode_entries};
use super::walk::Walk;

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
    let mut walk = Walk::new(&file, key, FIRST_FRAME, recorded.bytes, segment.base_offset);
    let mut entries: Vec<IndexEntry> = Vec::new();
    let mut found = SegmentEnd::empty(segment.base_offset);
    loop {
        let head = walk.peek().map_err(|error| segment.walk_error(walk.position(), error))?;
        let Some((head, _)) = head else { break };
        let position = walk.position();
        if let Some(entry) = wants_entry(&head, position, &found, interval_bytes) {
            entries.push(entry);
            found.index_entries += 1;
            found.indexed_to = position;
        }
        found.extend(&head);
        walk.advance(&head);
    }
    if found.digest != recorded.digest || found.next_offset != recorded.next_offset {
        return Err(segment.damage(FIRST_FRAME..recorded.bytes, FrameFault::OtherContents).into());
    }
    let bytes = encode_entries(&entries, segment.base_offset, 0, key);
    let index_error = |source| ReadError::Io { file: segment.index.path(), source };
    let handle = files.handle(&segment.index, true).map_err(index_error)?;
    segment.index.mark_dirty();
    handle.write_all_at(0, &bytes).and_then(|()| handle.set_len(bytes.len() as u64)).map_err(index_error)?;
    segment.index_replaced(found.index_entries, found.indexed_to);
    Ok(())
}
