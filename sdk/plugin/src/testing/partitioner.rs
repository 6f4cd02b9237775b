//! Partitioners under test.

use crate::batch::Batch;
use crate::failure::Failure;
use crate::fields::Fields;
use crate::partitioner::{ANY_PARTITION, Partitioner, Place, Placement};
use crate::testing::answers::checked_rejections;
use crate::testing::record::masked;
use crate::testing::{TestRecord, batch_of};

/// A partitioner under test.
#[derive(Debug)]
pub struct PartitionerTest<P> {
    plugin: P,
}

impl<P: Partitioner> PartitionerTest<P> {
    pub(super) fn new(plugin: P) -> Self {
        Self { plugin }
    }

    /// Places a batch.
    ///
    /// # Panics
    /// Where the broker would refuse the answer.
    pub fn partition(&self, batch: &Batch, partitions: u32) -> Result<Placement, Failure> {
        let placement = self.plugin.partition(&masked(batch, self.plugin.fields()), partitions)?;
        assert_eq!(placement.partitions.len(), batch.len(), "a partitioner places each record");
        for partition in &placement.partitions {
            assert!(
                *partition < partitions || *partition == ANY_PARTITION,
                "there is no partition {partition}"
            );
        }
        match checked_rejections(placement.rejections, batch.len()) {
            Ok(rejections) => Ok(Placement { partitions: placement.partitions, rejections }),
            Err(reason) => panic!("the broker would refuse this placement: {reason}"),
        }
    }

    /// Places one record.
    ///
    /// # Panics
    /// Where the call fails.
    pub fn place(&self, record: TestRecord, partitions: u32) -> Place {
        match self.partition(&batch_of([record]), partitions) {
            Ok(Placement { rejections, .. }) if !rejections.is_empty() => {
                Place::Reject(rejections[0].reason.clone())
            }
            Ok(Placement { partitions, .. }) if partitions[0] == ANY_PARTITION => Place::Any,
            Ok(Placement { partitions, .. }) => Place::Partition(partitions[0]),
            Err(failure) => panic!("the partitioner failed: {failure}"),
        }
    }

    /// The parts of records that the plugin asks for.
    pub fn fields(&self) -> Fields {
        self.plugin.fields()
    }
}
