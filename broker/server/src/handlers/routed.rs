//! Routed produce: the broker places each record.
//!
//! A batch becomes one unit in every shard that holds partitions of the topic, empty ones included, so that each shard
//! sees a gapless sequence per producer and topic and can tell a retry from a new batch. One acknowledgement says that
//! all of them are committed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use tidemill_controller::TopicRecord;
use tidemill_hosting::{BatchPlace, Partitioner, Placement};
use tidemill_protocol::messages::{
    Error, Rejection, RoutedAck, RoutedAcks, RoutedBatch, RoutedOpen, RoutedOpened,
};
use tidemill_protocol::record_batch::{BatchLimits, Compression, ProducerFields, Records};
use tidemill_protocol::{DeploymentId, ErrorCode, PartitionId, ProducerId, ShardId, TopicId};
use tidemill_raft::{Pending, PermitAnywhere, ProposeError, Replica};
use tidemill_shard::{FilterPass, RoutedAppend, Unit};

use crate::admission::{Admitted, Unanswered, UnitRoom};
use crate::attempts::{Attempt, RoutedKey};
use crate::components;
use crate::context::Context;
use crate::errors;
use crate::generations::Target;
use crate::handlers::intake::{Intake, ProduceStream, Producer};
use crate::handlers::produce_filter::{self, Passed, ProduceFilter};
use crate::plans;
use crate::unpacking::{Unpacked, Unpacker};

mod memory;
mod outcome;

pub(crate) use memory::remembered;
use outcome::{Said, acknowledgement, refused};

/// A routed produce stream.
pub(crate) struct Routing {
    intake: Intake,
    /// The shards that hold partitions of the topic, each once.
    shards: Vec<ShardId>,
    /// Opened partitioners by the epoch of their binding; a retry may need an old one.
    partitioners: BTreeMap<u32, Partitioner>,
}

impl ProduceStream for Routing {
    const KIND: &str = "routed";
    type Open = RoutedOpen;
    type Opened = RoutedOpened;
    type Header = RoutedBatch;
    type Submitted = Submitted;
    type Answer = BoxFuture<'static, RoutedAck>;
    type Ack = RoutedAck;
    type Acks = RoutedAcks;

    async fn open(context: &Arc<Context>, unpacker: Unpacker, open: &RoutedOpen) -> Result<Self, Error> {
        let id = TopicId::from_slice(&open.topic_id).ok_or_else(errors::not_an_id)?;
        let known = context.view.now().topic(id).cloned();
        let topic = match known {
            Some(topic) => topic,
            None => {
                let view = context.fresh_view().await;
                view.topic(id).cloned().ok_or_else(|| errors::unknown_topic(&id.to_string()))?
            }
        };
        let producer = Producer {
            id: open.producer_id,
            epoch: open.producer_epoch,
            generation: open.generation,
            acks: open.acks,
        };
        let shards = shards_of(&topic);
        if topic.produce_filter.is_some() || !topic.past_filters.is_empty() {
            // What an earlier stream of the producer left in the logs must show here: a retry passes what it passed then.
            context.settle(shards.iter().copied()).await?;
        }
        let intake = Intake::open(context, unpacker, topic, Target::Routed(id), producer).await?;
        Ok(Self { intake, shards, partitioners: BTreeMap::new() })
    }

    fn opened(&self) -> RoutedOpened {
        RoutedOpened {
            error: None,
            partitioner_epoch: self.topic().partitioner.epoch,
            partition_count: self.topic().partition_count(),
        }
    }

    fn not_opened(error: Error) -> RoutedOpened {
        RoutedOpened { error: Some(error), ..RoutedOpened::default() }
    }

    fn intake(&self) -> &Intake {
        &self.intake
    }

    fn request_id(header: &RoutedBatch) -> u64 {
        header.request_id
    }

    async fn submit(&mut self, header: &RoutedBatch, payload: Bytes) -> Result<Submitted, Error> {
        metrics::counter!("tidemill_routed_batches_total").increment(1);
        self.follow_topic().await?;
        self.intake.context.room_for_records(&self.shards)?;
        // The topic sequence deduplicates: the batch itself need not say who sends it.
        let batch = self.intake.check(payload, true)?;
        if header.partition_count != self.topic().partition_count() {
            return Err(partitioner_changed(self.topic()));
        }
        let attempt = self.attempt(header.topic_sequence).await?;
        let plugins = self.plugins(header, &attempt).await;
        let records = self.intake.unpack(&batch).await?;
        let parts = self.parts(header, records, plugins, &attempt).await?;
        // What is refused is logged too, as empty everywhere: it takes up its sequence, so that the batches behind it stand.
        let units = self.units(header.topic_sequence, attempt.filtered, parts.by_shard);
        let bytes: usize = units.iter().map(|(_, unit)| unit.bytes()).sum();
        let Admitted { room, unanswered } = self.intake.context.admit(bytes).await?;
        let pending = self.propose(units, (room, attempt)).await?;
        Ok(Submitted { pending, said: parts.said, _unanswered: unanswered })
    }

