use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tidemill_protocol::messages::{InitProducerRequest, reply, request};
use tidemill_protocol::record_batch::ProducerFields;
use tidemill_protocol::{ErrorCode, Offset, ProducerEpoch, ProducerId, Sequence};
use tokio::time::{Instant, Sleep};

use super::completion::{Completion, Placed};
use super::in_flight::{Identity, InFlight, Numbering};
use super::lane::{Lane, ReadyBatch, Target};
use super::shared::Shared;
use super::{Acks, DeliveryError};
use crate::backoff::Backoff;
use crate::cluster::{Cluster, Lead, Repeat, is_of_this_broker};
use crate::timer::sleep_until;
use crate::{RequestError, ServerError};

/// Sends the batches of one lane, in order, over one stream after another.
pub(super) struct LaneTask {
    pub(super) shared: Arc<Shared>,
    pub(super) cluster: Arc<Cluster>,
    pub(super) lane: Arc<Lane>,
    pub(super) in_flight: VecDeque<InFlight>,
    pub(super) numbering: Numbering,
    /// Rises with each stream of an identity, so that the broker drops what still comes over older ones.
    pub(super) generation: u64,
    /// Something in flight is refused: nothing new goes out before all answers are in and the rest is renumbered.
    pub(super) draining: bool,
    /// A batch of this identity was given up, and none behind it was stored yet: those may be refused for the gap.
    pub(super) has_gap: bool,
    pub(super) last_problem: Option<String>,
    /// What was known of the partition's leader when a stream was last tried.
    pub(super) tried: Option<Lead>,
    /// Times in a row that a broker did not know the producer's id.
    pub(super) unknown_opens: u32,
}

/// How a stream came to its end.
pub(super) enum StreamEnd {
    /// Open another after a pause.
    Retry(String),
    /// The connection broke: open another stream elsewhere, at once where that has not been tried yet.
    Lost(String),
    /// The stream belongs over another broker now.
    Moved,
    /// What is in flight must be numbered anew under another identity.
    Renumber,
    /// No use in trying again.
    Fatal(DeliveryError),
    /// Everything was sent, and the broker has ended the stream.
    Finished,
    /// The producer was closed.
    Stopped,
}

impl LaneTask {
    pub(super) fn new(shared: Arc<Shared>, cluster: Arc<Cluster>, lane: Arc<Lane>) -> Self {
        let mut numbering = Numbering::default();
        numbering.begin(shared.identity);
        Self {
            shared,
            cluster,
            lane,
            in_flight: VecDeque::new(),
            numbering,
            generation: 0,
            draining: false,
            has_gap: false,
            last_problem: None,
            tried: None,
            unknown_opens: 0,
        }
    }

    pub(super) async fn run(mut self) {
        let end = self.serve().await;
        let error = match end {
            StreamEnd::Fatal(error) => error,
            _ => DeliveryError::Closed,
        };
        for waiting in self.lane.stop(error.clone()) {
            self.settle(&waiting.completion, waiting.buffered_bytes, Err(error.clone()));
        }
        while let Some(batch) = self.in_flight.pop_front() {
            self.settle(&batch.completion, batch.buffered_bytes, Err(error.clone()));
        }
        self.nothing_to_end();
    }

    /// One stream after another, until there is no use in a further one.
    async fn serve(&mut self) -> StreamEnd {
        let mut backoff = self.cluster.backoff();
        loop {
            if self.in_flight.is_empty() {
                self.nothing_to_end();
            }
            if !self.has_work() {
                let stopped = self.shared.stopped.clone();
                tokio::select! {
                    () = stopped.cancelled() => return StreamEnd::Stopped,
                    () = self.lane.wake.notified() => {}
                }
                continue;
            }
            match self.stream(&mut backoff).await {
                StreamEnd::Retry(reason) => {
                    self.trouble(reason);
                    if let Err(end) = self.pause(&mut backoff).await {
                        return end;
                    }
                }
                StreamEnd::Lost(reason) => {
                    self.trouble(reason);
                    self.cluster.wants_news();
                    let is_first = backoff.is_fresh();
                    let pause = backoff.pause();
                    if !is_first && let Err(end) = self.pause_for(pause, &mut backoff).await {
                        return end;
                    }
                }
                StreamEnd::Finished | StreamEnd::Moved => {}
                StreamEnd::Renumber => match self.renumber(&mut backoff).await {
                    Ok(()) => {}
                    Err(end) => return end,
                },
                end => return end,
            }
        }
    }

