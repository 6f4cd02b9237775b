//! What this broker can't answer by itself: it asks brokers that have a replica of the shard.
//!
//! ```text
//!   client <--- request ---> this broker <--- the same request, for these shards ---> a broker that holds them
//! ```
//!
//! Replication takes three brokers of a cluster, so where there are more, each lacks some shards. What a request changes is proposed at
//! the shard's leader ([`Shards::propose`](crate::shards::Shards::propose)) by the broker that was asked; what it reads of shards that
//! are not here is read where they are, and put together here. Only reads are sent on, so whatever gets lost can be asked again.
//! It is one hop: who is asked by another broker answers from what it has, for the shards that it was asked about, or says that it can't.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use prost::Message;
use tidemill_protocol::messages::{Error, Reply, Request, StreamOpen, reply, request, stream_open};
use tidemill_protocol::{BrokerId, ErrorCode, ShardId};
use tidemill_raft::Replica;
use tokio::time::Instant;

use crate::connection::{Caller, Hop};
use crate::context::Context;
use crate::errors;
use crate::peers::messages::Purpose;
use crate::peers::{Lane, first_answer};

/// How long one broker may take to answer before another is asked.
const ANSWER_PATIENCE: Duration = Duration::from_secs(5);
/// Brokers that are asked for the same, one after the other.
const ROUNDS_MAX: usize = 3;

/// What the first broker answers that keeps a shard and can: whoever leads it is asked first. `refused` is the error that an answer may
/// carry.
///
/// # Errors
/// Of the last one that was asked, where none answers.
pub(crate) async fn ask_a_holder<M: Message + Default>(
    context: &Context,
    shard: ShardId,
    question: Purpose,
    refused: impl Fn(&M) -> Option<&Error>,
) -> Result<M, Error> {
    let mut last = errors::not_on_this_broker(shard);
    let Some(peers) = &context.peers else { return Err(last) };
    for broker in context.connected_holders(shard) {
        last = match tokio::time::timeout(ANSWER_PATIENCE, peers.ask(broker, question.clone())).await {
            Ok(Ok(answer)) => match refused(&answer) {
                None => return Ok(answer),
                Some(error) => error.clone(),
            },
            Ok(Err(error)) => error.into(),
            Err(_) => Error::new(
                ErrorCode::NotLeader,
                format!("broker {broker} does not say what it was asked of shard {shard}; try again"),
            ),
        };
    }
    Err(last)
}

/// A request while it is answered: who asks, and until when.
pub(crate) struct Asking {
    pub(crate) context: Arc<Context>,
    pub(crate) caller: Caller,
    pub(crate) until: Instant,
}

/// Where a shard's state can be looked at.
pub(crate) enum Place {
    Here(Replica),
    /// At other brokers: see [`Asking::ask_one`].
    There,
}

/// Which brokers are asked about which shards.
pub(crate) type There = BTreeMap<BrokerId, BTreeSet<ShardId>>;

/// Shards by where they can be looked at.
#[derive(Default)]
pub(crate) struct Share {
    pub(crate) here: Vec<(ShardId, Replica)>,
    pub(crate) there: There,
    /// Those that can be looked at nowhere just now, and why.
    pub(crate) nowhere: BTreeMap<ShardId, Error>,
}

/// What several brokers said.
pub(crate) struct Answers {
    pub(crate) said: Vec<(BTreeSet<ShardId>, reply::Body)>,
    /// Shards about which nobody said anything, and why.
    pub(crate) failed: BTreeMap<ShardId, Error>,
}

impl Answers {
    /// Refuses to go on without a part.
    pub(crate) fn whole(self) -> Result<Vec<reply::Body>, Error> {
        match self.failed.into_values().next() {
            Some(error) => Err(error),
            None => Ok(self.said.into_iter().map(|(_, body)| body).collect()),
        }
    }
}

