//! What shards remember of a routed batch that have no replica at the broker that takes it: it asks a broker that has one.
//!
//! Only batches of a topic that has, or had, a produce filter are asked about: a retry passes what its first attempt passed, and one
//! shard may have its part of that attempt and another not.

use futures::future::try_join_all;
use tidemill_protocol::messages::Error;
use tidemill_protocol::{DeploymentId, ProducerEpoch, ProducerId, ShardId, Timestamp, TopicId};
use tidemill_shard::{FilterPass, RoutedAttempt};

use crate::attempts::RoutedKey;
use crate::cluster::ask_a_holder;
use crate::context::Context;
use crate::errors;
use crate::peers::messages::{AttemptOpen, AttemptPass, AttemptReply, Purpose};

/// What shards without a replica here remember of a batch; `None`: none of them has any of it.
///
/// # Errors
/// One of them can't be asked, so that it is not known what the batch is to pass.
pub(super) async fn elsewhere(
    context: &Context,
    shards: impl Iterator<Item = ShardId>,
    key: &RoutedKey,
) -> Result<Option<RoutedAttempt>, Error> {
    let asked = try_join_all(shards.map(|shard| ask(context, shard, key))).await?;
    Ok(asked.into_iter().flatten().next())
}

async fn ask(context: &Context, shard: ShardId, key: &RoutedKey) -> Result<Option<RoutedAttempt>, Error> {
    let question = Purpose::Attempt(AttemptOpen {
        shard: u32::from(shard.get()),
        topic_id: bytes::Bytes::copy_from_slice(&key.topic.bytes()),
        producer_id: key.producer.get(),
        producer_epoch: i32::from(key.epoch.get()),
        topic_sequence: key.topic_sequence,
    });
    let reply = ask_a_holder(context, shard, question, |reply: &AttemptReply| reply.error.as_ref()).await?;
    let filtered = reply
        .passed
        .map(|pass| FilterPass { filter: DeploymentId::new(pass.deployment), now: Timestamp::new(pass.now) });
    Ok(reply.is_known.then_some(RoutedAttempt { filtered }))
}

/// What a replica here remembers of a batch that came to another broker.
pub(crate) async fn remembered(context: &Context, open: &AttemptOpen) -> AttemptReply {
    match find(context, open).await {
        Ok(found) => AttemptReply {
            error: None,
            is_known: found.is_some(),
            passed: found
                .and_then(|attempt| attempt.filtered)
                .map(|pass| AttemptPass { deployment: pass.filter.get(), now: pass.now.get() }),
        },
        Err(error) => AttemptReply { error: Some(error), ..AttemptReply::default() },
    }
}

async fn find(context: &Context, open: &AttemptOpen) -> Result<Option<RoutedAttempt>, Error> {
    let unreadable = || errors::bad_message("a question about a batch names a shard, a topic and a producer");
    let shard = u16::try_from(open.shard).map(ShardId::new).map_err(|_| unreadable())?;
    let topic = TopicId::from_slice(&open.topic_id).ok_or_else(unreadable)?;
    let epoch = i16::try_from(open.producer_epoch).map_err(|_| unreadable())?;
    let replica = context.shards.serving(shard).ok_or_else(|| errors::not_on_this_broker(shard))?;
    context.settle([shard]).await?;
    let producer = (ProducerId::new(open.producer_id), ProducerEpoch::new(epoch));
    Ok(replica.shard().routed_attempt(topic, producer, open.topic_sequence))
}