    fn has_work(&self) -> bool {
        !self.in_flight.is_empty() || self.lane.oldest().is_some()
    }

    fn trouble(&mut self, reason: String) {
        tracing::debug!(topic = %self.shared.topic.name, target = ?self.lane.target, reason, "produce stream");
        self.cluster.is_troubled(&reason);
        self.last_problem = Some(reason);
        self.give_up_unrepeatable();
    }

    async fn pause(&mut self, backoff: &mut Backoff) -> Result<(), StreamEnd> {
        let pause = backoff.pause();
        self.pause_for(pause, backoff).await
    }

    /// Pauses until it is worth trying again: the time is over, or something else is known of the partition's leader.
    async fn pause_for(&mut self, pause: Duration, backoff: &mut Backoff) -> Result<(), StreamEnd> {
        let (cluster, topic) = (Arc::clone(&self.cluster), Arc::clone(&self.shared.topic));
        let (target, tried) = (self.lane.target, self.tried);
        let waiting = async move {
            let news = async {
                match target {
                    Target::Partition(partition) => {
                        cluster.other_lead(&topic.name, topic.id, partition, tried).await;
                    }
                    Target::Routed => std::future::pending().await,
                }
            };
            tokio::time::timeout(pause, news).await.is_ok()
        };
        if self.patiently(waiting).await? {
            backoff.reset();
        }
        Ok(())
    }

    /// Waits for `future`, while batches whose time is up are given up.
    pub(super) async fn patiently<T>(&mut self, future: impl Future<Output = T>) -> Result<T, StreamEnd> {
        let stopped = self.shared.stopped.clone();
        let mut future = std::pin::pin!(future);
        loop {
            let deadline = self.next_deadline();
            tokio::select! {
                biased;
                () = stopped.cancelled() => return Err(StreamEnd::Stopped),
                output = &mut future => return Ok(output),
                () = sleep_until(deadline) => self.expire(),
            }
        }
    }

