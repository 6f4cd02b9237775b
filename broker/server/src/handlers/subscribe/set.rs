//! The task that owns a subscription's partitions.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use tidemill_net::{FrameWriter, WriteError};
use tidemill_protocol::messages::{
    Error, SubscribeAdd, SubscribeData, SubscribeEvent, SubscribeFailed, SubscribeProgress, SubscribeSeek,
    SubscribeStarted, subscribe_control, subscribe_event,
};
use tidemill_protocol::{ErrorCode, TopicPartition};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::Control;
use super::branches::{Branches, News, Told};
use super::filtering::Filtering;
use super::finder::{Finder, Found};
use super::gathering::{Gathered, gather};
use super::lookups::Lookups;
use super::partition::{Needed, Opening, Subscribed, Terms};
use super::places::{Place, Places};
use crate::connection::Caller;
use crate::context::Context;
use crate::errors;
use crate::handlers::topics;
use crate::refusals::{self, Refused};

/// Payload of one data frame where the client names no size.
const FRAME_BYTES_DEFAULT: u32 = 1 << 20;
/// And the range in which it may name one.
const FRAME_BYTES: std::ops::RangeInclusive<u32> = 4 << 10..=4 << 20;

/// What a partition's waiters wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Woken {
    /// There are more records.
    More,
    /// Its topic was deleted.
    Gone,
    /// Its replica here has stopped while others go on, or has ended.
    LeftBehind,
    /// It is the subscription's no more.
    Removed,
}

/// Partitions by the client's id, and whose turn it is.
pub(super) struct SubscriptionSet {
    context: Arc<Context>,
    caller: Caller,
    writer: FrameWriter,
    filtering: Filtering,
    frame_bytes: usize,
    /// Partitions that are not here.
    branches: Branches,
    /// Of the connection: all its subscriptions take from them.
    places: Places,
    partitions: HashMap<u32, Subscribed>,
    /// Those that were added and have not begun.
    opening: HashMap<u32, Opening>,
    finder: Arc<Finder>,
    /// Where partitions begin or go on, being looked up.
    lookups: Lookups<Result<Found, Error>>,
    /// Those that may have something to send, in turn.
    queue: VecDeque<u32>,
    /// Each waits for its replica's end, and those at their end for more.
    waiters: FuturesUnordered<BoxFuture<'static, (u32, Woken)>>,
}

impl SubscriptionSet {
    pub(super) fn new(
        context: Arc<Context>,
        caller: Caller,
        writer: FrameWriter,
        filtering: Filtering,
        branches: Branches,
        places: Places,
        frame_bytes_max: u32,
    ) -> Self {
        let frame_bytes = match frame_bytes_max {
            0 => FRAME_BYTES_DEFAULT,
            asked => asked.clamp(*FRAME_BYTES.start(), *FRAME_BYTES.end()),
        };
        let finder = Arc::new(Finder::new(Arc::clone(&context)));
        Self {
            context,
            caller,
            writer,
            filtering,
            branches,
            places,
            frame_bytes: usize::try_from(frame_bytes).unwrap_or(usize::MAX),
            partitions: HashMap::new(),
            opening: HashMap::new(),
            finder,
            lookups: Lookups::new(),
            queue: VecDeque::new(),
            waiters: FuturesUnordered::new(),
        }
    }

    /// Runs until the client ends the stream, then gives the writer back; `None` where the client can't be written to.
    pub(super) async fn run(mut self, mut controls: mpsc::Receiver<Control>) -> Option<FrameWriter> {
        loop {
            let turn = if self.queue.is_empty() {
                tokio::select! {
                    control = controls.recv() => match control {
                        Some(control) => self.control(control).await,
                        None if self.lookups.is_empty() => break,
                        // What was asked for before is answered.
                        None => {
                            let (id, found) = self.lookups.next().await;
                            self.found(id, found).await
                        }
                    },
                    (id, found) = self.lookups.next() => self.found(id, found).await,
                    Some((id, woken)) = self.waiters.next(), if !self.waiters.is_empty() => {
                        self.woken(id, woken).await
                    }
                    Some(news) = self.branches.next() => self.pass_on(news).await,
                }
            } else {
                self.serve_next(&mut controls).await
            };
            if turn.is_err() {
                return None;
            }
        }
        Some(self.writer)
    }

