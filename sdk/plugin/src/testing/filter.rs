//! Filters under test.

use crate::batch::Batch;
use crate::failure::{Failure, Rejection};
use crate::fields::Fields;
use crate::filter::{Filter, Selection};
use crate::testing::answers::{checked_rejections, replaced_records};
use crate::testing::record::masked;
use crate::testing::{TestRecord, batch_of};

/// A filter under test.
#[derive(Debug)]
pub struct FilterTest<P> {
    plugin: P,
}

/// What a filter made of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filtered {
    /// The records that go on, each with its ordinal.
    pub records: Vec<TestRecord>,
    /// The records that are refused.
    pub rejections: Vec<Rejection>,
}

impl Filtered {
    /// The values that go on, as text.
    pub fn values(&self) -> Vec<String> {
        self.records.iter().map(TestRecord::value_text).collect()
    }

    /// The places of the records that go on.
    pub fn ordinals(&self) -> Vec<u32> {
        self.records.iter().filter_map(|record| record.ordinal).collect()
    }
}

impl<P: Filter> FilterTest<P> {
    pub(super) fn new(plugin: P) -> Self {
        Self { plugin }
    }

    /// Filters a batch.
    ///
    /// # Panics
    /// Where the broker would refuse the answer.
    pub fn apply(&self, batch: &Batch) -> Result<Filtered, Failure> {
        let verdict = self.plugin.apply(&masked(batch, self.plugin.fields()))?;
        // What is kept as it is goes on whole, asked for or not.
        let all = || batch.iter().map(|record| record.ordinal());
        let records = match verdict.selection {
            Selection::KeepAll => as_they_are(batch, all()),
            Selection::DropAll => Vec::new(),
            Selection::Keep(bitmap) => {
                let kept: Vec<_> = all().filter(|ordinal| bitmap.contains(*ordinal)).collect();
                assert_eq!(
                    bitmap.into_bytes().len(),
                    batch.len().div_ceil(8),
                    "the bitmap has a bit for each record"
                );
                as_they_are(batch, kept.into_iter())
            }
            Selection::Replace(output) => match replaced_records(&output, batch) {
                Ok(records) => records,
                Err(reason) => panic!("the broker would refuse this verdict: {reason}"),
            },
        };
        match checked_rejections(verdict.rejections, batch.len()) {
            Ok(rejections) => Ok(Filtered { records, rejections }),
            Err(reason) => panic!("the broker would refuse this verdict: {reason}"),
        }
    }

    /// Whether a record with this value goes on.
    ///
    /// # Panics
    /// Where the call fails.
    pub fn keeps(&self, value: impl AsRef<[u8]>) -> bool {
        match self.apply(&batch_of([TestRecord::value(value)])) {
            Ok(filtered) => filtered.records.len() == 1,
            Err(failure) => panic!("the filter failed: {failure}"),
        }
    }

    /// The parts of records that the plugin asks for.
    pub fn fields(&self) -> Fields {
        self.plugin.fields()
    }
}

fn as_they_are(batch: &Batch, ordinals: impl Iterator<Item = u32>) -> Vec<TestRecord> {
    ordinals.filter_map(|ordinal| batch.get(ordinal)).map(|record| TestRecord::from(&record)).collect()
}
