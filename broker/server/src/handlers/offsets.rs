//! Offsets by position, and producer ids.

use std::sync::Arc;

use tidemill_protocol::messages::{
    Error, InitProducerReply, ListOffsetsReply, ListOffsetsRequest, OffsetAnswer, OffsetQuery, position::At,
};
use tidemill_protocol::{ErrorCode, Timestamp};

use crate::context::Context;
use crate::errors;
use crate::handlers::topics;

const QUERIES_MAX: usize = 100_000;

pub(crate) async fn list(
    context: &Arc<Context>,
    request: &ListOffsetsRequest,
) -> Result<ListOffsetsReply, Error> {
    if request.queries.len() > QUERIES_MAX {
        return Err(Error::new(
            ErrorCode::BadMessage,
            format!("at most {QUERIES_MAX} queries in one request"),
        ));
    }
    let view = context.view.now();
    let (of_end, others): (Vec<_>, Vec<_>) = request.queries.iter().partition(|query| asks_for_end(query));
    let shard = |query: &OffsetQuery| view.shard_of(query.partition.as_ref()?.parse()?);
    context.confirm(of_end.into_iter().filter_map(shard)).await?;
    context.settle(others.into_iter().filter_map(shard)).await?;
    let mut answers = Vec::with_capacity(request.queries.len());
    for query in &request.queries {
        answers.push(match find(context, query).await {
            Ok((offset, timestamp)) => OffsetAnswer { error: None, offset, timestamp },
            Err(error) => OffsetAnswer { error: Some(error), offset: -1, timestamp: -1 },
        });
    }
    Ok(ListOffsetsReply { answers })
}

/// Whether the answer may be the end: it must not be what a leader shows that was deposed and does not know it.
fn asks_for_end(query: &OffsetQuery) -> bool {
    let at = query.position.as_ref().and_then(|position| position.at.as_ref());
    !matches!(at, Some(At::Earliest(_)))
}

/// The offset, and the timestamp of the record there where it was looked up by time.
async fn find(context: &Arc<Context>, query: &OffsetQuery) -> Result<(i64, i64), Error> {
    let partition = topics::partition(query.partition.as_ref())?;
    let view = context.view.now();
    let (_, replica) = context.find(&view, partition)?;
    let shard = replica.shard().clone();
    let known =
        shard.partition(partition).ok_or_else(|| errors::not_ready(view.partition_name(partition)))?;
    match query.position.as_ref().and_then(|position| position.at.as_ref()) {
        Some(At::Earliest(_)) => Ok((known.log_start.get(), -1)),
        None | Some(At::Latest(_)) => Ok((known.high_watermark.get(), -1)),
        Some(At::Offset(offset)) => {
            let offset = (*offset).clamp(known.log_start.get(), known.high_watermark.get());
            Ok((offset, -1))
        }
        Some(At::Timestamp(time)) => {
            let time = Timestamp::new(*time);
            let found = tokio::task::spawn_blocking(move || shard.offset_for_time(partition, time))
                .await
                .map_err(|_| errors::interrupted("looking up a time"))?
                .map_err(|error| errors::read(&error, &view.partition_name(partition)))?;
            Ok(found.map_or((known.high_watermark.get(), -1), |(offset, timestamp)| {
                (offset.get(), timestamp.get())
            }))
        }
    }
}

pub(crate) async fn init_producer(context: &Context) -> Result<InitProducerReply, Error> {
    context.room_to_write()?;
    let id = context.producer_ids.next().await?;
    Ok(InitProducerReply { producer_id: id.get(), producer_epoch: 0 })
}