    /// Takes in what came meanwhile, then sends one frame of the partition whose turn it is.
    async fn serve_next(&mut self, controls: &mut mpsc::Receiver<Control>) -> Result<(), WriteError> {
        while let Ok(control) = controls.try_recv() {
            self.control(control).await?;
        }
        while let Some((id, found)) = self.lookups.try_next() {
            self.found(id, found).await?;
        }
        while let Some(Some((id, woken))) = self.waiters.next().now_or_never() {
            self.woken(id, woken).await?;
        }
        if let Some(news) = self.branches.try_next() {
            self.pass_on(news).await?;
        }
        let Some(id) = self.queue.pop_front() else { return Ok(()) };
        if let Some(partition) = self.partitions.get_mut(&id) {
            partition.queued = false;
            self.send_some(id).await?;
            self.schedule(id);
        }
        Ok(())
    }

    async fn control(&mut self, (control, asked): Control) -> Result<(), WriteError> {
        if let Some(id) = id_of(&control).filter(|id| self.branches.serves(*id)) {
            let told = self.branches.tell(id, control);
            return self.tell(told).await;
        }
        match control {
            subscribe_control::Kind::Add(add) => self.add(add, asked).await,
            subscribe_control::Kind::Remove(remove) => {
                self.forget(remove.id);
                Ok(())
            }
            subscribe_control::Kind::Seek(seek) => {
                self.seek(seek, asked);
                Ok(())
            }
            subscribe_control::Kind::Pause(pause) => {
                if let Some(terms) = self.terms(pause.id) {
                    terms.paused = pause.paused;
                }
                self.schedule(pause.id);
                Ok(())
            }
            subscribe_control::Kind::Credit(credit) => {
                let credit_max = credit_max(&self.context);
                if let Some(terms) = self.terms(credit.id) {
                    let more = i64::try_from(credit.bytes).unwrap_or(i64::MAX);
                    terms.credit = terms.credit.saturating_add(more).min(credit_max);
                }
                self.schedule(credit.id);
                Ok(())
            }
        }
    }

    /// What the client has said of a partition, whether it has begun or not.
    fn terms(&mut self, id: u32) -> Option<&mut Terms> {
        match self.partitions.get_mut(&id) {
            Some(partition) => Some(&mut partition.terms),
            None => self.opening.get_mut(&id).map(|opening| &mut opening.terms),
        }
    }

    async fn add(&mut self, add: SubscribeAdd, asked: Instant) -> Result<(), WriteError> {
        let id = add.id;
        let (partition, place) = match self.admit(&add) {
            Ok(admitted) => admitted,
            Err(error) => return self.fail(id, 0, error).await,
        };
        if let Some(broker) = self.branches.broker_of(partition) {
            let told = self.branches.add(broker, add, place);
            return self.tell(told).await;
        }
        let credit = i64::try_from(add.credit_bytes).unwrap_or(i64::MAX).min(credit_max(&self.context));
        let terms = Terms { generation: 0, credit, paused: add.paused };
        self.opening.insert(id, Opening { partition, terms, place });
        let (floor, exact_end) = (add.floor_offset, add.exact_end);
        self.look_up(id, Needed { position: add.start, floor, exact_end, asked });
        Ok(())
    }

    /// The partition that a client wants to add, where it may, and its place among those of the connection.
    fn admit(&self, add: &SubscribeAdd) -> Result<(TopicPartition, Place), Error> {
        let id = add.id;
        if self.partitions.contains_key(&id) || self.opening.contains_key(&id) || self.branches.serves(id) {
            return Err(Error::new(ErrorCode::BadMessage, format!("id {id} is in use on this stream")));
        }
        let limit = partitions_max(&self.context);
        if self.partitions.len() + self.opening.len() + self.branches.len() >= limit {
            return Err(Error::new(
                ErrorCode::Overloaded,
                format!("a subscription holds at most {limit} partitions; open another"),
            ));
        }
        Ok((topics::partition(add.partition.as_ref())?, self.places.take()?))
    }

    fn seek(&mut self, seek: SubscribeSeek, asked: Instant) {
        let Some(terms) = self.terms(seek.id) else { return };
        terms.generation = seek.generation;
        let (floor, exact_end) = (seek.floor_offset, seek.exact_end);
        self.look_up(seek.id, Needed { position: seek.start, floor, exact_end, asked });
    }

