//! Where segments begin, and what retention lets go. Decided here, from the log alone, so that sealed segments are
//! byte-identical on every replica.

use serde::{Deserialize, Serialize};
use tidemill_protocol::{Offset, Timestamp};

/// One segment as the replicated state knows it; the last of a partition's is active.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentSummary {
    /// Offset of its first record.
    pub base: Offset,
    /// Bytes of its batches.
    pub bytes: u64,
    /// The log's time of its first append.
    pub first_append: Timestamp,
    /// The log's time of its last append: what retention by time goes by, since producers' timestamps may lie.
    pub last_append: Timestamp,
    /// Newest timestamp among its records.
    pub max_timestamp: Timestamp,
}

/// When a segment is sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentRules {
    /// A segment that would grow beyond it is sealed.
    pub segment_bytes: u64,
    /// A segment that began so long ago is sealed by the next append.
    pub segment_ms: i64,
}

impl SegmentRules {
    /// Whether an append of `bytes` begins a new segment after `active`.
    pub(crate) fn seals(&self, active: &SegmentSummary, bytes: u32, now: Timestamp) -> bool {
        active.bytes.saturating_add(u64::from(bytes)) > self.segment_bytes
            || now.get().saturating_sub(active.first_append.get()) >= self.segment_ms
    }
}

/// What may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetentionRules {
    /// Segments whose last append is older may go; -1: never by age.
    pub retention_ms: i64,
    /// While what follows the oldest segment holds at least so many bytes, that segment may go; -1: no limit.
    pub retention_bytes: i64,
}

impl RetentionRules {
    /// Where the log may start: never before `log_start`, never beyond `log_end`.
    pub(crate) fn horizon(
        &self,
        segments: &[SegmentSummary],
        log_start: Offset,
        log_end: Offset,
        now: Timestamp,
    ) -> Offset {
        let mut gone = 0;
        if let Ok(age_max) = u64::try_from(self.retention_ms) {
            let expired = |s: &&SegmentSummary| {
                now.get().abs_diff(s.last_append.get()) > age_max && s.last_append < now
            };
            gone = segments.iter().take_while(expired).count();
        }
        if let Ok(bytes_max) = u64::try_from(self.retention_bytes) {
            let mut kept: u64 = segments.iter().skip(gone).map(|s| s.bytes).sum();
            // The active segment stays: its size is bounded by the roll.
            while gone + 1 < segments.len() && kept - segments[gone].bytes >= bytes_max {
                kept -= segments[gone].bytes;
                gone += 1;
            }
        }
        let start = if gone == 0 { log_start } else { segments.get(gone).map_or(log_end, |s| s.base) };
        start.max(log_start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segments() -> Vec<SegmentSummary> {
        let segment = |n: i64| SegmentSummary {
            base: Offset::new(n * 100),
            bytes: 1000,
            first_append: Timestamp::new(n * 10_000),
            last_append: Timestamp::new(n * 10_000 + 9_000),
            // Lies: far in the future.
            max_timestamp: Timestamp::new(i64::MAX),
        };
        (0..5).map(segment).collect()
    }

    fn horizon(retention_ms: i64, retention_bytes: i64, now: i64) -> i64 {
        RetentionRules { retention_ms, retention_bytes }
            .horizon(&segments(), Offset::new(5), Offset::new(500), Timestamp::new(now))
            .get()
    }

    #[test]
    fn time_lets_whole_segments_go_and_the_active_one_last() {
        assert_eq!(horizon(-1, -1, i64::MAX), 5, "for ever");
        assert_eq!(horizon(10_000, -1, 19_000), 5, "the first is exactly as old as allowed");
        assert_eq!(horizon(10_000, -1, 19_001), 100);
        assert_eq!(horizon(10_000, -1, 45_000), 300);
        assert_eq!(horizon(0, -1, 1_000_000), 500, "all of an idle partition");
        assert_eq!(horizon(0, -1, -5), 5, "no segment is from the past");
    }

    #[test]
    fn size_keeps_at_least_what_it_says_and_the_active_segment() {
        assert_eq!(horizon(-1, 5000, 0), 5);
        assert_eq!(horizon(-1, 4001, 0), 5);
        assert_eq!(horizon(-1, 4000, 0), 100);
        assert_eq!(horizon(-1, 0, 0), 400);
        assert_eq!(horizon(10_000, 1500, 45_000), 300, "both rules, the later start");
    }

    #[test]
    fn an_empty_partition_keeps_its_start() {
        let rules = RetentionRules { retention_ms: 0, retention_bytes: 0 };
        assert_eq!(rules.horizon(&[], Offset::new(9), Offset::new(9), Timestamp::new(1)), Offset::new(9));
    }
}