    /// When the oldest batch must be given up.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let oldest = match self.in_flight.front() {
            Some(batch) => Some(batch.opened),
            None => self.lane.oldest().map(|(opened, _)| opened),
        };
        oldest.map(|opened| opened + self.shared.options.delivery_timeout)
    }

    /// Gives up what has waited for too long.
    pub(super) fn expire(&mut self) {
        let after = self.shared.options.delivery_timeout;
        let Some(horizon) = Instant::now().checked_sub(after) else { return };
        while let Some(batch) = self.in_flight.pop_front_if(|batch| batch.opened <= horizon) {
            // Its sequences stay used: the broker will refuse what follows unless it has stored this.
            self.has_gap = true;
            let sent = batch.attempts > 0 && !batch.refused;
            let error = DeliveryError::TimedOut { after, sent, last: self.last_problem.clone() };
            self.settle(&batch.completion, batch.buffered_bytes, Err(error));
        }
        if self.in_flight.is_empty() {
            while let Some(waiting) = self.lane.take_expired(horizon) {
                let error = DeliveryError::TimedOut { after, sent: false, last: self.last_problem.clone() };
                self.settle(&waiting.completion, waiting.buffered_bytes, Err(error));
            }
        }
    }

    /// A batch has its outcome.
    pub(super) fn settle(
        &self,
        completion: &Arc<Completion>,
        buffered_bytes: usize,
        outcome: Result<Placed, DeliveryError>,
    ) {
        self.lane.settle(&self.shared, completion, buffered_bytes, outcome);
    }

    /// Without acknowledgements nothing is sent twice.
    fn give_up_unrepeatable(&mut self) {
        if self.shared.options.acks == Acks::None {
            while let Some(batch) = self.in_flight.pop_front() {
                self.settle(&batch.completion, batch.buffered_bytes, Err(DeliveryError::Lost));
            }
        }
    }

    /// Begins anew under another identity, with what is left.
    async fn renumber(&mut self, backoff: &mut Backoff) -> Result<(), StreamEnd> {
        // Bounds the rounds where every identity is refused at once.
        self.pause(backoff).await?;
        let cluster = Arc::clone(&self.cluster);
        let identity = loop {
            match self.patiently(new_identity(&cluster)).await? {
                Ok(identity) => break identity,
                Err(error) => {
                    self.last_problem = Some(error.to_string());
                    self.pause(backoff).await?;
                }
            }
        };
        tracing::info!(topic = %self.shared.topic.name, target = ?self.lane.target, "producing under a new identity");
        self.numbering.begin(Some(identity));
        self.numbering.renumber(&mut self.in_flight);
        self.generation = 0;
        self.draining = false;
        self.has_gap = false;
        Ok(())
    }

    /// Numbers a batch and takes it into flight.
    pub(super) fn admit(&mut self, ready: ReadyBatch) {
        let batch = self.numbering.admit(ready);
        self.in_flight.push_back(batch);
    }

    /// The broker has stored the batch at `index`.
    pub(super) fn stored(&mut self, index: usize, placed: Placed) {
        // What was given up without a new identity to follow was older than all in flight: it was stored, too, or this would not be.
        self.has_gap &= self.draining;
        self.end(index, Ok(placed));
    }

    /// What to do where the broker refuses the batch at `index`, having stored of it what `placed` says.
    pub(super) fn refused(&mut self, index: usize, error: ServerError, placed: Placed) -> Option<StreamEnd> {
        let code = error.error_code();
        if code == Some(ErrorCode::ProducerFenced) {
            return Some(StreamEnd::Fatal(DeliveryError::Fenced));
        }
        let is_idempotent = self.numbering.identity.is_some();
        let batch = self.in_flight.get_mut(index)?;
        let is_sequence_error =
            matches!(code, Some(ErrorCode::OutOfOrderSequence | ErrorCode::UnknownProducer));
        let is_first_attempt = batch.attempts <= 1;
        if is_idempotent && code == Some(ErrorCode::UnknownProducer) && !is_first_attempt {
            // What the broker forgot it can't tell from what it never had.
            self.give_up(index, DeliveryError::Unknown(error));
            return None;
        }
        // A broker remembers the results of as many batches as may be in flight, so a batch that it had stored would
        // have been a duplicate: a gap before it says that it is not stored. Where nothing was given up and it may come again, it has only
        // overtaken what is before it.
        if is_idempotent && is_sequence_error && (self.has_gap || (is_first_attempt && !error.retriable)) {
            if self.lane.target == Target::Routed && !is_first_attempt {
                // An earlier attempt may still be under way from a broker to the shards, and with it that at the batch which is missing:
                // both would be stored after all. Whoever leads a partition, instead, takes nothing more from a stream once a newer
                // one is open.
                self.give_up(index, DeliveryError::Unknown(error));
                return None;
            }
            batch.refused = true;
            self.draining = true;
            return None;
        }
        // A batch that is missing before this one comes again with it, unless it was given up: then what is stored stays alone.
        let stays_alone = code == Some(ErrorCode::PartlyStored) && self.has_gap;
        if error.retriable && !stays_alone {
            if is_of_this_broker(&error) {
                self.cluster.wants_news();
            }
            return Some(StreamEnd::Retry(error.to_string()));
        }
        // Only the shard knows its earlier attempts: these are its answers, every other one says nothing of them.
        let knows_earlier = matches!(
            code,
            Some(ErrorCode::RecordsRejected | ErrorCode::PartlyStored | ErrorCode::UnknownTopic)
        );
        if !is_first_attempt && !knows_earlier {
            self.give_up(index, DeliveryError::Unknown(error));
            return None;
        }
        match (code, placed) {
            (Some(ErrorCode::PartlyStored), Placed::Routed { placements }) => {
                self.give_up(index, DeliveryError::PartlyStored { placements, error });
            }
            // A plugin's refusal uses its sequences; every other one leaves a gap.
            (Some(ErrorCode::RecordsRejected), _) => self.end(index, Err(DeliveryError::Refused(error))),
            _ => self.give_up(index, DeliveryError::Refused(error)),
        }
        None
    }

    /// The broker knows nothing of this identity: what was sent and got no answer may be stored, the rest is not.
    pub(super) fn forgotten(&mut self, error: &ServerError) {
        while let Some(index) = self.in_flight.iter().position(|batch| batch.attempts > 0 && !batch.refused) {
            self.give_up(index, DeliveryError::Unknown(error.clone()));
        }
        for batch in &mut self.in_flight {
            batch.refused = true;
        }
        self.draining = true;
    }

    /// Fails a batch that leaves a gap in this identity's sequences.
    fn give_up(&mut self, index: usize, error: DeliveryError) {
        if self.numbering.identity.is_some() {
            self.has_gap = true;
            self.draining = true;
        }
        self.end(index, Err(error));
    }

    fn end(&mut self, index: usize, outcome: Result<Placed, DeliveryError>) {
        if let Some(batch) = self.in_flight.remove(index) {
            self.settle(&batch.completion, batch.buffered_bytes, outcome);
        }
    }
}