    /// Begins to look up where a partition begins or goes on. What was being looked up of it before counts no more.
    fn look_up(&mut self, id: u32, needed: Needed) {
        let finder = Arc::clone(&self.finder);
        if let Some(partition) = self.partitions.get_mut(&id) {
            partition.seeking = true;
            let (place, node, shard) = (partition.partition, partition.end.node(), partition.shard.clone());
            self.lookups.begin(id, async move { finder.seek(place, (node, &shard), &needed).await });
        } else if let Some(opening) = self.opening.get(&id) {
            let place = opening.partition;
            self.lookups.begin(id, async move { finder.open(place, &needed).await });
        }
    }

    /// Tells the client where a partition begins or goes on, and serves it from there.
    async fn found(&mut self, id: u32, found: Result<Found, Error>) -> Result<(), WriteError> {
        match found {
            Ok(Found::Source(source)) => {
                let Some(opening) = self.opening.remove(&id) else { return Ok(()) };
                let partition = Subscribed::new(source, opening.terms, opening.place);
                self.await_end(id, &partition);
                self.partitions.insert(id, partition);
            }
            Ok(Found::Offset(next)) => {
                let Some(partition) = self.partitions.get_mut(&id) else { return Ok(()) };
                partition.next = next;
                partition.seeking = false;
                // Another shard may have taken the place of the one that was looked at last.
                partition.high_watermark.follow();
            }
            Err(error) => {
                let generation = self.terms(id).map_or(0, |terms| terms.generation);
                return self.fail(id, generation, error).await;
            }
        }
        let Some(partition) = self.partitions.get(&id) else { return Ok(()) };
        let started = started(id, partition);
        self.send(subscribe_event::Kind::Started(started), &[]).await?;
        self.schedule(id);
        Ok(())
    }

    /// A partition is the subscription's no more.
    fn forget(&mut self, id: u32) {
        self.lookups.end(id);
        self.opening.remove(&id);
        // Under the same id another may be added: it has one place in the queue, its own.
        if self.partitions.remove(&id).is_some_and(|partition| partition.queued) {
            self.queue.retain(|queued| *queued != id);
        }
    }

    async fn pass_on(&mut self, news: News) -> Result<(), WriteError> {
        let told = self.branches.told(news);
        self.tell(told).await
    }

    async fn tell(&mut self, told: Told) -> Result<(), WriteError> {
        match told {
            Told::Frame(frame) => {
                self.writer.feed_raw(&frame)?;
                self.writer.flush().await
            }
            Told::Failed(failed, error) => {
                for (id, generation) in failed {
                    self.fail(id, generation, error.clone()).await?;
                }
                Ok(())
            }
            Told::Nothing => Ok(()),
        }
    }

    /// Whether a partition may send or not, its client is to hear when the replica that it is read from has ended. One that has stopped and
    /// is here still shows what it had: of that the end of what it has tells.
    fn await_end(&self, id: u32, partition: &Subscribed) {
        let (removed, shard) = (partition.removed.token(), partition.shard.clone());
        self.waiters.push(Box::pin(async move {
            tokio::select! {
                biased;
                // First: its id may be another's by now.
                () = removed.cancelled() => (id, Woken::Removed),
                () = shard.ended() => (id, Woken::LeftBehind),
            }
        }));
    }

    /// Queues a partition that has something to send, or lets it wait for more.
    fn schedule(&mut self, id: u32) {
        let Some(partition) = self.partitions.get_mut(&id) else { return };
        if !partition.may_send() || partition.queued {
            return;
        }
        // Where it is gone, waiting tells.
        partition.high_watermark.follow();
        if !partition.at_end() {
            partition.queued = true;
            self.queue.push_back(id);
        } else if !partition.waiting {
            partition.waiting = true;
            let (mut high_watermark, next) = (partition.high_watermark.clone(), partition.next);
            // Without this, adding and removing partitions at their end would pile up waiters.
            let removed = partition.removed.token();
            let end = partition.end.clone();
            self.waiters.push(Box::pin(async move {
                tokio::select! {
                    biased;
                    // First: its id may be another's by now.
                    () = removed.cancelled() => (id, Woken::Removed),
                    more = high_watermark.reaches(next) => (id, if more { Woken::More } else { Woken::Gone }),
                    () = end.left_behind() => (id, Woken::LeftBehind),
                }
            }));
        }
    }

