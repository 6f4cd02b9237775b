//! How records are cut into calls.

use std::ops::Range;

use super::record::PlainRecord;
use crate::task::{CALL_RECORDS_MAX, ENOUGH_BYTES};

/// Calls of an uneven run that are small ones, before larger ones come too: where a plugin depends on the cuts, the first records show it.
const SMALL_CALLS: u32 = 64;
const SMALL: [usize; 7] = [1, 3, 2, 7, 5, 4, 6];

/// Decides where each call ends. The same on every run.
#[derive(Debug, Clone)]
pub(super) struct Cuts {
    most: usize,
    uneven: Option<Uneven>,
}

#[derive(Debug, Clone)]
struct Uneven {
    calls: u32,
    random: u64,
}

impl Cuts {
    /// So many records per call.
    pub(super) fn even(records: usize) -> Self {
        Self { most: records.clamp(1, CALL_RECORDS_MAX), uneven: None }
    }

    /// As different from that as can be: mostly fewer; more, where it was one.
    pub(super) fn uneven(records: usize) -> Self {
        let most = records.clamp(SMALL.len(), CALL_RECORDS_MAX);
        Self { most, uneven: Some(Uneven { calls: u32::from(records == 1), random: 0x9e37_79b9_7f4a_7c15 }) }
    }

    /// The records of the next call, which begins with `from` and ends before `end`.
    pub(super) fn next(&mut self, records: &[PlainRecord], from: usize, end: usize) -> Range<usize> {
        let most = self.size();
        let mut to = from;
        let mut bytes = 0;
        while to < end && to - from < most && (to == from || bytes < ENOUGH_BYTES) {
            bytes += records.get(to).map_or(0, PlainRecord::bytes);
            to += 1;
        }
        from..to
    }

    fn size(&mut self) -> usize {
        let Some(uneven) = &mut self.uneven else { return self.most };
        let call = uneven.calls;
        uneven.calls = call.saturating_add(1);
        if call < SMALL_CALLS {
            return SMALL[call as usize % SMALL.len()];
        }
        // xorshift64: any sequence would do that is the same every time.
        uneven.random ^= uneven.random << 13;
        uneven.random ^= uneven.random >> 7;
        uneven.random ^= uneven.random << 17;
        1 + usize::try_from(uneven.random % self.most as u64).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(mut cuts: Cuts, count: usize) -> Vec<usize> {
        let records = vec![PlainRecord::default(); count];
        let mut sizes = Vec::new();
        let mut from = 0;
        while from < count {
            let call = cuts.next(&records, from, count);
            assert_eq!(call.start, from);
            assert!(!call.is_empty());
            from = call.end;
            sizes.push(call.len());
        }
        sizes
    }

    #[test]
    fn even_cuts_are_even_and_uneven_ones_are_others_and_the_same_every_time() {
        assert_eq!(all(Cuts::even(4), 10), [4, 4, 2]);
        assert_eq!(all(Cuts::uneven(4), 10), [1, 3, 2, 4]);
        assert_eq!(all(Cuts::uneven(1), 6), [3, 2, 1], "where calls had one record, they have several");
        let long = all(Cuts::uneven(1000), 100_000);
        assert_eq!(long, all(Cuts::uneven(1000), 100_000));
        assert!(long.len() < 1000 && long.iter().any(|size| *size > 500), "{} calls", long.len());
    }

    #[test]
    fn a_call_is_bounded_in_bytes_and_has_a_record_at_least() {
        let five = |bytes: usize| {
            let record = PlainRecord { value: Some(vec![0; bytes].into()), ..PlainRecord::default() };
            vec![record; 5]
        };
        let mut cuts = Cuts::even(1000);
        assert_eq!(cuts.next(&five(ENOUGH_BYTES), 0, 5), 0..1, "a record that is enough is alone");
        let records = five(ENOUGH_BYTES - 1);
        assert_eq!(cuts.next(&records, 0, 5), 0..2);
        assert_eq!(cuts.next(&records, 4, 5), 4..5);
    }
}