/// A producer id that nobody else has.
pub(super) async fn new_identity(cluster: &Arc<Cluster>) -> Result<Identity, RequestError> {
    let body = request::Body::InitProducer(InitProducerRequest {});
    let reply::Body::InitProducer(reply) = cluster.call(body, Repeat::Freely).await? else {
        return Err(RequestError::BadAnswer("expected a producer id".to_owned()));
    };
    let epoch = i16::try_from(reply.producer_epoch)
        .map_err(|_| RequestError::BadAnswer(format!("a producer epoch of {}", reply.producer_epoch)))?;
    if reply.producer_id < 0 || epoch < 0 {
        return Err(RequestError::BadAnswer(format!("a producer id of {}", reply.producer_id)));
    }
    let fields = ProducerFields {
        id: ProducerId::new(reply.producer_id),
        epoch: ProducerEpoch::new(epoch),
        base_sequence: Sequence::new(0),
    };
    Ok(Identity { fields })
}

/// A timer for whatever comes first. It may ring early: one that is due later than the last is left as it was, because setting it
/// costs more than looking once in vain.
#[derive(Default)]
pub(super) struct Alarm(Option<Pin<Box<Sleep>>>);

impl Alarm {
    pub(super) fn set(&mut self, due: Option<Instant>) {
        let Some(due) = due else { return };
        match &mut self.0 {
            Some(sleep) if sleep.deadline() <= due => {}
            Some(sleep) => sleep.as_mut().reset(due),
            None => self.0 = Some(Box::pin(tokio::time::sleep_until(due))),
        }
    }

    /// Cancel-safe.
    pub(super) async fn rings(&mut self) {
        match &mut self.0 {
            Some(sleep) => sleep.await,
            None => std::future::pending().await,
        }
        self.0 = None;
    }
}

/// Stands in for the network and the broker: takes batches as a stream would and acknowledges at once. Batches go
/// when they are full, lingered or flushed.
pub(super) async fn run_sink(shared: Arc<Shared>, lane: Arc<Lane>) {
    let mut numbering = Numbering::default();
    numbering.begin(shared.identity);
    let mut next_offset = Offset::ZERO;
    loop {
        let lingered = Instant::now().checked_sub(shared.options.linger);
        if let Some(ready) = lane.take(lingered) {
            let batch = numbering.admit(ready);
            let base_offset = next_offset;
            next_offset = next_offset.plus(u64::from(batch.batch.header().record_count()));
            let partition = match lane.target {
                Target::Partition(partition) => partition,
                Target::Routed => Default::default(),
            };
            let placed = Placed::At { partition, base_offset, log_append_time: None };
            lane.settle(&shared, &batch.completion, batch.buffered_bytes, Ok(placed));
            continue;
        }
        if finish_ends(&lane) {
            continue;
        }
        let due = lane.oldest().map(|(opened, _)| opened + shared.options.linger);
        tokio::select! {
            biased;
            () = shared.stopped.cancelled() => break,
            () = lane.wake.notified() => {}
            () = sleep_until(due) => {}
        }
    }
    for waiting in lane.stop(DeliveryError::Closed) {
        lane.settle(&shared, &waiting.completion, waiting.buffered_bytes, Err(DeliveryError::Closed));
    }
    finish_ends(&lane);
}

/// A sink has no stream: what it took has arrived. Answers whether anybody waited for that.
fn finish_ends(lane: &Lane) -> bool {
    let ends = lane.take_ends();
    ends.iter().for_each(|end| end.complete(Ok(Placed::Sent)));
    !ends.is_empty()
}
