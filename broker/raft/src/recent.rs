//! The entries at the log's end, decoded.
//!
//! Apply and replication read an entry moments after it was appended. The log's own cache would give the bytes back,
//! to be decoded again; here the very value that was proposed is still at hand.

use std::collections::VecDeque;

use crate::types::{LogId, Payload, RaftLogEntry};

/// The last entries of a log, without gaps, ending at the log's last entry.
///
/// What is not applied always stays; of what is applied, as much as the bound allows.
#[derive(Debug)]
pub(crate) struct RecentEntries {
    entries: VecDeque<Recent>,
    bytes: usize,
    applied_bytes_max: usize,
}

#[derive(Debug)]
struct Recent {
    id: LogId,
    payload: Payload,
    bytes: usize,
}

impl RecentEntries {
    pub(crate) fn new(applied_bytes_max: usize) -> Self {
        Self { entries: VecDeque::new(), bytes: 0, applied_bytes_max }
    }

    /// Index of the first entry kept; `None` where there is none.
    pub(crate) fn first_index(&self) -> Option<u64> {
        self.entries.front().map(|entry| entry.id.index)
    }

    /// Appends the next entry.
    pub(crate) fn push(&mut self, id: LogId, payload: Payload, bytes: usize) {
        if self.entries.back().is_some_and(|last| last.id.index + 1 != id.index) {
            debug_assert!(false, "entry {id} does not follow the last one");
            self.clear();
        }
        self.entries.push_back(Recent { id, payload, bytes });
        self.bytes += bytes;
    }

    /// The entries from `from`, which must be kept, up to `to` or until `bytes_max` are reached; at least one.
    pub(crate) fn read(&self, from: u64, to: u64, bytes_max: usize) -> Vec<RaftLogEntry> {
        let Some(first) = self.first_index().filter(|first| *first <= from) else { return Vec::new() };
        let skip = usize::try_from(from - first).unwrap_or(usize::MAX);
        let mut bytes = 0;
        let mut found = Vec::new();
        for entry in self.entries.iter().skip(skip).take_while(|entry| entry.id.index < to) {
            if !found.is_empty() && bytes + entry.bytes > bytes_max {
                break;
            }
            bytes += entry.bytes;
            found.push(RaftLogEntry { log_id: entry.id, payload: entry.payload.clone() });
        }
        found
    }

    /// The bytes of the entries from `from` up to `to`; more than `enough` are not counted to the end.
    pub(crate) fn bytes_between(&self, from: u64, to: u64, enough: usize) -> usize {
        if self.bytes <= enough {
            return 0;
        }
        let skip = self.first_index().map_or(0, |first| from.saturating_sub(first));
        let skip = usize::try_from(skip).unwrap_or(usize::MAX);
        let mut bytes = 0;
        for entry in self.entries.iter().skip(skip).take_while(|entry| entry.id.index < to) {
            bytes += entry.bytes;
            if bytes > enough {
                break;
            }
        }
        bytes
    }

    /// Lets go of applied entries until the bound is kept.
    pub(crate) fn applied(&mut self, index: u64) {
        while self.bytes > self.applied_bytes_max && self.first_index().is_some_and(|first| first <= index) {
            self.pop_front();
        }
    }

    /// Forgets everything up to `index`.
    pub(crate) fn purge(&mut self, index: u64) {
        while self.first_index().is_some_and(|first| first <= index) {
            self.pop_front();
        }
    }

    /// Forgets everything after `index`; everything where it is `None`.
    pub(crate) fn truncate_after(&mut self, index: Option<u64>) {
        let Some(index) = index else { return self.clear() };
        while self.entries.back().is_some_and(|last| last.id.index > index) {
            if let Some(entry) = self.entries.pop_back() {
                self.bytes -= entry.bytes;
            }
        }
    }

    fn clear(&mut self) {
        self.entries.clear();
        self.bytes = 0;
    }

    fn pop_front(&mut self) {
        if let Some(entry) = self.entries.pop_front() {
            self.bytes -= entry.bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use tidemill_protocol::NodeId;

    use super::*;
    use crate::types::LeaderId;

    fn id(index: u64) -> LogId {
        LogId::new(LeaderId { term: 1, node_id: NodeId::from_raw(1) }, index)
    }

    fn ten(applied_bytes_max: usize) -> RecentEntries {
        let mut recent = RecentEntries::new(applied_bytes_max);
        (5..15).for_each(|index| recent.push(id(index), Payload::Blank, 100));
        recent
    }

    fn indexes(entries: &[RaftLogEntry]) -> Vec<u64> {
        entries.iter().map(|entry| entry.log_id.index).collect()
    }

    #[test]
    fn reads_stop_at_the_byte_limit_but_give_at_least_one() {
        let recent = ten(0);
        assert_eq!(indexes(&recent.read(6, 100, 250)), [6, 7]);
        assert_eq!(indexes(&recent.read(6, 100, 0)), [6]);
        assert_eq!(indexes(&recent.read(6, 8, usize::MAX)), [6, 7]);
        assert!(recent.read(4, 8, usize::MAX).is_empty(), "what is gone must be read from the log");
        assert!(recent.read(15, 20, usize::MAX).is_empty());
    }

    #[test]
    fn what_is_not_applied_stays_whatever_its_size() {
        let mut recent = ten(250);
        recent.applied(4);
        assert_eq!(recent.first_index(), Some(5));
        recent.applied(7);
        assert_eq!(recent.first_index(), Some(8));
        recent.applied(14);
        assert_eq!(recent.first_index(), Some(13), "the bound's worth of applied entries is kept");
    }

    #[test]
    fn a_backlog_is_counted_from_what_is_applied() {
        let recent = ten(0);
        assert_eq!(recent.bytes_between(0, 100, 999), 1000);
        assert_eq!(recent.bytes_between(8, 12, 999), 400);
        assert_eq!(recent.bytes_between(8, 12, 150), 200, "that is enough");
        assert_eq!(recent.bytes_between(0, 100, 1000), 0, "there is no more in any case");
        assert_eq!(recent.bytes_between(20, 30, 10), 0);
    }

    #[test]
    fn truncate_and_purge_cut_either_end() {
        let mut recent = ten(0);
        recent.truncate_after(Some(12));
        recent.purge(6);
        assert_eq!(indexes(&recent.read(7, 100, usize::MAX)), [7, 8, 9, 10, 11, 12]);
        recent.truncate_after(None);
        assert_eq!(recent.first_index(), None);
    }
}
