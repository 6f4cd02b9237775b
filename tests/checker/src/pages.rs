//! Arrays of numbers over a wide range of indexes. What is near each other costs eight bytes each; what is far away costs a page.

use std::collections::BTreeMap;
use std::ops::Range;

const PAGE: usize = 512;

/// Numbers by index; 0 where there is none.
#[derive(Debug, Default)]
pub(crate) struct Pages {
    pages: BTreeMap<u64, Box<[u64; PAGE]>>,
}

impl Pages {
    pub(crate) fn get(&self, index: u64) -> u64 {
        let (page, place) = split(index);
        self.pages.get(&page).map_or(0, |numbers| numbers[place])
    }

    pub(crate) fn entry(&mut self, index: u64) -> &mut u64 {
        let (page, place) = split(index);
        &mut self.pages.entry(page).or_insert_with(|| Box::new([0; PAGE]))[place]
    }

    /// What is not 0, with its index, in order.
    pub(crate) fn iter(&self, range: Range<u64>) -> impl Iterator<Item = (u64, u64)> {
        let pages = if range.is_empty() { 0..0 } else { split(range.start).0..split(range.end - 1).0 + 1 };
        let numbers = self.pages.range(pages).flat_map(|(page, numbers)| {
            (page * PAGE as u64..).zip(numbers.iter().copied()).filter(|(_, number)| *number != 0)
        });
        numbers.filter(move |(index, _)| range.contains(index))
    }
}

const fn split(index: u64) -> (u64, usize) {
    (index / PAGE as u64, (index % PAGE as u64) as usize)
}

/// A set of numbers, a bit each.
#[derive(Debug, Default)]
pub(crate) struct Bits(Pages);

impl Bits {
    pub(crate) fn insert(&mut self, index: u64) {
        *self.0.entry(index / 64) |= 1 << (index % 64);
    }

    pub(crate) fn contains(&self, index: u64) -> bool {
        self.0.get(index / 64) & (1 << (index % 64)) != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_found_where_they_were_put() {
        let mut pages = Pages::default();
        let mut bits = Bits::default();
        let indexes = [0, 1, 511, 512, 5_000, 1 << 39];
        for index in indexes {
            *pages.entry(index) = index + 7;
            bits.insert(index);
        }
        for index in indexes {
            assert_eq!(pages.get(index), index + 7);
            assert!(bits.contains(index) && !bits.contains(index + 2));
        }
        let all: Vec<u64> = pages.iter(0..u64::MAX).map(|(index, _)| index).collect();
        assert_eq!(all, indexes);
        let some: Vec<u64> = pages.iter(1..512).map(|(index, _)| index).collect();
        assert_eq!(some, [1, 511]);
        assert_eq!(pages.iter(5..5).count(), 0);
    }
}
