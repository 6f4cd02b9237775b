//! Opening a produce stream: where, as whom, and pinned to what.

use std::sync::Arc;
use std::time::Duration;

use tidemill_protocol::messages::{
    self, ProduceOpen, ProduceOpened, RoutedOpen, RoutedOpened, StreamOpen, stream_open,
};
use tidemill_protocol::record_batch::ProducerFields;
use tidemill_protocol::{BrokerId, TopicPartition};

use super::Acks;
use super::lane::Target;
use crate::ServerError;
use crate::cluster::{BrokerConnection, Cluster, Lead, TopicMetadata};
use crate::error::server_error;
use crate::transport::Wire;

/// After so long without an answer the broker is asked for a sign of life.
pub(super) const DOUBT_AFTER: Duration = Duration::from_millis(300);

/// What a stream is opened with.
pub(super) struct StreamOpening {
    pub(super) topic: Arc<TopicMetadata>,
    pub(super) target: Target,
    pub(super) lead: Option<Lead>,
    pub(super) fields: ProducerFields,
    pub(super) generation: u64,
    pub(super) acks: Acks,
}

pub(super) type Opened = Result<(Wire, Option<(u32, u32)>, Arc<BrokerConnection>), ServerError>;

impl StreamOpening {
    /// Opens the stream: the broker's answer, or why there is none. What waits for a silent broker, or for one that leads no more,
    /// is cut short: the next attempt knows better.
    pub(super) async fn run(self, cluster: &Arc<Cluster>) -> Result<Opened, String> {
        let connection = cluster.connection(self.lead.and_then(|lead| lead.leader)).await;
        let connection = connection.map_err(|error| error.to_string())?;
        let broker = connection.broker;
        // One that did not answer before is only asked where there is nobody else.
        let is_well = cluster.known().is_well(broker);
        let news = async {
            match self.target {
                Target::Partition(partition) => {
                    cluster.other_lead(&self.topic.name, self.topic.id, partition, self.lead).await;
                }
                Target::Routed => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            opened = self.open(Arc::clone(&connection)) => opened,
            never = doubt_after(&connection, DOUBT_AFTER) => match never {},
            () = cluster.until_unwell(broker), if is_well => Err(format!("broker {broker} does not answer")),
            () = news => Err("the partition's leader changes".to_owned()),
        }
    }

    async fn open(&self, connection: Arc<BrokerConnection>) -> Result<Opened, String> {
        let mut wire = Wire::open(&connection.quinn).await.map_err(|error| error.to_string())?;
        let message = self.message(connection.broker);
        wire.writer.send(&message, &[]).await.map_err(|error| error.to_string())?;
        let opened = match self.target {
            Target::Partition(_) => {
                let (opened, _) =
                    wire.reader.message::<ProduceOpened>().await.map_err(|error| error.to_string())?;
                server_error(opened.error).map(|()| None)
            }
            Target::Routed => {
                let (opened, _) =
                    wire.reader.message::<RoutedOpened>().await.map_err(|error| error.to_string())?;
                server_error(opened.error).map(|()| Some((opened.partitioner_epoch, opened.partition_count)))
            }
        };
        Ok(opened.map(|route| (wire, route, connection)))
    }

    fn message(&self, broker: BrokerId) -> StreamOpen {
        let acks = match self.acks {
            Acks::Quorum => messages::Acks::Quorum,
            Acks::None => messages::Acks::None,
        };
        let kind = match self.target {
            Target::Partition(partition) => stream_open::Kind::Produce(ProduceOpen {
                partition: Some(TopicPartition::new(self.topic.id, partition).into()),
                leader_epoch: self.leader_epoch(broker),
                producer_id: self.fields.id.get(),
                producer_epoch: self.fields.epoch.get().into(),
                generation: self.generation,
                acks: acks.into(),
            }),
            Target::Routed => stream_open::Kind::Routed(RoutedOpen {
                topic_id: self.topic.id.bytes().to_vec().into(),
                producer_id: self.fields.id.get(),
                producer_epoch: self.fields.epoch.get().into(),
                generation: self.generation,
                acks: acks.into(),
            }),
        };
        StreamOpen { kind: Some(kind) }
    }

    /// The epoch that the stream is pinned to: under another leader nothing of it is appended, and it is not forwarded.
    ///
    /// Where the producer is idempotent it is none. Sequences keep order and once-only under whatever leader appends: a batch that
    /// overtakes a lost one is refused for the gap before it, one that comes twice is a duplicate, and what an older stream still
    /// has on its way is fenced by the generation or by the same two. So the stream may be forwarded, and needs no newer metadata
    /// to go on after an election that this client has not heard of.
    ///
    /// Without sequences nothing else holds: of batches 1 and 2 under way when the leader changes, 1 could be lost with the old
    /// leader and 2 be appended by the new one, before 1 is sent again. Pinned, 2 is refused as well. Only a broker that is not known
    /// to lead gets none: it forwards to one leader, and ends the stream when that leads no more.
    fn leader_epoch(&self, broker: BrokerId) -> i32 {
        match self.lead {
            Some(lead) if self.fields.id.get() < 0 && lead.leader == Some(broker) => lead.epoch.get(),
            _ => -1,
        }
    }
}

/// Doubts a broker that takes long. Never ends.
async fn doubt_after(connection: &BrokerConnection, patience: Duration) -> std::convert::Infallible {
    loop {
        tokio::time::sleep(patience).await;
        connection.doubt();
    }
}
