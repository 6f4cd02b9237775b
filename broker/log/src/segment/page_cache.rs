//! Which written bytes are left in the page cache: the newest, over all partitions, up to a budget.
//!
//! Readers of the tail are served from memory and catch-up readers mostly read what was written lately. What is
//! older would only push out pages that something needs.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use super::files::PooledFile;

/// Ranges remembered at most, whatever their bytes.
const RANGES_MAX: usize = 16 * 1024;

/// Adjacent ranges are joined up to this, so that pages are given back in steps.
const RANGE_BYTES_MAX: u64 = 32 << 20;

/// Written ranges, oldest first.
#[derive(Default)]
pub(super) struct PageCache {
    ranges: VecDeque<(Arc<PooledFile>, Range<u64>)>,
    bytes: u64,
}

impl PageCache {
    /// Adds a range that is being written back, and takes out what is beyond the budget.
    pub(super) fn note(
        &mut self,
        file: Arc<PooledFile>,
        range: Range<u64>,
        budget: u64,
    ) -> Vec<(Arc<PooledFile>, Range<u64>)> {
        self.bytes += range.end.saturating_sub(range.start);
        match self.ranges.back_mut() {
            Some((last, so_far))
                if Arc::ptr_eq(last, &file)
                    && so_far.end == range.start
                    && range.end - so_far.start <= RANGE_BYTES_MAX =>
            {
                so_far.end = range.end;
            }
            _ => self.ranges.push_back((file, range)),
        }
        let mut expired = Vec::new();
        // The newest stays: its write-back has only begun.
        while (self.bytes > budget || self.ranges.len() > RANGES_MAX) && self.ranges.len() > 1 {
            let Some((file, range)) = self.ranges.pop_front() else { break };
            self.bytes = self.bytes.saturating_sub(range.end.saturating_sub(range.start));
            expired.push((file, range));
        }
        expired
    }

    /// Drops what is remembered of a file that is about to be removed.
    pub(super) fn forget(&mut self, file: &PooledFile) {
        self.ranges.retain(|(other, range)| {
            let stays = !std::ptr::eq(Arc::as_ptr(other), file);
            if !stays {
                self.bytes = self.bytes.saturating_sub(range.end.saturating_sub(range.start));
            }
            stays
        });
    }
}
