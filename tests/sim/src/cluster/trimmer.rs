//! Lets records go: log starts that advance, as retention and whoever deletes records have them advance.

use std::time::Duration;

use rand::RngExt;
use tidemill_protocol::{Offset, PartitionId, TopicPartition};
use tidemill_shard::{Unit, UnitResult};

use super::clients::{Client, PARTITIONS, topic_of};

const PAUSE_MS: std::ops::Range<u64> = 0..4_000;
/// Of what is there, at most one part in so many goes at a time.
const GOES_ONE_IN: u64 = 2;

impl Client {
    /// Only of a shard's last partition: of the others all that was acknowledged must be there in the end.
    pub(crate) async fn trim(mut self) {
        let partition = TopicPartition::new(topic_of(self.shard), PartitionId::new(PARTITIONS - 1));
        // A task that is there only later would begin behind what is gone.
        self.write(self.shard, &Unit::AdoptTopic(self.topic())).await;
        self.write(self.shard, &Unit::AdoptDeployment(self.deployment())).await;
        let mut start = Offset::ZERO;
        while !self.world.is_ending() && self.world.violation().is_none() {
            tokio::time::sleep(Duration::from_millis(self.rng.random_range(PAUSE_MS))).await;
            let Some(end) = self.ledger.lock().acknowledged_end(partition) else { continue };
            let there = u64::try_from(end.get() - start.get()).unwrap_or(0);
            let offset = start.plus(self.rng.random_range(0..=there / GOES_ONE_IN));
            self.ledger.lock().lets_go(partition, offset);
            match self.write(self.shard, &Unit::AdvanceLogStart { partition, offset }).await {
                Some(UnitResult::LogStart { offset: starts }) if starts == offset => {
                    start = offset;
                    self.ledger.lock().has_let_go(partition, offset);
                }
                Some(other) => return self.was_told(&format!("{other:?} of a start at {offset}")),
                None => return,
            }
        }
    }
}