impl Asking {
    /// Where one shard can be looked at.
    ///
    /// # Errors
    /// It is not here, and another broker brought the request: it is not sent on.
    pub(crate) fn place(&self, shard: ShardId) -> Result<Place, Error> {
        match (self.context.shards.serving(shard), &self.caller.hop) {
            (Some(replica), _) => Ok(Place::Here(replica)),
            (None, Hop::Direct) => Ok(Place::There),
            (None, Hop::Forwarded { .. }) => Err(self.not_here(shard)),
        }
    }

    /// Divides shards by where they can be looked at. Of a request that another broker brought, only those that it asks about count.
    pub(crate) fn share(&self, shards: impl IntoIterator<Item = ShardId>) -> Share {
        let mut share = Share::default();
        let mut missing = BTreeSet::new();
        let asked: BTreeSet<ShardId> = shards.into_iter().filter(|shard| self.is_asked(*shard)).collect();
        for shard in asked {
            match self.place(shard) {
                Ok(Place::Here(replica)) => share.here.push((shard, replica)),
                Ok(Place::There) => _ = missing.insert(shard),
                Err(error) => _ = share.nowhere.insert(shard, error),
            }
        }
        let (there, nowhere) = self.holders(missing, &BTreeSet::new());
        share.there = there;
        share.nowhere.extend(nowhere);
        share
    }

    /// Whether a shard's part of the answer is wanted.
    pub(crate) fn is_asked(&self, shard: ShardId) -> bool {
        match &self.caller.hop {
            Hop::Forwarded { shards, .. } => shards.is_empty() || shards.contains(&shard),
            Hop::Direct => true,
        }
    }

    /// Asks about one shard that is not here.
    pub(crate) async fn ask_one(&self, shard: ShardId, body: request::Body) -> Result<reply::Body, Error> {
        let (there, mut nowhere) = self.holders(BTreeSet::from([shard]), &BTreeSet::new());
        if let Some(error) = nowhere.remove(&shard) {
            return Err(error);
        }
        let answers = self.ask_each(there, |_| body.clone()).await.whole()?;
        answers.into_iter().next().ok_or_else(|| self.nobody(shard))
    }

    /// Asks each of these brokers about its shards, all at once; where one does not answer, others that hold them.
    pub(crate) async fn ask_each(
        &self,
        there: There,
        body: impl Fn(&BTreeSet<ShardId>) -> request::Body,
    ) -> Answers {
        let mut answers = Answers { said: Vec::new(), failed: BTreeMap::new() };
        let (mut to_ask, mut avoided) = (there, BTreeSet::new());
        for round in 1..=ROUNDS_MAX {
            let asked = to_ask.into_iter().map(|(broker, shards)| {
                let body = body(&shards);
                async move { (broker, self.ask(broker, &shards, body).await, shards) }
            });
            let mut again = BTreeSet::new();
            for (broker, said, shards) in join_all(asked).await {
                match said {
                    Ok(body) => answers.said.push((shards, body)),
                    Err(error) => {
                        if is_of_that_broker(&error) {
                            avoided.insert(broker);
                            again.extend(shards.iter().copied());
                        }
                        answers.failed.extend(shards.into_iter().map(|shard| (shard, error.clone())));
                    }
                }
            }
            // Where nobody else holds a shard, what the last one said of it stands.
            (to_ask, _) = self.holders(again, &avoided);
            if to_ask.is_empty() || round == ROUNDS_MAX {
                break;
            }
            answers.failed.retain(|shard, _| !to_ask.values().any(|asked| asked.contains(shard)));
        }
        answers
    }

    /// Who is asked about these shards: whoever leads, else whoever else holds it and can be reached.
    fn holders(
        &self,
        shards: BTreeSet<ShardId>,
        avoided: &BTreeSet<BrokerId>,
    ) -> (There, BTreeMap<ShardId, Error>) {
        let connected = self.context.peers.as_ref().map(|peers| peers.connected()).unwrap_or_default();
        let is_good = |broker: &BrokerId| connected.contains(broker) && !avoided.contains(broker);
        let (mut there, mut nowhere) = (There::new(), BTreeMap::new());
        for shard in shards {
            match self.context.holders(shard).into_iter().find(is_good) {
                Some(broker) => _ = there.entry(broker).or_default().insert(shard),
                None => _ = nowhere.insert(shard, self.nobody(shard)),
            }
        }
        (there, nowhere)
    }

