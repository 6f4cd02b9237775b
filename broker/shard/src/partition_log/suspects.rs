//! Segments in which damage was met, until somebody has looked after them.

use std::collections::BTreeSet;

use parking_lot::Mutex;
use tidemill_protocol::{Offset, TopicPartition};

/// So many are remembered; of more, whoever meets them next reminds of them.
const SUSPECTS_MAX: usize = 1024;

/// Segments of one shard by partition and base offset.
#[derive(Debug, Default)]
pub(crate) struct Suspects(Mutex<BTreeSet<(TopicPartition, Offset)>>);

impl Suspects {
    pub(crate) fn add(&self, partition: TopicPartition, base_offset: Offset) {
        let mut suspects = self.0.lock();
        if suspects.len() < SUSPECTS_MAX {
            suspects.insert((partition, base_offset));
        }
    }

    pub(crate) fn remove(&self, partition: TopicPartition, base_offset: Offset) {
        self.0.lock().remove(&(partition, base_offset));
    }

    pub(crate) fn all(&self) -> Vec<(TopicPartition, Offset)> {
        self.0.lock().iter().copied().collect()
    }
}
