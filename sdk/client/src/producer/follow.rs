//! Where lanes have their streams, and when they leave: because another broker leads their partition, or theirs does not answer.
//!
//! One task per producer hears what changes and tells the lanes by the token that they wait for anyway: a stream pays nothing for
//! it, however many batches go over it.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tidemill_protocol::BrokerId;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::lane::{Lane, Target};
use super::shared::Shared;
use crate::cluster::{Cluster, Lead, Metadata};

/// A lane whose leader did not answer sends by way of another broker for so long at least.
const DETOUR: Duration = Duration::from_secs(5);

/// Where a lane has its stream.
#[derive(Debug)]
pub(super) struct Stay {
    broker: BrokerId,
    /// What was known of the partition's leader when the stream was opened.
    lead: Option<Lead>,
    since: Instant,
    leave: CancellationToken,
}

impl Stay {
    pub(super) fn new(broker: BrokerId, lead: Option<Lead>, leave: CancellationToken) -> Self {
        Self { broker, lead, since: Instant::now(), leave }
    }

    /// Whether the stream should go over another broker. `lead` is what is known now.
    fn is_over(&self, lead: Option<Lead>, known: &Metadata, now: Instant) -> bool {
        if !known.is_well(self.broker) && known.has_well_beside(self.broker) {
            return true;
        }
        let Some(leader) = lead.and_then(|lead| lead.leader).filter(|leader| *leader != self.broker) else {
            return false;
        };
        // The same lead means that the leader could not be reached when the stream was opened.
        lead != self.lead || (known.is_well(leader) && now >= self.since + DETOUR)
    }
}

/// A lane's stay, which is over with its stream, however that ends: nobody is told to leave where it is no more.
pub(super) struct Staying(Arc<Lane>);

impl Staying {
    pub(super) fn begin(lane: &Arc<Lane>, stay: Stay) -> Self {
        *lane.stay.lock() = Some(stay);
        Self(Arc::clone(lane))
    }
}

impl Drop for Staying {
    fn drop(&mut self) {
        *self.0.stay.lock() = None;
    }
}

/// What the lanes of a producer wait for.
pub(super) async fn follow(shared: Weak<Shared>, cluster: Arc<Cluster>, stopped: CancellationToken) {
    let mut news = cluster.watch();
    loop {
        news.borrow_and_update();
        let Some(strong) = shared.upgrade() else { return };
        let known = cluster.known();
        let mut is_detour = false;
        for lane in strong.started_lanes() {
            is_detour |= look(&strong, &known, lane);
        }
        drop(strong);
        tokio::select! {
            () = stopped.cancelled() => return,
            changed = news.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(DETOUR), if is_detour => {}
        }
    }
}

/// Tells a lane to leave where it should. Answers whether it sends by way of a broker that does not lead its partition.
pub(super) fn look(shared: &Shared, known: &Metadata, lane: &Lane) -> bool {
    let stay = lane.stay.lock();
    let Some(stay) = &*stay else { return false };
    let lead = match lane.target {
        Target::Partition(partition) => known.lead(&shared.topic.name, shared.topic.id, partition),
        // Any broker is as good as another.
        Target::Routed => None,
    };
    if stay.is_over(lead, known, Instant::now()) {
        stay.leave.cancel();
    }
    lead.and_then(|lead| lead.leader).is_some_and(|leader| leader != stay.broker)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use tidemill_protocol::PartitionId;
    use tidemill_protocol::messages::{self, PartitionInfo, TopicInfo};

    use super::super::ProducerBuilder;
    use super::*;
    use crate::ClientConfig;

    /// Of the topic that a sink has: its one partition is led by broker 1.
    fn known() -> Metadata {
        let partition =
            PartitionInfo { partition: 0, shard: 1, leader: 1, leader_epoch: 0, replicas: vec![1, 2] };
        let topic = TopicInfo {
            topic_id: Bytes::from_static(&[0; 16]),
            name: "t".to_owned(),
            partitions: vec![partition],
            ..TopicInfo::default()
        };
        let mut known = Metadata::default();
        known.merge(messages::Metadata { version: 1, brokers: vec![], topics: vec![topic] });
        known
    }

    #[tokio::test]
    async fn a_lane_is_looked_after_as_long_as_its_stream_lasts() {
        let cluster = Cluster::new(ClientConfig::new(["127.0.0.1:1"]).insecure()).expect("good settings");
        let producer = ProducerBuilder::new(cluster, "t".to_owned()).build_sink(1).expect("a sink");
        let (shared, known) = (&producer.shared, known());
        let number = PartitionId::new(0);
        let lane = Arc::new(Lane::new(Target::Partition(number), shared));
        assert!(!look(shared, &known, &lane), "it has no stream");

        let lead = known.lead(&shared.topic.name, shared.topic.id, number);
        assert_eq!(lead.and_then(|lead| lead.leader), Some(BrokerId::new(1)));
        let leave = CancellationToken::new();
        let staying = Staying::begin(&lane, Stay::new(BrokerId::new(2), lead, leave.clone()));
        assert!(look(shared, &known, &lane), "by way of another than the leader");
        drop(staying);
        assert!(!look(shared, &known, &lane), "the stream is over, and nobody makes a detour");

        // One that has another stream hears what changes.
        let unknown = Stay::new(BrokerId::new(2), None, leave.clone());
        let _staying = Staying::begin(&lane, unknown);
        assert!(look(shared, &known, &lane) && leave.is_cancelled(), "the leader was not known before");
    }
}