    fn answer(request_id: u64, submitted: Result<Submitted, Error>) -> Self::Answer {
        match submitted {
            Ok(submitted) => submitted.acknowledge(request_id).boxed(),
            Err(error) => std::future::ready(refused(request_id, error)).boxed(),
        }
    }

    fn join(acks: Vec<RoutedAck>) -> RoutedAcks {
        RoutedAcks { acks }
    }
}

impl Routing {
    fn topic(&self) -> &TopicRecord {
        &self.intake.topic
    }

    async fn follow_topic(&mut self) -> Result<(), Error> {
        if self.intake.follow_topic().await? {
            let topic = &self.intake.topic;
            self.shards = shards_of(topic);
            self.partitioners.retain(|epoch, _| topic.partitioner_at(*epoch).is_some());
        }
        Ok(())
    }

    /// Begins an attempt at a batch. One that is in a shard's log already, or under way, passes what it passed then.
    async fn attempt(&self, topic_sequence: u64) -> Result<Attempt, Error> {
        let context = &self.intake.context;
        // Where none of the shards has a replica here, what their leaders would stamp on it.
        let log_times = || self.replicas().map(|replica| replica.shard().log_time());
        let now = || log_times().max().unwrap_or_else(|| (context.clock)());
        let todays = || self.intake.filter.deployment().map(|filter| FilterPass { filter, now: now() });
        if self.intake.producer == ProducerId::NONE {
            // Nobody can tell a second attempt from another batch.
            return Ok(Attempt::alone(todays()));
        }
        let key = RoutedKey {
            topic: self.intake.topic.id,
            producer: self.intake.producer,
            epoch: self.intake.epoch,
            topic_sequence,
        };
        let logged = || {
            let producer = (self.intake.producer, self.intake.epoch);
            let mut shards = self.replicas().map(|replica| replica.shard());
            shards.find_map(|shard| shard.routed_attempt(self.intake.topic.id, producer, topic_sequence))
        };
        let ever_filtered =
            self.intake.topic.produce_filter.is_some() || !self.intake.topic.past_filters.is_empty();
        let elsewhere = match ever_filtered {
            true => memory::elsewhere(context, self.shards_elsewhere(), &key).await?,
            false => None,
        };
        Ok(context.attempts.begin(key, || {
            let logged = if ever_filtered { logged().or(elsewhere) } else { None };
            logged.map_or_else(todays, |logged| logged.filtered)
        }))
    }

    /// Opens what a batch passes, which may have to be compiled.
    async fn plugins(&mut self, header: &RoutedBatch, attempt: &Attempt) -> Plugins {
        let partitioner = self.partitioner(header.partitioner_epoch).await;
        let intake = &self.intake;
        let earlier_filter = match attempt.filtered {
            Some(FilterPass { filter, .. }) if intake.filter.deployment() != Some(filter) => {
                Some(intake.open_filter(&intake.topic, Some(filter)).await)
            }
            _ => None,
        };
        Plugins { earlier_filter, partitioner }
    }

    /// What of a batch goes where, after the filter of its attempt.
    async fn parts(
        &self,
        header: &RoutedBatch,
        records: Unpacked,
        plugins: Plugins,
        attempt: &Attempt,
    ) -> Result<Parts, Error> {
        let Plugins { earlier_filter, partitioner } = plugins;
        let compression = records.header().attributes.compression;
        Ok(match self.pass_filter(&records, earlier_filter, attempt).await? {
            Passed::All => self.split(header, records, partitioner?, compression).await?,
            Passed::Some(kept) => {
                let kept = kept.records(&BatchLimits::MADE_HERE).map_err(|error| errors::batch(&error))?;
                self.split(header, records.with(kept), partitioner?, compression).await?
            }
            Passed::Nothing => Parts::default(),
            Passed::Refused(rejections) => Parts::refused(errors::rejected(rejections)),
        })
    }

