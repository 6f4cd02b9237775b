use super::Place;
use crate::pages::Pages;

/// What is known of a record, in eight bytes.
///
/// ```text
///  63      48 47               8 7     0
/// | slot     | offset           | flags |
/// ```
///
/// Slot and offset say where it was acknowledged; else, where it was first read; else, with TARGETED, the slot where it was sent to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Record(u64);

impl Record {
    /// It was sent, or was about to be.
    pub(crate) const INVOKED: u64 = 1;
    pub(crate) const ACKNOWLEDGED: u64 = 2;
    pub(crate) const FAILED: u64 = 4;
    /// Its place is known.
    pub(crate) const PLACED: u64 = 8;
    /// Somebody read it, a replica's final reader included.
    pub(crate) const READ: u64 = 16;
    /// A replica has it in the end.
    pub(crate) const STORED: u64 = 32;
    /// Its slot is known.
    pub(crate) const TARGETED: u64 = 64;
    /// Its place is one in which it was acknowledged.
    pub(crate) const ACKNOWLEDGED_THERE: u64 = 128;

    pub(crate) const fn is(self, flag: u64) -> bool {
        self.0 & flag != 0
    }

    pub(crate) const fn slot(self) -> Option<u16> {
        if self.is(Self::TARGETED | Self::PLACED) { Some((self.0 >> 48) as u16) } else { None }
    }

    pub(crate) fn place(self) -> Option<Place> {
        let slot = self.slot().filter(|_| self.is(Self::PLACED))?;
        Some(Place { slot, offset: (self.0 >> 8) & ((1 << 40) - 1) })
    }

    pub(crate) const fn with(self, flags: u64) -> Self {
        Self(self.0 | flags)
    }

    pub(crate) const fn without(self, flags: u64) -> Self {
        Self(self.0 & !flags)
    }

    pub(crate) const fn in_slot(self, slot: u16) -> Self {
        Self((self.0 & ((1 << 48) - 1)) | ((slot as u64) << 48) | Self::TARGETED)
    }

    pub(crate) const fn at(self, place: Place) -> Self {
        let flags = self.0 & 0xff;
        Self(((place.slot as u64) << 48) | (place.offset << 8) | flags | Self::PLACED)
    }
}

/// A producer, and what became of its records.
#[derive(Debug)]
pub(crate) struct Producer {
    pub(crate) process: String,
    pub(crate) topic: String,
    pub(crate) is_idempotent: bool,
    /// By sequence.
    records: Pages,
    /// Behind the last record that was sent.
    pub(crate) end: u64,
    /// (first sequence, behind the last, transaction), in order.
    transactions: Vec<(u64, u64, u64)>,
}

impl Producer {
    pub(crate) fn new(process: &str, topic: &str, is_idempotent: bool) -> Self {
        Self {
            process: process.to_owned(),
            topic: topic.to_owned(),
            is_idempotent,
            records: Pages::default(),
            end: 0,
            transactions: Vec::new(),
        }
    }

    pub(crate) fn record(&self, sequence: u64) -> Record {
        Record(self.records.get(sequence))
    }

    pub(crate) fn set(&mut self, sequence: u64, record: Record) {
        self.end = self.end.max(sequence + 1);
        *self.records.entry(sequence) = record.0;
    }

    /// Its records, in the order in which they were sent.
    pub(crate) fn records(&self) -> impl Iterator<Item = (u64, Record)> {
        self.records.iter(0..self.end).map(|(sequence, record)| (sequence, Record(record)))
    }

    pub(crate) fn join(&mut self, transaction: u64, first: u64, count: u32) {
        let end = first + u64::from(count);
        match self.transactions.last_mut() {
            Some(last) if last.2 == transaction && last.1 == first => last.1 = end,
            Some(last) if first < last.1 => {}
            _ => self.transactions.push((first, end, transaction)),
        }
    }

    pub(crate) fn transaction_of(&self, sequence: u64) -> Option<u64> {
        let behind = self.transactions.partition_point(|(first, ..)| *first <= sequence);
        let (_, end, transaction) = self.transactions[..behind].last()?;
        (sequence < *end).then_some(*transaction)
    }
}
