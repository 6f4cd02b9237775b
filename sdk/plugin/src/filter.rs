//! Plugins that decide which records go on.

use crate::batch::{Batch, Record};
use crate::context::Context;
use crate::description::Description;
use crate::failure::{Failure, Rejection};
use crate::fields::Fields;
use crate::output::{Output, Replacement};

/// Keeps, drops, refuses or rewrites records: of a produce before they are stored, or of a subscription before they are sent.
///
/// Implement the method that fits: [`keep`](Self::keep) for yes or no, [`judge`](Self::judge) to refuse with a reason,
/// [`apply`](Self::apply) to decide a batch as a whole or to rewrite records ([`Replacement`]).
pub trait Filter: Sized + 'static {
    /// What the plugin is and how it is configured.
    fn describe() -> Description;

    /// A new instance; an error refuses the deployment.
    fn new(ctx: &Context) -> Result<Self, String>;

    /// What it reads of each record: keys and values, unless said otherwise.
    fn fields(&self) -> Fields {
        Fields::KEY | Fields::VALUE
    }

    /// Whether a record goes on.
    fn keep(&self, _record: &Record<'_>) -> bool {
        true
    }

    /// What becomes of a record: as [`keep`](Self::keep) says, unless said otherwise.
    fn judge(&self, record: &Record<'_>) -> Judgement {
        if self.keep(record) { Judgement::Keep } else { Judgement::Drop }
    }

    /// What becomes of a batch: each record as [`judge`](Self::judge) says, unless said otherwise.
    fn apply(&self, batch: &Batch) -> Result<Verdict, Failure> {
        Ok(Verdict::judged(batch, |record| self.judge(record)))
    }
}

/// What becomes of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// It goes on.
    Keep,
    /// It does not, and nobody need know.
    Drop,
    /// It is refused for this reason; the deployment's failure policy decides what follows.
    Reject(String),
}

/// What becomes of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// What goes on.
    pub selection: Selection,
    /// What is refused.
    pub rejections: Vec<Rejection>,
}

/// Which records go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selection {
    /// All of them.
    KeepAll,
    /// None.
    DropAll,
    /// Those whose bit is set.
    Keep(Bitmap),
    /// Those named, with other contents.
    Replace(Output),
}

impl Verdict {
    /// Judges record by record.
    #[inline]
    pub fn judged(batch: &Batch, mut judge: impl FnMut(&Record<'_>) -> Judgement) -> Self {
        let mut rejections = Vec::new();
        let mut bitmap = Bitmap::none(batch.len());
        for record in batch {
            match judge(&record) {
                Judgement::Keep => bitmap.set(record.ordinal()),
                Judgement::Drop => {}
                Judgement::Reject(reason) => rejections.push(Rejection { ordinal: record.ordinal(), reason }),
            }
        }
        Self { selection: bitmap.into(), rejections }
    }
}

impl From<Selection> for Verdict {
    fn from(selection: Selection) -> Self {
        Self { selection, rejections: Vec::new() }
    }
}

impl From<Replacement> for Verdict {
    fn from(replacement: Replacement) -> Self {
        Selection::from(replacement).into()
    }
}

impl From<Replacement> for Selection {
    fn from(replacement: Replacement) -> Self {
        if replacement.output.is_empty() { Self::DropAll } else { Self::Replace(replacement.output) }
    }
}

/// A bit per record of a batch, least significant first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bitmap {
    bits: Vec<u8>,
    len: usize,
    set: usize,
}

impl Bitmap {
    /// For `len` records, none of them set.
    pub fn none(len: usize) -> Self {
        Self { bits: vec![0; len.div_ceil(8)], len, set: 0 }
    }

    /// Sets a record's bit.
    ///
    /// # Panics
    /// Where the batch has no such record.
    #[inline]
    pub fn set(&mut self, ordinal: u32) {
        let ordinal = ordinal as usize;
        assert!(ordinal < self.len, "a bitmap has a bit for each record of its batch");
        let (byte, bit) = (&mut self.bits[ordinal / 8], 1 << (ordinal % 8));
        self.set += usize::from(*byte & bit == 0);
        *byte |= bit;
    }

    /// Whether a record's bit is set.
    pub fn contains(&self, ordinal: u32) -> bool {
        self.bits.get(ordinal as usize / 8).is_some_and(|byte| byte & 1 << (ordinal % 8) != 0)
    }

    /// The bits, as the broker reads them.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bits
    }
}

impl From<Bitmap> for Selection {
    fn from(bitmap: Bitmap) -> Self {
        match bitmap.set {
            0 => Self::DropAll,
            set if set == bitmap.len => Self::KeepAll,
            _ => Self::Keep(bitmap),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_and_none_need_no_bits() {
        let mut bitmap = Bitmap::none(9);
        assert_eq!(Selection::from(bitmap.clone()), Selection::DropAll);
        bitmap.set(0);
        bitmap.set(8);
        bitmap.set(8);
        assert!(bitmap.contains(8) && !bitmap.contains(7) && !bitmap.contains(99));
        assert_eq!(bitmap.clone().into_bytes(), [1, 1]);
        assert!(matches!(Selection::from(bitmap.clone()), Selection::Keep(_)));
        (1..8).for_each(|ordinal| bitmap.set(ordinal));
        assert_eq!(Selection::from(bitmap), Selection::KeepAll);
    }
}
