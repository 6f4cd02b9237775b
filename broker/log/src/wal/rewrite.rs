//! The end of the log after a sync that failed.
//!
//! Linux takes pages for clean whose writeback failed, and says so once, to whoever syncs: later syncs succeed though the device never got
//! them, and reads show them until they are evicted (Rebello et al., "Can Applications Recover from fsync Failures?", ATC 2020). The log ends
//! at the first failure, and so does its broker; the next one reads from the same page cache. To sync once more would prove nothing: what is
//! not known to have been on the device is written again first, as it was read. Past the page cache what is read is what the device has.

use super::block::BLOCK_BYTES;
use super::error::WalOpenError;
use super::frame::Position;
use super::recovery::io_error;
use super::scan::Segment;
use crate::fs::AlignedBuffer;

/// Blocks written at once.
const BLOCKS_AT_ONCE: u32 = 256;

/// Makes the log durable that reaches through `used` up to `end`, of which every block before `flushed` is on the device.
pub(super) fn make_durable(used: &[Segment], flushed: u64, end: Position) -> Result<(), WalOpenError> {
    for segment in used {
        let first = segment.header.first_sequence;
        let block_of = |sequence: u64| {
            let within = sequence.saturating_sub(first).min(u64::from(segment.file.blocks));
            u32::try_from(within).unwrap_or(u32::MAX)
        };
        let (from, until) = (block_of(flushed), block_of(end.sequence.saturating_add(1)));
        if from < until {
            if !segment.file.file.is_direct() {
                write_again(segment, from, until)?;
            }
            segment.file.file.sync_data().map_err(io_error("sync", &segment.file.path))?;
        }
    }
    Ok(())
}

fn write_again(segment: &Segment, from: u32, until: u32) -> Result<(), WalOpenError> {
    let (file, path) = (&segment.file.file, &segment.file.path);
    let mut at = from;
    while at < until {
        let count = (until - at).min(BLOCKS_AT_ONCE);
        let offset = u64::from(at) * BLOCK_BYTES as u64;
        let mut blocks = AlignedBuffer::zeroed(count as usize * BLOCK_BYTES);
        file.read_exact_at(offset, &mut blocks).map_err(io_error("read", path))?;
        file.write_all_at(offset, &blocks).map_err(io_error("write", path))?;
        at += count;
    }
    Ok(())
}
