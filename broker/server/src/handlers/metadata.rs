//! Metadata: brokers, topics, who leads what.

use std::collections::BTreeSet;
use std::time::Duration;

use tidemill_controller::{Name, TopicConfig, TopicRecord};
use tidemill_partition::leader_epoch;
use tidemill_protocol::messages::{
    self, BrokerInfo, Error, Metadata, MetadataRequest, PartitionInfo, PartitionerInfo, TopicInfo,
};
use tidemill_protocol::{Term, TopicId};

use crate::context::Context;
use crate::errors;
use crate::handlers::interest::{asked, echo};
use crate::view::ClusterView;

/// How long a topic that was not heard of is asked after.
const NEWS_PATIENCE: Duration = Duration::from_millis(250);

/// From what this broker has heard; only for a topic that it has not heard of it asks the controller, and not for long: whoever looks for a
/// leader asks just when there may be none.
pub(crate) async fn answer(context: &Context, request: &MetadataRequest) -> Result<Metadata, Error> {
    // What one topic answers is a thousand times what naming it takes: not as often as somebody names it.
    let names = if request.all { BTreeSet::new() } else { asked(&request.topics)? };
    let mut view = context.view.now();
    if request.topics.iter().any(|name| view.topic_by_name(name).is_none()) {
        let fresh = tokio::time::timeout(NEWS_PATIENCE, context.fresh_view()).await;
        view = fresh.unwrap_or(view);
    }
    if request.all {
        let topics = view.live_topics().into_iter().map(|topic| info(context, &view, topic)).collect();
        return Ok(Metadata { topics, ..brokers_only(&view) });
    }
    Ok(named(context, &view, names.into_iter()))
}

/// The brokers and no topic.
pub(crate) fn brokers_only(view: &ClusterView) -> Metadata {
    let mut brokers: Vec<BrokerInfo> = view
        .controller()
        .brokers()
        // One that is expected, or gone, is not to be dialled.
        .filter(|broker| broker.is_member() && !broker.addresses.is_empty())
        .map(|broker| BrokerInfo {
            broker_id: broker.broker.get(),
            addresses: broker.addresses.clone(),
            rack: broker.rack.clone(),
        })
        .collect();
    if brokers.is_empty() {
        brokers.push(BrokerInfo {
            broker_id: view.broker.get(),
            addresses: view.addresses.clone(),
            ..BrokerInfo::default()
        });
    }
    Metadata { version: view.version(), brokers, topics: Vec::new() }
}

/// The brokers and the named topics; one that is not there carries an error.
pub(crate) fn named<'a>(
    context: &Context,
    view: &ClusterView,
    names: impl Iterator<Item = &'a str>,
) -> Metadata {
    let topics = names
        .map(|name| match view.topic_by_name(name) {
            Some(topic) => info(context, view, topic),
            None => absent(name),
        })
        .collect();
    Metadata { topics, ..brokers_only(view) }
}

/// A topic that was named and is not there, or never can be: of such a name only the beginning is repeated.
fn absent(name: &str) -> TopicInfo {
    let (name, error) = match Name::parse(name) {
        Ok(_) => (name.to_owned(), errors::unknown_topic(name)),
        Err(error) => (echo(name), errors::invalid_topic_name(&error)),
    };
    TopicInfo { name, error: Some(error), ..TopicInfo::default() }
}

/// One topic, as clients see it.
pub(crate) fn info(context: &Context, view: &ClusterView, topic: &TopicRecord) -> TopicInfo {
    let partitions = (0u32..)
        .zip(&topic.shards)
        .map(|(partition, shard)| {
            let known = context.leader(*shard);
            let leader = known.map_or(0, |leader| leader.node.broker().get());
            let epoch = leader_epoch(known.map_or(Term::new(0), |leader| leader.term));
            let record = view.controller().shard(*shard);
            let replicas =
                record.map(|record| record.replicas.iter().map(|node| node.broker().get()).collect());
            PartitionInfo {
                partition,
                shard: u32::from(shard.get()),
                leader,
                leader_epoch: epoch.get(),
                replicas: replicas.unwrap_or_default(),
            }
        })
        .collect();
    let partitioner = topic.partitioner.deployment.map(|id| PartitionerInfo {
        deployment_id: id.get(),
        deployment: view.deployment(id).map(|record| record.spec.name.to_string()).unwrap_or_default(),
        epoch: topic.partitioner.epoch,
    });
    TopicInfo {
        topic_id: topic_id(topic.id),
        name: topic.name.to_string(),
        partitions,
        config: Some(config(&topic.config)),
        partitioner,
        error: None,
    }
}

pub(crate) fn topic_id(id: TopicId) -> bytes::Bytes {
    bytes::Bytes::copy_from_slice(&id.bytes())
}

pub(crate) fn config(config: &TopicConfig) -> messages::TopicConfig {
    messages::TopicConfig {
        retention_ms: Some(config.retention_ms),
        retention_bytes: Some(config.retention_bytes),
        segment_bytes: Some(config.segment_bytes),
        segment_ms: Some(config.segment_ms),
        batch_bytes_max: Some(config.batch_bytes_max),
        log_append_time: Some(config.log_append_time),
    }
}
