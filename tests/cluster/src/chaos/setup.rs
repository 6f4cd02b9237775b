//! Topics, plugins and deployments.

use std::collections::BTreeSet;

use tidemill_client::messages::{FailurePolicy, TopicConfig};
use tidemill_client::{Client, NewDeployment, NewTopic, Position};
use tidemill_protocol::ShardId;

use super::load::{
    DEVICES, DIRECT, DIRECT_PARTITIONS, ROUTED, ROUTED_PARTITIONS, TRIMMED, TRIMMED_PARTITIONS, Topic,
};
use crate::{Outcome, plugins};

pub(super) const COUNTS: &str = "counts";
pub(super) const COUNTS_PARTITIONS: u32 = 5;
pub(super) const PHONES: &str = "phones";
pub(super) const PHONES_PARTITIONS: u32 = 3;
pub(super) const OTHERS: &str = "others";
pub(super) const OTHERS_PARTITIONS: u32 = 2;

/// All topics, and what is known of their records.
pub(super) const TOPICS: [(&str, Option<Topic>); 6] = [
    (DIRECT, Some(Topic::Direct)),
    (ROUTED, Some(Topic::Routed)),
    (TRIMMED, Some(Topic::Trimmed)),
    (COUNTS, None),
    (PHONES, None),
    (OTHERS, None),
];

pub(super) const COUNTER: &str = "count-songs";
pub(super) const ROUTER: &str = "by-device";
/// The subscription filter of one of the readers: this device's records.
pub(super) const FILTERED_DEVICE: u32 = 2;

/// Small, so that segments roll.
const SEGMENT_BYTES: u64 = 512 << 10;
/// Of a partition of the topic that retention is at work on: a minute's records, in segments of some seconds each.
const TRIMMED_BYTES: i64 = 2 << 20;
const TRIMMED_SEGMENT_BYTES: u64 = 256 << 10;

pub(super) async fn set_up(client: &Client) -> Outcome<()> {
    for (name, partitions) in [
        (DIRECT, DIRECT_PARTITIONS),
        (ROUTED, ROUTED_PARTITIONS),
        (COUNTS, COUNTS_PARTITIONS),
        (PHONES, PHONES_PARTITIONS),
        (OTHERS, OTHERS_PARTITIONS),
    ] {
        let config = TopicConfig { segment_bytes: Some(SEGMENT_BYTES), ..TopicConfig::default() };
        client.topics().create(NewTopic::new(name, partitions).config(config)).await?;
    }
    let trimmed = TopicConfig {
        segment_bytes: Some(TRIMMED_SEGMENT_BYTES),
        retention_bytes: Some(TRIMMED_BYTES),
        ..TopicConfig::default()
    };
    client.topics().create(NewTopic::new(TRIMMED, TRIMMED_PARTITIONS).config(trimmed)).await?;
    for plugin in ["field-hash", "json-filter", "count-by-field", "route-by-field"] {
        plugins::upload(client, plugin).await?;
    }
    let deployments = client.deployments();
    deployments
        .create(NewDeployment::partitioner("by-user", "field-hash", ROUTED).set("field", "user_id"))
        .await?;
    let counter = NewDeployment::consumer(COUNTER, "count-by-field")
        .topic(DIRECT)
        .target(COUNTS)
        .set("field", "song_id")
        .set("missing", "reject")
        .start(Position::Earliest)
        .policy(FailurePolicy::Pause);
    deployments.create(counter).await?;
    let router = NewDeployment::consumer(ROUTER, "route-by-field")
        .topic(ROUTED)
        .target(PHONES)
        .target(OTHERS)
        .set("field", "device")
        .set("routes", format!("{}={PHONES}", DEVICES[0]))
        .set("default", OTHERS)
        .start(Position::Earliest)
        .policy(FailurePolicy::Pause);
    deployments.create(router).await?;
    check_shards(client, DIRECT, &[COUNTS]).await?;
    check_shards(client, ROUTED, &[PHONES, OTHERS]).await
}

/// Each task's outputs must cross shards, or the outboxes are not tested.
async fn check_shards(client: &Client, source: &str, targets: &[&str]) -> Outcome<()> {
    let mut shards: BTreeSet<ShardId> = BTreeSet::new();
    for target in targets {
        shards
            .extend(client.topic_metadata(target).await?.partitions.iter().map(|partition| partition.shard));
    }
    for partition in &client.topic_metadata(source).await?.partitions {
        if shards.iter().filter(|shard| **shard != partition.shard).count() < 2 {
            return Err(format!(
                "the targets {targets:?} lie in shards {shards:?}: too few beside {source}'s own"
            )
            .into());
        }
    }
    Ok(())
}
