//! Offsets by position, and producer ids.

use std::collections::{BTreeMap, BTreeSet};

use futures::future::join_all;
use tidemill_protocol::messages::{
    Error, InitProducerReply, ListOffsetsReply, ListOffsetsRequest, OffsetAnswer, OffsetQuery, position::At,
    request,
};
use tidemill_protocol::{ErrorCode, ShardId, Timestamp, TopicPartition};
use tidemill_raft::Replica;

use crate::cluster::{Asking, another_answer, body_of};
use crate::connection::Hop;
use crate::context::Context;
use crate::errors;
use crate::handlers::topics;
use crate::view::ClusterView;

const QUERIES_MAX: usize = 100_000;

pub(crate) async fn list(asking: &Asking, request: &ListOffsetsRequest) -> Result<ListOffsetsReply, Error> {
    if request.queries.len() > QUERIES_MAX {
        return Err(Error::new(
            ErrorCode::BadMessage,
            format!("at most {QUERIES_MAX} queries in one request"),
        ));
    }
    Ok(ListOffsetsReply { answers: look_up(asking, &request.queries).await? })
}

/// An answer for each query, in their order. What can't be told of one partition just now stands in its own answer.
pub(crate) async fn look_up(asking: &Asking, queries: &[OffsetQuery]) -> Result<Vec<OffsetAnswer>, Error> {
    let context = &asking.context;
    let view = context.view.now();
    let mut answers = vec![OffsetAnswer::default(); queries.len()];
    let mut by_shard: BTreeMap<ShardId, Vec<(usize, TopicPartition)>> = BTreeMap::new();
    for (number, query) in queries.iter().enumerate() {
        let located = topics::partition(query.partition.as_ref())
            .and_then(|partition| Ok((partition, context.locate(&view, partition)?.1)));
        match located {
            Ok((partition, shard)) => by_shard.entry(shard).or_default().push((number, partition)),
            Err(error) => answers[number] = unanswered(error),
        }
    }
    let share = asking.share(by_shard.keys().copied());
    let asks_end =
        |shard: ShardId| by_shard[&shard].iter().any(|(number, _)| asks_for_end(&queries[*number]));
    let here: Vec<(ShardId, bool)> = share.here.iter().map(|(shard, _)| (*shard, asks_end(*shard))).collect();
    let shown = join_all(here.into_iter().map(|(shard, of_end)| shows(context, shard, of_end))).await;
    if let (Hop::Forwarded { .. }, Some(error)) = (&asking.caller.hop, none_of(&shown)) {
        // Whoever brought the request asks another broker.
        return Err(error.clone());
    }
    for ((shard, replica), shown) in share.here.iter().zip(shown) {
        for (number, partition) in &by_shard[shard] {
            let found = match &shown {
                Ok(()) => find(&view, replica, *partition, &queries[*number]).await,
                Err(error) => Err(error.clone()),
            };
            answers[*number] = found.unwrap_or_else(unanswered);
        }
    }
    let numbers = |shards: &BTreeSet<ShardId>| -> Vec<usize> {
        shards.iter().flat_map(|shard| &by_shard[shard]).map(|(number, _)| *number).collect()
    };
    let asked = asking.ask_each(share.there, |shards| {
        let queries = numbers(shards).into_iter().map(|number| queries[number].clone()).collect();
        request::Body::ListOffsets(ListOffsetsRequest { queries })
    });
    let asked = asked.await;
    for (shards, body) in asked.said {
        let part = body_of!(body, ListOffsets)?.answers;
        let numbers = numbers(&shards);
        if part.len() != numbers.len() {
            return Err(another_answer());
        }
        for (number, answer) in numbers.into_iter().zip(part) {
            answers[number] = answer;
        }
    }
    for (shard, error) in share.nowhere.into_iter().chain(asked.failed) {
        for (number, _) in &by_shard[&shard] {
            answers[*number] = unanswered(error.clone());
        }
    }
    Ok(answers)
}

/// Waits until a shard's replica here shows what is asked of it.
async fn shows(context: &Context, shard: ShardId, of_end: bool) -> Result<(), Error> {
    match of_end {
        true => context.confirm([shard]).await,
        false => context.settle([shard]).await,
    }
}

/// Why no shard shows what is asked of it, where that is so.
fn none_of(shown: &[Result<(), Error>]) -> Option<&Error> {
    if shown.iter().any(Result::is_ok) {
        return None;
    }
    shown.iter().find_map(|shown| shown.as_ref().err())
}

const fn unanswered(error: Error) -> OffsetAnswer {
    OffsetAnswer { error: Some(error), offset: -1, timestamp: -1 }
}

/// Whether the answer may be the end: it must not be what a leader shows that was deposed and does not know it.
fn asks_for_end(query: &OffsetQuery) -> bool {
    let at = query.position.as_ref().and_then(|position| position.at.as_ref());
    !matches!(at, Some(At::Earliest(_)))
}

/// The offset, and the timestamp of the record there where it was looked up by time.
async fn find(
    view: &ClusterView,
    replica: &Replica,
    partition: TopicPartition,
    query: &OffsetQuery,
) -> Result<OffsetAnswer, Error> {
    let shard = replica.shard();
    let known =
        shard.partition(partition).ok_or_else(|| errors::not_ready(view.partition_name(partition)))?;
    let at = |offset: i64| OffsetAnswer { error: None, offset, timestamp: -1 };
    Ok(match query.position.as_ref().and_then(|position| position.at.as_ref()) {
        Some(At::Earliest(_)) => at(known.log_start.get()),
        None | Some(At::Latest(_)) => at(known.high_watermark.get()),
        Some(At::Offset(offset)) => at((*offset).clamp(known.log_start.get(), known.high_watermark.get())),
        Some(At::Timestamp(time)) => {
            let time = Timestamp::new(*time);
            let found = tokio::task::spawn_blocking(move || shard.offset_for_time(partition, time))
                .await
                .map_err(|_| errors::interrupted("looking up a time"))?
                .map_err(|error| errors::read(&error, &view.partition_name(partition)))?;
            match found {
                Some((offset, timestamp)) => {
                    OffsetAnswer { error: None, offset: offset.get(), timestamp: timestamp.get() }
                }
                None => at(known.high_watermark.get()),
            }
        }
    })
}

pub(crate) async fn init_producer(context: &Context) -> Result<InitProducerReply, Error> {
    context.room_to_write()?;
    let id = context.producer_ids.next().await?;
    Ok(InitProducerReply { producer_id: id.get(), producer_epoch: 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_shard_without_a_majority_is_no_reason_to_say_nothing_of_the_others() {
        let no_quorum = || Err(Error::new(ErrorCode::NoQuorum, "a majority does not answer"));
        assert_eq!(none_of(&[]), None);
        assert_eq!(none_of(&[no_quorum(), Ok(())]), None);
        let error = none_of(&[no_quorum(), no_quorum()]).and_then(Error::error_code);
        assert_eq!(error, Some(ErrorCode::NoQuorum));
    }
}
