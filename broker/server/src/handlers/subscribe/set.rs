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
use tidemill_protocol::{BrokerId, ErrorCode, Offset, TopicPartition};
use tidemill_shard::{Batches, Fetch};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::Control;
use super::branches::{Branches, News, Told};
use super::filtering::{BatchFilter, Filtering};
use super::partition::{Confirmed, Needed, Removal, ReplicaEnd, Subscribed, catch_up, out_of_range, resolve};
use crate::connection::Caller;
use crate::context::Context;
use crate::errors;
use crate::handlers::topics;
use crate::refusals::{self, Refused};

/// Payload of one data frame where the client names no size.
const FRAME_BYTES_DEFAULT: u32 = 1 << 20;
/// And the range in which it may name one.
const FRAME_BYTES: std::ops::RangeInclusive<u32> = 4 << 10..=4 << 20;
/// A filter that passes nothing says how far it came after so many bytes of batches; where they have more, decompressed, those count.
const SCAN_BYTES_MAX: usize = 4 << 20;

/// Why a partition at its end waits no longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Woken {
    /// There are more records.
    More,
    /// Its topic was deleted.
    Gone,
    /// Its replica here has stopped, and others go on.
    LeftBehind,
    /// The client took it out of the subscription.
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
    partitions: HashMap<u32, Subscribed>,
    /// Those that may have something to send, in turn.
    queue: VecDeque<u32>,
    /// Those at their end, each waiting for more.
    waiters: FuturesUnordered<BoxFuture<'static, (u32, Woken)>>,
    confirmed: Confirmed,
}

impl SubscriptionSet {
    pub(super) fn new(
        context: Arc<Context>,
        caller: Caller,
        writer: FrameWriter,
        filtering: Filtering,
        branches: Branches,
        frame_bytes_max: u32,
    ) -> Self {
        let frame_bytes = match frame_bytes_max {
            0 => FRAME_BYTES_DEFAULT,
            asked => asked.clamp(*FRAME_BYTES.start(), *FRAME_BYTES.end()),
        };
        Self {
            context,
            caller,
            writer,
            filtering,
            branches,
            frame_bytes: usize::try_from(frame_bytes).unwrap_or(usize::MAX),
            partitions: HashMap::new(),
            queue: VecDeque::new(),
            waiters: FuturesUnordered::new(),
            confirmed: Confirmed::default(),
        }
    }