    async fn pass_filter(
        &self,
        records: &Records,
        earlier_filter: Option<Result<ProduceFilter, Error>>,
        attempt: &Attempt,
    ) -> Result<Passed, Error> {
        let Some(FilterPass { now, .. }) = attempt.filtered else { return Ok(Passed::All) };
        match earlier_filter {
            None => self.intake.filter.pass(records, BatchPlace::UNPLACED, now).await,
            Some(earlier) => earlier?.pass(records, BatchPlace::UNPLACED, now).await,
        }
    }

    /// Places what is left of a batch, and makes a batch of it for each partition.
    async fn split(
        &self,
        header: &RoutedBatch,
        records: Unpacked,
        partitioner: Partitioner,
        compression: Compression,
    ) -> Result<Parts, Error> {
        let Placement { partitions, rejections } = self.place(header, &records, &partitioner).await?;
        if !rejections.is_empty() {
            let rejections = in_clients_batch(&records, rejections)?;
            return Ok(Parts::refused(errors::rejected(rejections)));
        }
        let count = self.topic().partition_count();
        // The topic sequence deduplicates; the parts carry no producer of their own.
        let split = move |records: &Records| {
            records.split(&partitions, count, compression, |_, _| ProducerFields::NONE)
        };
        let split = self.intake.unpacker.make(records, compression, split).await?;
        let mut by_shard = ByShard::new();
        let limit = self.intake.batch_bytes_max();
        for (partition, batch) in split.map_err(|error| errors::reshape(&error))? {
            if batch.bytes().len() > limit {
                // No shard may refuse its part alone: the batch is refused as a whole, before anything is proposed.
                return Ok(Parts::refused(self.part_too_large(partition, batch.bytes().len(), limit)));
            }
            let shard = self
                .topic()
                .shard_of(partition)
                .ok_or_else(|| Error::new(ErrorCode::Internal, "a record was placed outside the topic"))?;
            by_shard.entry(shard).or_default().push((partition, batch.into_bytes()));
        }
        Ok(Parts { by_shard, said: Said::Placed })
    }

    /// A unit for every shard that holds partitions of the topic, empty ones included.
    fn units(
        &self,
        topic_sequence: u64,
        filtered: Option<FilterPass>,
        mut by_shard: ByShard,
    ) -> Vec<(ShardId, Unit)> {
        let unit = |shard: &ShardId| {
            let routed = RoutedAppend {
                topic: self.intake.topic.id,
                producer: self.intake.producer,
                epoch: self.intake.epoch,
                topic_sequence,
                filtered,
                batches: by_shard.remove(shard).unwrap_or_default(),
            };
            (*shard, Unit::RoutedAppend(routed))
        };
        self.shards.iter().map(unit).collect()
    }

    /// Hands the units on in the order of the stream, each to its shard's leader, here or elsewhere. The batch's room, and its attempt,
    /// are with them: the client may be gone before the last of them is written.
    async fn propose(
        &self,
        units: Vec<(ShardId, Unit)>,
        held: (UnitRoom, Attempt),
    ) -> Result<Vec<Pending>, Error> {
        let mut permits = Vec::with_capacity(units.len());
        for (shard, unit) in units {
            let reserved = self.intake.context.shards.reserve(shard, unit.bytes()).await;
            let permit = reserved.map_err(|error| self.not_reserved(shard, &error))?;
            permits.push((permit, unit));
        }
        // Room is there in every shard: from here on nothing waits, so all of them get the batch or none.
        let held = Arc::new(held);
        self.intake.turn.propose(|| {
            let submit = |(permit, unit): (PermitAnywhere, Unit)| {
                permit.submit_held(unit, Box::new(Arc::clone(&held)))
            };
            permits.into_iter().map(submit).collect()
        })
    }

    /// The broker compresses the parts anew, and not as well as a client may have.
    fn part_too_large(&self, partition: PartitionId, bytes: usize, limit: usize) -> Error {
        Error::new(
            ErrorCode::BatchTooLarge,
            format!(
                "compressed by the broker, the batch's part for partition {partition} of topic '{}' has {bytes} bytes, \
                 and {limit} are allowed; send smaller batches",
                self.topic().name
            ),
        )
    }

    fn not_reserved(&self, shard: ShardId, error: &ProposeError) -> Error {
        let ProposeError::TooLarge { bytes, bytes_max } = error else { return errors::propose(error) };
        Error::new(
            ErrorCode::BatchTooLarge,
            format!(
                "placed and compressed by the broker, the batch's parts for shard {shard} of topic '{}' have {bytes} \
                 bytes, and {bytes_max} fit; send smaller batches",
                self.topic().name
            ),
        )
    }

