//! Plugins that pick partitions.

use crate::batch::{Batch, Record};
use crate::context::Context;
use crate::description::Description;
use crate::failure::{Failure, Rejection};
use crate::fields::Fields;

/// In [`Placement::partitions`]: any partition will do.
pub const ANY_PARTITION: u32 = 0xffff_ffff;

/// Picks the partition of each record before it is stored.
///
/// The answer depends on the arguments alone: the broker calls a fresh instance each time.
pub trait Partitioner: Sized + 'static {
    /// What the plugin is and how it is configured.
    fn describe() -> Description;

    /// A new instance; an error refuses the deployment.
    fn new(ctx: &Context) -> Result<Self, String>;

    /// What it reads of each record: keys, unless said otherwise.
    fn fields(&self) -> Fields {
        Fields::KEY
    }

    /// Where a record goes; `partitions` is at least 1.
    fn place(&self, record: &Record<'_>, partitions: u32) -> Place;

    /// Where a whole batch goes: each record by [`place`](Self::place), unless said otherwise.
    fn partition(&self, batch: &Batch, partitions: u32) -> Result<Placement, Failure> {
        let mut placement = Placement { partitions: Vec::with_capacity(batch.len()), rejections: Vec::new() };
        for record in batch {
            let partition = match self.place(&record, partitions) {
                Place::Partition(partition) if partition < partitions => partition,
                Place::Partition(partition) => {
                    let ordinal = record.ordinal();
                    return Err(Failure::reject(format!(
                        "the plugin placed record {ordinal} in partition {partition}, but there are {partitions}"
                    )));
                }
                Place::Any => ANY_PARTITION,
                Place::Reject(reason) => {
                    placement.rejections.push(Rejection { ordinal: record.ordinal(), reason });
                    ANY_PARTITION
                }
            };
            placement.partitions.push(partition);
        }
        Ok(placement)
    }
}

/// Where a record goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Into this partition, below their number.
    Partition(u32),
    /// Anywhere: the broker keeps such records of a batch together.
    Any,
    /// Nowhere, for this reason.
    Reject(String),
}

/// Where each record of a batch goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// A partition for each record, or [`ANY_PARTITION`].
    pub partitions: Vec<u32>,
    /// The records that are refused.
    pub rejections: Vec<Rejection>,
}
