use std::sync::Arc;

use tidemill_protocol::messages::{ListOffsetsRequest, OffsetQuery, Position as WirePosition, request};
use tidemill_protocol::{Offset, Timestamp, TopicPartition};

use super::body_of;
use crate::cluster::{Cluster, Repeat};
use crate::error::server_error;
use crate::{Client, RequestError, ServerError};

/// A place in a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Position {
    /// The first record that the log still has.
    Earliest,
    /// Behind the last record.
    Latest,
    /// This offset.
    Offset(Offset),
    /// The first record at or after this time.
    Time(Timestamp),
}

impl From<Position> for WirePosition {
    fn from(position: Position) -> Self {
        match position {
            Position::Earliest => Self::earliest(),
            Position::Latest => Self::latest(),
            Position::Offset(offset) => Self::offset(offset),
            Position::Time(at) => Self::timestamp(at),
        }
    }
}

/// Where a position is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OffsetAnswer {
    /// The offset.
    pub offset: Offset,
    /// Of the record there, where there is one.
    pub timestamp: Option<Timestamp>,
}

/// Offsets of positions. From [`Client::offsets`].
#[derive(Debug, Clone)]
pub struct Offsets {
    cluster: Arc<Cluster>,
}

impl Client {
    /// Offsets: where a time, the start or the end of a partition is.
    #[must_use]
    pub fn offsets(&self) -> Offsets {
        Offsets { cluster: Arc::clone(&self.cluster) }
    }
}

impl Offsets {
    /// Where the positions are, in the order in which they were asked for.
    ///
    /// # Errors
    /// No answer. A partition that is not there is an error of its own in the list.
    pub async fn find(
        &self,
        queries: &[(TopicPartition, Position)],
    ) -> Result<Vec<Result<OffsetAnswer, ServerError>>, RequestError> {
        let query = |(partition, position): &(TopicPartition, Position)| OffsetQuery {
            partition: Some((*partition).into()),
            position: Some((*position).into()),
        };
        let body =
            request::Body::ListOffsets(ListOffsetsRequest { queries: queries.iter().map(query).collect() });
        let reply = body_of!(self.cluster.call(body, Repeat::Freely).await?, ListOffsets)?;
        if reply.answers.len() != queries.len() {
            let (asked, answered) = (queries.len(), reply.answers.len());
            return Err(RequestError::BadAnswer(format!("{answered} answers to {asked} positions")));
        }
        let answers = reply.answers.into_iter().map(|answer| {
            server_error(answer.error)?;
            let timestamp = (answer.timestamp >= 0).then(|| Timestamp::new(answer.timestamp));
            Ok(OffsetAnswer { offset: Offset::new(answer.offset), timestamp })
        });
        Ok(answers.collect())
    }
}