    fn replicas(&self) -> impl Iterator<Item = Replica> {
        self.shards.iter().filter_map(|shard| self.intake.context.shards.serving(*shard))
    }

    fn shards_elsewhere(&self) -> impl Iterator<Item = ShardId> {
        let shards = self.shards.iter().copied();
        shards.filter(|shard| self.intake.context.shards.serving(*shard).is_none())
    }

    async fn place(
        &self,
        header: &RoutedBatch,
        records: &Records,
        partitioner: &Partitioner,
    ) -> Result<Placement, Error> {
        let (count, now) = (self.topic().partition_count(), records.header().max_timestamp);
        let placed = partitioner.place_all(records, count, header.topic_sequence, now).await;
        placed.map_err(|failure| errors::call(&failure))
    }

    async fn partitioner(&mut self, epoch: u32) -> Result<Partitioner, Error> {
        let bound: Option<DeploymentId> =
            self.topic().partitioner_at(epoch).ok_or_else(|| partitioner_changed(self.topic()))?;
        if let Some(partitioner) = self.partitioners.get(&epoch) {
            return Ok(partitioner.clone());
        }
        let view = self.intake.view.now();
        let partitioner = match bound {
            None => Partitioner::by_key(),
            Some(id) => {
                let record = view.deployment(id).ok_or_else(|| partitioner_changed(&self.intake.topic))?;
                let plan = plans::plugin(&view, record);
                let context = &self.intake.context;
                let opened = components::partitioner(context, &plan).await;
                opened.map_err(|error| components::elsewhere(context, error))?
            }
        };
        self.partitioners.insert(epoch, partitioner.clone());
        Ok(partitioner)
    }
}

fn shards_of(topic: &TopicRecord) -> Vec<ShardId> {
    let shards: BTreeSet<ShardId> = topic.shards.iter().copied().collect();
    shards.into_iter().collect()
}

fn partitioner_changed(topic: &TopicRecord) -> Error {
    Error::new(
        ErrorCode::PartitionerChanged,
        format!(
            "the partitioner that placed this batch first is no longer known to topic '{}': \
             a retry could place it elsewhere; read back whether it was written",
            topic.name
        ),
    )
}

/// What a batch passes, opened before it is unpacked. Where one of them can't be opened, that is told if the batch comes to it.
struct Plugins {
    /// The filter of the batch's attempt, where it is not the topic's of today.
    earlier_filter: Option<Result<ProduceFilter, Error>>,
    partitioner: Result<Partitioner, Error>,
}

/// The parts of a batch for each shard, by rising partition.
type ByShard = BTreeMap<ShardId, Vec<(PartitionId, Bytes)>>;

/// What of a batch goes where; nothing where it was refused or left out.
#[derive(Default)]
struct Parts {
    by_shard: ByShard,
    said: Said,
}

impl Parts {
    fn refused(error: Error) -> Self {
        Self { by_shard: ByShard::new(), said: Said::Refused(error) }
    }
}

/// A partitioner's rejections by the ordinals of the batch that the client sent: it had no gaps, so that a record's offset in it is
/// its ordinal, whatever a filter left out since.
fn in_clients_batch(records: &Records, named: Vec<(u32, String)>) -> Result<Vec<Rejection>, Error> {
    let ordinals: Result<Vec<u32>, _> =
        records.iter().map(|record| record.map(|record| record.offset_delta)).collect();
    let ordinals = ordinals.map_err(|error| errors::batch(&error))?;
    let sent = |(at, reason): (u32, String)| {
        let ordinal = usize::try_from(at).ok().and_then(|at| ordinals.get(at)).copied();
        (ordinal.unwrap_or(at), reason)
    };
    Ok(produce_filter::rejections(named.into_iter().map(sent)))
}

/// A batch on its way in one or more shards.
pub(crate) struct Submitted {
    pending: Vec<Pending>,
    said: Said,
    _unanswered: Unanswered,
}

impl Submitted {
    async fn acknowledge(self, request_id: u64) -> RoutedAck {
        // Every one is waited for: an error of one must not hide that another is still under way.
        let mut outcomes = Vec::with_capacity(self.pending.len());
        for pending in self.pending {
            outcomes.push(pending.await);
        }
        acknowledgement(request_id, outcomes, self.said)
    }
}