    async fn ask(
        &self,
        broker: BrokerId,
        shards: &BTreeSet<ShardId>,
        body: request::Body,
    ) -> Result<reply::Body, Error> {
        metrics::counter!("tidemill_forwarded_requests_total").increment(1);
        let left = self.until.saturating_duration_since(Instant::now()).min(ANSWER_PATIENCE);
        let deadline_ms = u32::try_from(left.as_millis()).unwrap_or(u32::MAX).max(1);
        let request = Request { deadline_ms, body: Some(body) };
        match tokio::time::timeout(left, self.exchange(broker, shards, request)).await {
            Ok(Ok(Reply { error: None, body: Some(body) })) => Ok(body),
            Ok(Ok(Reply { error: Some(error), .. })) => Err(error),
            Ok(Ok(Reply { error: None, body: None })) => {
                Err(Error::new(ErrorCode::Internal, format!("broker {broker} answered nothing")))
            }
            Ok(Err(reason)) => Err(unanswered(broker, &reason)),
            Err(_) => Err(unanswered(broker, &format!("no answer within {} ms", left.as_millis()))),
        }
    }

    async fn exchange(
        &self,
        broker: BrokerId,
        shards: &BTreeSet<ShardId>,
        request: Request,
    ) -> Result<Reply, String> {
        let peers = self.context.peers.as_ref().ok_or("this broker has no others")?;
        let open = self.caller.forward(&self.context, shards);
        let opened = peers.open_for_client(broker, Lane::Requests, open).await;
        let mut stream = opened.map_err(|error| error.reason)?;
        let open = StreamOpen { kind: Some(stream_open::Kind::Request(request)) };
        stream.writer.send(&open, &[]).await.map_err(|error| error.to_string())?;
        first_answer(&mut stream).await
    }

    fn not_here(&self, shard: ShardId) -> Error {
        let me = self.context.meta.broker_id;
        Error::new(
            ErrorCode::NotLeader,
            format!(
                "shard {shard} has no replica on broker {me}, to which the request was brought; try again"
            ),
        )
    }

    fn nobody(&self, shard: ShardId) -> Error {
        let holders = self.context.holders(shard);
        let named = holders.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        Error::new(
            ErrorCode::NotLeader,
            format!(
                "shard {shard} has no replica on this broker, and none of those that have one (brokers: {named}) can be reached from \
                 here; try again, or ask another broker"
            ),
        )
    }
}

/// Nothing but reads is sent on, so that nobody knows whether it arrived matters to nobody.
fn unanswered(broker: BrokerId, reason: &str) -> Error {
    Error::new(
        ErrorCode::NotLeader,
        format!("broker {broker}, which has the shard, does not answer: {reason}; try again"),
    )
}

/// Whether another broker may say otherwise.
fn is_of_that_broker(error: &Error) -> bool {
    matches!(
        error.error_code(),
        Some(
            ErrorCode::NotLeader
                | ErrorCode::NoQuorum
                | ErrorCode::ShuttingDown
                | ErrorCode::StorageFailed
                | ErrorCode::Overloaded
        )
    )
}

/// A reply of the kind that was asked for.
macro_rules! body_of {
    ($body:expr, $kind:ident) => {
        match $body {
            tidemill_protocol::messages::reply::Body::$kind(body) => Ok(body),
            _ => Err($crate::cluster::another_answer()),
        }
    };
}

pub(crate) use body_of;

/// A broker answered something else than it was asked.
pub(crate) fn another_answer() -> Error {
    Error::new(ErrorCode::Internal, "another broker answered something else than it was asked")
}
