//! The end of the log after a sync that failed.
//!
//! Linux takes pages for clean whose writeback failed, and says so once, to whoever syncs: later syncs succeed though the device never got
//! them, and reads show them until they are evicted (Rebello et al., "Can Applications Recover from fsync Failures?", ATC 2020). The log ends
//! at the first failure, and so does its broker; the next one reads from the same page cache. To sync once more would prove nothing: what is
//! not known to have been on the device is written again first, as it was read. Past the page cache what is read is what the device has.

use std::io;

use super::block::{self, BLOCK_BYTES};
use super::error::WalOpenError;
use super::frame::Position;
use super::header::{HeaderBlock, SegmentHeader};
use super::recovery::io_error;
use super::scan::Segment;
use crate::fs::AlignedBuffer;

/// Blocks written at once.
const BLOCKS_AT_ONCE: u32 = 256;

/// Makes the log durable up to `end`, which lies in its last segment: every block before `flushed` is on the device, and no segment is begun
/// before the one before it is.
pub(super) fn make_durable(last: &Segment, flushed: u64, end: Position) -> Result<(), WalOpenError> {
    let behind_end = end.sequence.saturating_add(u64::from(end.offset > 0));
    let block_of = |sequence: u64| {
        let within = sequence.saturating_sub(last.header.first_sequence).min(u64::from(last.file.blocks));
        u32::try_from(within).unwrap_or(u32::MAX)
    };
    if !last.file.file.is_direct() {
        write_again(last, block_of(flushed), block_of(behind_end))?;
    }
    last.file.file.sync_data().map_err(io_error("sync", &last.file.path))
}

fn write_again(segment: &Segment, from: u32, until: u32) -> Result<(), WalOpenError> {
    let (file, path) = (&segment.file.file, &segment.file.path);
    let mut at = from;
    while at < until {
        let count = (until - at).min(BLOCKS_AT_ONCE);
        let offset = u64::from(at) * BLOCK_BYTES as u64;
        let mut blocks = AlignedBuffer::zeroed(count as usize * BLOCK_BYTES);
        file.read_exact_at(offset, &mut blocks).map_err(io_error("read", path))?;
        // A page that was taken for clean may have been evicted since the scan: what is read then is what the device has.
        let mut read = blocks.chunks(BLOCK_BYTES).zip(at..);
        if !read.all(|(block, number)| is_as_scanned(segment, block, number)) {
            let reason = "what was read a moment ago is not there any more; look at the disk, and start the broker again";
            return Err(io_error("read", path)(io::Error::new(io::ErrorKind::InvalidData, reason)));
        }
        file.write_all_at(offset, &blocks).map_err(io_error("write", path))?;
        at += count;
    }
    Ok(())
}

/// Whether a block is still what the scan took for good.
fn is_as_scanned(segment: &Segment, block: &[u8], number: u32) -> bool {
    let header = &segment.header;
    if number == 0 {
        return matches!(SegmentHeader::decode(block), HeaderBlock::Header(read) if read == *header);
    }
    block::open(block).is_some_and(|(trailer, _)| {
        trailer.salt == header.salt && trailer.sequence == header.first_sequence + u64::from(number)
    })
}