    async fn woken(&mut self, id: u32, woken: Woken) -> Result<(), WriteError> {
        let Some(partition) = self.partitions.get_mut(&id) else { return Ok(()) };
        if woken == Woken::Removed {
            // The id is another partition's by now.
            return Ok(());
        }
        partition.waiting = false;
        if woken == Woken::More {
            self.schedule(id);
            return Ok(());
        }
        let generation = partition.terms.generation;
        let name = self.context.view.now().partition_name(partition.partition);
        let error = match woken {
            Woken::LeftBehind => errors::left_behind(&name),
            _ => errors::deleted(&name),
        };
        self.fail(id, generation, error).await
    }

    async fn send_some(&mut self, id: u32) -> Result<(), WriteError> {
        let Some(partition) = self.partitions.get(&id) else { return Ok(()) };
        if !partition.may_send() {
            return Ok(());
        }
        let generation = partition.terms.generation;
        match gather(&self.context, &self.filtering, self.frame_bytes, partition).await {
            Ok(Some(gathered)) => self.push(id, gathered).await,
            Ok(None) => Ok(()),
            Err(error) => self.fail(id, generation, error).await,
        }
    }

    async fn push(&mut self, id: u32, gathered: Gathered) -> Result<(), WriteError> {
        let Some(partition) = self.partitions.get_mut(&id) else { return Ok(()) };
        partition.next = gathered.next;
        partition.terms.credit -= i64::try_from(gathered.bytes).unwrap_or(i64::MAX);
        let generation = partition.terms.generation;
        let high_watermark = partition.high_watermark.get().get();
        let (next_offset, bytes_scanned) = (gathered.next.get(), gathered.scanned as u64);
        metrics::counter!("tidemill_subscribe_scanned_bytes_total").increment(bytes_scanned);
        metrics::counter!("tidemill_subscribe_sent_bytes_total").increment(gathered.bytes as u64);
        if gathered.parts.is_empty() {
            let progress = SubscribeProgress { id, generation, next_offset, high_watermark, bytes_scanned };
            return self.send(subscribe_event::Kind::Progress(progress), &[]).await;
        }
        let data = SubscribeData { id, generation, next_offset, high_watermark, bytes_scanned };
        self.send(subscribe_event::Kind::Data(data), &gathered.parts).await
    }

    async fn fail(&mut self, id: u32, generation: u64, error: Error) -> Result<(), WriteError> {
        self.forget(id);
        metrics::counter!("tidemill_subscribe_failed_total", "code" => refusals::code(&error)).increment(1);
        refusals::note(Refused::Subscription, &self.caller, &error);
        let failed = SubscribeFailed { id, generation, error: Some(error) };
        self.send(subscribe_event::Kind::Failed(failed), &[]).await
    }

    async fn send(&mut self, kind: subscribe_event::Kind, payload: &[Bytes]) -> Result<(), WriteError> {
        self.writer.send(&SubscribeEvent { kind: Some(kind) }, payload).await
    }
}

fn credit_max(context: &Context) -> i64 {
    i64::try_from(context.config.limits.subscription_credit_bytes_max).unwrap_or(i64::MAX)
}

/// The partition that a message is about, if it was added before.
const fn id_of(control: &subscribe_control::Kind) -> Option<u32> {
    match control {
        subscribe_control::Kind::Add(_) => None,
        subscribe_control::Kind::Remove(remove) => Some(remove.id),
        subscribe_control::Kind::Seek(seek) => Some(seek.id),
        subscribe_control::Kind::Pause(pause) => Some(pause.id),
        subscribe_control::Kind::Credit(credit) => Some(credit.id),
    }
}

fn partitions_max(context: &Context) -> usize {
    usize::try_from(context.config.limits.subscription_partitions_max).unwrap_or(usize::MAX)
}

fn started(id: u32, partition: &Subscribed) -> SubscribeStarted {
    let view = partition.shard.now().and_then(|shard| shard.partition(partition.partition));
    SubscribeStarted {
        id,
        generation: partition.terms.generation,
        offset: partition.next.get(),
        log_start_offset: view.map_or(0, |view| view.log_start.get()),
        high_watermark: partition.high_watermark.get().get(),
    }
}