    /// Runs until the client ends the stream, then gives the writer back; `None` where the client can't be written to.
    pub(super) async fn run(mut self, mut controls: mpsc::Receiver<Control>) -> Option<FrameWriter> {
        loop {
            let turn = if self.queue.is_empty() {
                tokio::select! {
                    control = controls.recv() => match control {
                        Some(control) => self.control(control).await,
                        None => break,
                    },
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
                self.partitions.remove(&remove.id);
                Ok(())
            }
            subscribe_control::Kind::Seek(seek) => self.seek(seek, asked).await,
            subscribe_control::Kind::Pause(pause) => {
                if let Some(partition) = self.partitions.get_mut(&pause.id) {
                    partition.paused = pause.paused;
                }
                self.schedule(pause.id);
                Ok(())
            }
            subscribe_control::Kind::Credit(credit) => {
                let credit_max = credit_max(&self.context);
                if let Some(partition) = self.partitions.get_mut(&credit.id) {
                    let more = i64::try_from(credit.bytes).unwrap_or(i64::MAX);
                    partition.credit = partition.credit.saturating_add(more).min(credit_max);
                }
                self.schedule(credit.id);
                Ok(())
            }
        }
    }

    async fn add(&mut self, add: SubscribeAdd, asked: Instant) -> Result<(), WriteError> {
        let id = add.id;
        let held = self.partitions.len() + self.branches.len();
        let opened = if self.partitions.contains_key(&id) || self.branches.serves(id) {
            Err(Error::new(ErrorCode::BadMessage, format!("id {id} is in use on this stream")))
        } else if let Some(broker) = self.elsewhere(held, &add) {
            let told = self.branches.add(broker, add);
            return self.tell(told).await;
        } else {
            open(&self.context, &mut self.confirmed, held, &add, asked).await
        };
        match opened {
            Ok(subscribed) => {
                let started = started(id, &subscribed);
                self.partitions.insert(id, subscribed);
                self.send(subscribe_event::Kind::Started(started), &[]).await?;
                self.schedule(id);
                Ok(())
            }
            Err(error) => self.fail(id, 0, error).await,
        }
    }

    /// The broker that serves a partition in this one's place.
    fn elsewhere(&self, held: usize, add: &SubscribeAdd) -> Option<BrokerId> {
        let partition = topics::partition(add.partition.as_ref()).ok()?;
        (held < partitions_max(&self.context)).then(|| self.branches.broker_of(partition)).flatten()
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

    async fn seek(&mut self, seek: SubscribeSeek, asked: Instant) -> Result<(), WriteError> {
        let Some(partition) = self.partitions.get(&seek.id) else { return Ok(()) };
        let name = self.context.view.now().partition_name(partition.partition);
        let (place, shard) = (partition.partition, partition.shard.clone());
        let needed = Needed {
            position: seek.start.as_ref(),
            floor: seek.floor_offset,
            exact_end: seek.exact_end,
            asked,
        };
        let found = match catch_up(&self.context, &mut self.confirmed, place, &needed).await {
            Ok(()) => resolve(&shard.now(), place, &name, seek.start.as_ref()).await,
            Err(error) => Err(error),
        };
        match (found, self.partitions.get_mut(&seek.id)) {
            (Ok(next), Some(partition)) => {
                partition.next = next;
                partition.generation = seek.generation;
                // Another shard may have taken the place of the one that was looked at last.
                partition.high_watermark.follow();
                let started = started(seek.id, partition);
                self.send(subscribe_event::Kind::Started(started), &[]).await?;
                self.schedule(seek.id);
                Ok(())
            }
            (Err(error), _) => self.fail(seek.id, seek.generation, error).await,
            (Ok(_), None) => Ok(()),
        }
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
                    more = high_watermark.reaches(next) => (id, if more { Woken::More } else { Woken::Gone }),
                    () = end.left_behind() => (id, Woken::LeftBehind),
                    () = removed.cancelled() => (id, Woken::Removed),
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
        let generation = partition.generation;
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
        let generation = partition.generation;
        match gather(&self.context, &self.filtering, self.frame_bytes, partition).await {
            Ok(Some(gathered)) => self.push(id, gathered).await,
            Ok(None) => Ok(()),
            Err(error) => self.fail(id, generation, error).await,
        }
    }

    async fn push(&mut self, id: u32, gathered: Gathered) -> Result<(), WriteError> {
        let Some(partition) = self.partitions.get_mut(&id) else { return Ok(()) };
        partition.next = gathered.next;
        partition.credit -= i64::try_from(gathered.bytes).unwrap_or(i64::MAX);
        let generation = partition.generation;
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
        self.partitions.remove(&id);
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

async fn open(
    context: &Context,
    confirmed: &mut Confirmed,
    held: usize,
    add: &SubscribeAdd,
    asked: Instant,
) -> Result<Subscribed, Error> {
    let limit = partitions_max(context);
    if held >= limit {
        return Err(Error::new(
            ErrorCode::Overloaded,
            format!("a subscription holds at most {limit} partitions; open another"),
        ));
    }
    let partition = topics::partition(add.partition.as_ref())?;
    let (_, replica) = context.find_fresh(partition).await?;
    let needed =
        Needed { position: add.start.as_ref(), floor: add.floor_offset, exact_end: add.exact_end, asked };
    catch_up(context, confirmed, partition, &needed).await?;
    let shard = replica.handle();
    let name = context.view.now().partition_name(partition);
    let high_watermark = shard.watch(partition).ok_or_else(|| errors::not_ready(&name))?;
    let next = resolve(&shard.now(), partition, &name, add.start.as_ref()).await?;
    Ok(Subscribed {
        partition,
        end: ReplicaEnd::of(&replica),
        shard,
        next,
        generation: 0,
        credit: i64::try_from(add.credit_bytes).unwrap_or(i64::MAX).min(credit_max(context)),
        paused: add.paused,
        high_watermark,
        waiting: false,
        queued: false,
        removed: Removal::default(),
    })
}

/// Reads on from where a partition stands until there is a frame's worth, the end, or enough scanned in vain.
async fn gather(
    context: &Context,
    filtering: &Filtering,
    frame_bytes: usize,
    partition: &Subscribed,
) -> Result<Option<Gathered>, Error> {
    let room = usize::try_from(partition.credit).unwrap_or(0).min(frame_bytes);
    let mut gathered =
        Gathered { parts: Vec::new(), bytes: 0, scanned: 0, unpacked: 0, next: partition.next };
    while gathered.bytes < room && !gathered.has_scanned_enough() {
        let high_watermark = partition.high_watermark.get();
        if gathered.next >= high_watermark {
            break;
        }
        let fetched = partition.shard.now().fetch(partition.partition, gathered.next, room - gathered.bytes);
        let batches = match fetched {
            Fetch::Memory(batches) => batches,
            Fetch::Disk(read) => tokio::task::spawn_blocking(move || read.run())
                .await
                .map_err(|_| errors::interrupted("reading the log"))?
                .map_err(|error| {
                    errors::read(&error, &context.view.now().partition_name(partition.partition))
                })?,
            Fetch::OutOfRange { log_start, high_watermark } => {
                let name = context.view.now().partition_name(partition.partition);
                return Err(out_of_range(&name, gathered.next, log_start, high_watermark));
            }
            Fetch::Unknown => {
                let name = context.view.now().partition_name(partition.partition);
                return Err(errors::deleted(&name));
            }
        };
        if batches.is_empty() {
            break;
        }
        match filtering {
            Filtering::None => gathered.take_all(batches),
            Filtering::By(filter) => gathered.take_passed(filter, partition.partition, &batches).await?,
        }
    }
    Ok((gathered.scanned > 0).then_some(gathered))
}

/// What one frame will carry.
struct Gathered {
    parts: Vec<Bytes>,
    /// Of the parts.
    bytes: usize,
    /// Read from the log for it.
    scanned: usize,
    /// The same, decompressed for a filter.
    unpacked: usize,
    next: Offset,
}

impl Gathered {
    fn has_scanned_enough(&self) -> bool {
        self.scanned.max(self.unpacked) >= SCAN_BYTES_MAX
    }

    fn take_all(&mut self, batches: Batches) {
        self.scanned += batches.bytes;
        self.bytes += batches.bytes;
        self.next = batches.next;
        self.parts.extend(batches.parts);
    }

    /// What a filter passes of them: of all, or of so many that enough was scanned with the last.
    async fn take_passed(
        &mut self,
        filter: &BatchFilter,
        partition: TopicPartition,
        batches: &Batches,
    ) -> Result<(), Error> {
        for batch in batches.contiguous() {
            if self.has_scanned_enough() {
                return Ok(());
            }
            self.scanned += batch.len();
            let passed = filter.pass(partition, batch).await?;
            self.unpacked += passed.unpacked_bytes;
            self.next = self.next.max(passed.next);
            if let Some(kept) = passed.kept {
                self.bytes += kept.len();
                self.parts.push(kept);
            }
        }
        self.next = batches.next;
        Ok(())
    }
}

fn started(id: u32, partition: &Subscribed) -> SubscribeStarted {
    let view = partition.shard.now().partition(partition.partition);
    SubscribeStarted {
        id,
        generation: partition.generation,
        offset: partition.next.get(),
        log_start_offset: view.map_or(0, |view| view.log_start.get()),
        high_watermark: partition.high_watermark.get().get(),
    }
}
