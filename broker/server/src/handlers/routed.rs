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
use tidemill_net::{FrameReader, FrameWriter};
use tidemill_protocol::frame::RawFrame;
use tidemill_protocol::messages::{
    Acks, Error, Rejection, RoutedAck, RoutedAcks, RoutedBatch, RoutedOpen, RoutedOpened, RoutedPlacement,
};
use tidemill_protocol::record_batch::{BatchLimits, ProducerFields, RecordBatch, Records};
use tidemill_protocol::{DeploymentId, ErrorCode, PartitionId, ProducerEpoch, ProducerId, ShardId, TopicId};
use tidemill_raft::{Pending, ProposeError, Replica};
use tidemill_shard::{FilterPass, RoutedAppend, Unit, UnitResult};

use crate::admission::Admitted;
use crate::attempts::{Attempt, RoutedKey};
use crate::connection::{ClientName, Opened, bad_message};
use crate::context::{Context, unknown_topic};
use crate::errors;
use crate::generations::{Target, Turn};
use crate::handlers::acks::{self, AckQueue};
use crate::handlers::produce_filter::{self, Passed, ProduceFilter};
use crate::plans;
use crate::refusals;
use crate::view::ViewReader;

/// Serves a routed produce stream until it ends.
pub(crate) async fn serve(context: Arc<Context>, client: ClientName, opened: Opened, open: RoutedOpen) {
    let Opened { stream, .. } = opened;
    let (reader, mut writer) = (stream.reader, stream.writer);
    let routing = match Routing::open(&context, &open).await {
        Ok(routing) => routing,
        Err(error) => {
            refusals::opening(&client.0, &error);
            let refusal = RoutedOpened { error: Some(error), ..RoutedOpened::default() };
            let _ = writer.send(&refusal, &[]).await;
            let _ = writer.finish().await;
            return;
        }
    };
    let answer = RoutedOpened {
        error: None,
        partitioner_epoch: routing.topic.partitioner.epoch,
        partition_count: routing.topic.partition_count(),
    };
    if writer.send(&answer, &[]).await.is_err() {
        return;
    }
    routing.run(reader, writer, &client).await;
}

struct Routing {
    context: Arc<Context>,
    view: ViewReader,
    topic: Arc<TopicRecord>,
    /// The shards that hold partitions of the topic, each once.
    shards: Vec<ShardId>,
    producer: ProducerId,
    epoch: ProducerEpoch,
    acknowledged: bool,
    /// The topic's produce filter, as of the topic's version.
    filter: ProduceFilter,
    /// Opened partitioners by the epoch of their binding; a retry may need an old one.
    partitioners: BTreeMap<u32, Partitioner>,
    turn: Turn,
}

impl Routing {
    async fn open(context: &Arc<Context>, open: &RoutedOpen) -> Result<Self, Error> {
        let id = TopicId::from_slice(&open.topic_id)
            .ok_or_else(|| Error::new(ErrorCode::BadMessage, "a topic id has 16 bytes"))?;
        let view = context.view.clone();
        let topic = view.now().topic(id).cloned().ok_or_else(|| unknown_topic(&id.to_string()))?;
        let epoch = i16::try_from(open.producer_epoch)
            .map_err(|_| Error::new(ErrorCode::BadMessage, "a producer epoch is a 16-bit number"))?;
        let filter = ProduceFilter::open(context, &topic, topic.produce_filter).await?;
        let producer = ProducerId::new(open.producer_id);
        let epoch = ProducerEpoch::new(epoch);
        context.producer_ids.check(producer).await?;
        // The last thing that can fail: an older stream of this producer is over with it.
        let order = (epoch, open.generation);
        let turn = context.generations.enter(producer, Target::Routed(topic.id), order)?;
        Ok(Self {
            context: Arc::clone(context),
            view,
            shards: shards_of(&topic),
            topic,
            filter,
            producer,
            epoch,
            acknowledged: Acks::try_from(open.acks).unwrap_or(Acks::Quorum) == Acks::Quorum,
            partitioners: BTreeMap::new(),
            turn,
        })
    }

    async fn run(mut self, mut reader: FrameReader, writer: FrameWriter, client: &ClientName) {
        let limits = &self.context.config.limits;
        let (answers, queue) = AckQueue::new(limits.produce_in_flight_max, limits.produce_window_bytes);
        let topic = Arc::clone(&self.topic);
        let writing = acks::answer(self.acknowledged, queue, writer, topic, |acks| RoutedAcks { acks });
        let reading = async {
            let read = self.read(&mut reader, &answers).await;
            acks::no_more(client, read, reader, answers)
        };
        acks::serve(reading, writing).await;
    }

    /// Takes batches until the stream ends, or must be reset for the reason given.
    async fn read(&mut self, reader: &mut FrameReader, answers: &AckQueue<Answer>) -> Result<(), Error> {
        let mut expected = 0;
        while let Some(frame) = answers.next_frame(reader).await? {
            let header: RoutedBatch =
                frame.message().map_err(|_| bad_message("what comes on a routed stream are batches"))?;
            if header.request_id != expected {
                return Err(bad_message("request ids of a routed stream rise by one, from 0"));
            }
            expected += 1;
            let room = answers.room(frame.payload.len()).await;
            let submitted = self.submit(&header, frame).await;
            reader.done();
            // Where nothing is acknowledged, nothing behind a refused batch is taken.
            let last = !self.acknowledged && submitted.is_err();
            let answer = match submitted {
                Ok(submitted) => submitted.acknowledge(header.request_id).boxed(),
                Err(error) => std::future::ready(refused(header.request_id, error)).boxed(),
            };
            if !answers.push(answer, room).await || last {
                break;
            }
        }
        Ok(())
    }

    async fn submit(&mut self, header: &RoutedBatch, frame: RawFrame) -> Result<Submitted, Error> {
        metrics::counter!("tidemill_routed_batches_total").increment(1);
        self.context.room_to_write()?;
        self.follow_topic().await?;
        let batch = self.checked(frame.payload)?;
        if header.partition_count != self.topic.partition_count() {
            return Err(partitioner_changed(&self.topic));
        }
        let attempt = self.attempt(header.topic_sequence);
        let parts = match self.pass_filter(&batch, &attempt).await? {
            Passed::All => self.split(header, &batch).await?,
            Passed::Some(kept) => {
                let kept = RecordBatch::decode_trusted(kept, &BatchLimits::STORED);
                self.split(header, &kept.map_err(|error| errors::batch(&error))?).await?
            }
            Passed::Nothing => Parts::default(),
            Passed::Refused(rejections) => Parts::refused(errors::rejected(rejections)),
        };
        // What is refused is logged too, as empty everywhere: it takes up its sequence, so that the batches behind it stand.
        let units = self.units(header.topic_sequence, attempt.filtered, parts.by_shard);
        let admitted = self.context.admit(units.iter().map(|(_, unit)| unit.bytes()).sum()).await?;
        let pending = self.propose(units).await?;
        Ok(Submitted { pending, said: parts.said, _admitted: admitted, _attempt: attempt })
    }

    /// The batch as a client may send it.
    fn checked(&self, payload: Bytes) -> Result<RecordBatch, Error> {
        let limits = self.context.batch_limits(self.topic.config.batch_bytes_max);
        let batch = RecordBatch::decode(payload, &limits).map_err(|error| errors::batch(&error))?;
        if batch.header().attributes.control || batch.header().attributes.transactional {
            return Err(Error::new(
                ErrorCode::InvalidBatch,
                "a client does not send control batches, and this release has no transactions",
            ));
        }
        batch.validate_records(&limits).map_err(|error| errors::batch(&error))?;
        if batch.header().producer_id != self.producer && batch.header().has_producer() {
            return Err(Error::new(
                ErrorCode::InvalidBatch,
                "the batch has another producer id than its stream",
            ));
        }
        Ok(batch)
    }

    /// Begins an attempt at a batch. One that is in a shard's log already, or under way, passes what it passed then.
    fn attempt(&self, topic_sequence: u64) -> Attempt {
        let now = || self.replicas().map(|replica| replica.shard().log_time()).max().unwrap_or_default();
        let todays = || self.filter.deployment().map(|filter| FilterPass { filter, now: now() });
        if self.producer == ProducerId::NONE {
            // Nobody can tell a second attempt from another batch.
            return Attempt::alone(todays());
        }
        let key =
            RoutedKey { topic: self.topic.id, producer: self.producer, epoch: self.epoch, topic_sequence };
        let logged = || {
            let producer = (self.producer, self.epoch);
            let mut shards = self.replicas().map(|replica| replica.shard());
            shards.find_map(|shard| shard.routed_attempt(self.topic.id, producer, topic_sequence))
        };
        let ever_filtered = self.topic.produce_filter.is_some() || !self.topic.past_filters.is_empty();
        self.context.attempts.begin(key, || {
            let logged = if ever_filtered { logged() } else { None };
            logged.map_or_else(todays, |logged| logged.filtered)
        })
    }

    async fn pass_filter(&self, batch: &RecordBatch, attempt: &Attempt) -> Result<Passed, Error> {
        let Some(FilterPass { filter, now }) = attempt.filtered else { return Ok(Passed::All) };
        if self.filter.deployment() == Some(filter) {
            return self.filter.pass(batch, BatchPlace::UNPLACED, now).await;
        }
        let earlier = ProduceFilter::open(&self.context, &self.topic, Some(filter)).await?;
        earlier.pass(batch, BatchPlace::UNPLACED, now).await
    }

    /// Places what is left of a batch, and makes a batch of it for each partition.
    async fn split(&mut self, header: &RoutedBatch, batch: &RecordBatch) -> Result<Parts, Error> {
        let placement = self.place(header, batch).await?;
        let records = batch.records(&BatchLimits::STORED).map_err(|error| errors::batch(&error))?;
        if !placement.rejections.is_empty() {
            let rejections = in_clients_batch(&records, placement.rejections)?;
            return Ok(Parts::refused(errors::rejected(rejections)));
        }
        let compression = batch.header().attributes.compression;
        let split = records
            // The topic sequence deduplicates; the parts carry no producer of their own.
            .split(&placement.partitions, self.topic.partition_count(), compression, |_, _| {
                ProducerFields::NONE
            })
            .map_err(|error| errors::reshape(&error))?;
        let mut by_shard = ByShard::new();
        let limit = self.context.batch_limits(self.topic.config.batch_bytes_max).batch_bytes_max;
        for (partition, batch) in split {
            if batch.bytes().len() > limit {
                // No shard may refuse its part alone: the batch is refused as a whole, before anything is proposed.
                return Ok(Parts::refused(self.part_too_large(partition, batch.bytes().len(), limit)));
            }
            let shard = self
                .topic
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
                topic: self.topic.id,
                producer: self.producer,
                epoch: self.epoch,
                topic_sequence,
                filtered,
                batches: by_shard.remove(shard).unwrap_or_default(),
            };
            (*shard, Unit::RoutedAppend(routed))
        };
        self.shards.iter().map(unit).collect()
    }

    async fn propose(&self, units: Vec<(ShardId, Unit)>) -> Result<Vec<Pending>, Error> {
        let mut permits = Vec::with_capacity(units.len());
        for (shard, unit) in units {
            let replica: &Replica = self
                .context
                .shards
                .replica(shard)
                .ok_or_else(|| errors::propose(&ProposeError::NotLeader { leader: None }))?;
            let permit =
                replica.reserve(unit.bytes()).await.map_err(|error| self.not_reserved(shard, &error))?;
            permits.push((permit, unit));
        }
        // Room is there in every shard: from here on nothing waits, so all of them get the batch or none.
        self.turn.propose(|| permits.into_iter().map(|(permit, unit)| permit.submit(unit)).collect())
    }

    /// The broker compresses the parts anew, and not as well as a client may have.
    fn part_too_large(&self, partition: PartitionId, bytes: usize, limit: usize) -> Error {
        Error::new(
            ErrorCode::BatchTooLarge,
            format!(
                "compressed by the broker, the batch's part for partition {partition} of topic '{}' has {bytes} bytes, \
                 and {limit} are allowed; send smaller batches",
                self.topic.name
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
                self.topic.name
            ),
        )
    }

    fn replicas(&self) -> impl Iterator<Item = &Replica> {
        self.shards.iter().filter_map(|shard| self.context.shards.replica(*shard))
    }

    async fn place(&mut self, header: &RoutedBatch, batch: &RecordBatch) -> Result<Placement, Error> {
        let bound = self
            .topic
            .partitioner_at(header.partitioner_epoch)
            .ok_or_else(|| partitioner_changed(&self.topic))?;
        let partitioner = self.partitioner(header.partitioner_epoch, bound).await?;
        let now = batch.header().max_timestamp;
        partitioner
            .place(batch, self.topic.partition_count(), header.topic_sequence, now)
            .await
            .map_err(|failure| errors::call(&failure))
    }

    async fn partitioner(&mut self, epoch: u32, bound: Option<DeploymentId>) -> Result<Partitioner, Error> {
        if let Some(partitioner) = self.partitioners.get(&epoch) {
            return Ok(partitioner.clone());
        }
        let view = self.view.now();
        let partitioner = match bound {
            None => Partitioner::by_key(),
            Some(id) => {
                let record = view.deployment(id).ok_or_else(|| partitioner_changed(&self.topic))?;
                let plan = plans::plugin(&view, record);
                self.context.hosting.partitioner(&plan).await.map_err(|error| errors::open_plugin(&error))?
            }
        };
        self.partitioners.insert(epoch, partitioner.clone());
        Ok(partitioner)
    }

    async fn follow_topic(&mut self) -> Result<(), Error> {
        let view = self.view.now();
        let topic = view.topic(self.topic.id).ok_or_else(|| {
            Error::new(ErrorCode::UnknownTopic, format!("topic '{}' was deleted", self.topic.name))
        })?;
        if topic.version != self.topic.version {
            // Opened before anything is taken over: no batch gets past a filter that can't be opened.
            self.filter = ProduceFilter::open(&self.context, topic, topic.produce_filter).await?;
            self.topic = Arc::clone(topic);
            self.shards = shards_of(topic);
            let topic = &self.topic;
            self.partitioners.retain(|epoch, _| topic.partitioner_at(*epoch).is_some());
        }
        Ok(())
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

/// One acknowledgement on its way.
type Answer = BoxFuture<'static, RoutedAck>;

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

/// What was said of a batch before it was proposed.
#[derive(Default)]
enum Said {
    /// Its records have their places.
    Placed,
    /// The filter left none.
    #[default]
    LeftOut,
    /// It is not to be stored.
    Refused(Error),
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
struct Submitted {
    pending: Vec<Pending>,
    said: Said,
    _admitted: Admitted,
    _attempt: Attempt,
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

/// What the shards say of a batch together.
fn acknowledgement(
    request_id: u64,
    outcomes: Vec<Result<UnitResult, ProposeError>>,
    said: Said,
) -> RoutedAck {
    let mut placements = Vec::new();
    let mut duplicate = true;
    let mut is_new_somewhere = false;
    let mut failure = None;
    for outcome in outcomes {
        match outcome {
            Ok(UnitResult::RoutedAppended { placements: placed, duplicate: again }) => {
                duplicate &= again;
                is_new_somewhere |= !again;
                placements.extend(placed.into_iter().map(|(partition, base, count)| RoutedPlacement {
                    partition: partition.get(),
                    base_offset: base.get(),
                    record_count: count,
                }));
            }
            Ok(other) => failure = failure.or_else(|| Some(errors::unit(&other))),
            // Another shard may have it: only a retry of the very same batch finds out.
            Err(ProposeError::OutcomeUnknown) => {
                failure = Some(errors::propose(&ProposeError::OutcomeUnknown))
            }
            Err(error) => failure = failure.or_else(|| Some(errors::propose(&error))),
        }
    }
    placements.sort_by_key(|placement| placement.partition);
    match failure {
        // A retry may still store the rest. Else what is stored stays alone, and the batch must not come again as another.
        Some(error) if !error.retriable && !placements.is_empty() => {
            let error = Some(errors::partly_stored(&error));
            RoutedAck { request_id, placements, duplicate: false, error }
        }
        Some(error) => refused(request_id, error),
        // An earlier attempt came to some shards, and this one, of which nothing is to be stored, is new to another: what would
        // have lain there is gone.
        None if is_new_somewhere && !placements.is_empty() && !matches!(said, Said::Placed) => {
            let error = match said {
                Said::Refused(error) => errors::partly_stored(&error),
                Said::Placed | Said::LeftOut => errors::partly_stored(&errors::left_out_now()),
            };
            RoutedAck { request_id, placements, duplicate: false, error: Some(error) }
        }
        // What an earlier attempt stored stands, whatever the filter and the topic's settings say now.
        None if placements.is_empty() => match said {
            Said::Refused(error) => refused(request_id, error),
            Said::Placed => refused(request_id, errors::refused_before()),
            Said::LeftOut => RoutedAck { request_id, placements, duplicate, error: None },
        },
        None => RoutedAck { request_id, placements, duplicate, error: None },
    }
}

fn refused(request_id: u64, error: Error) -> RoutedAck {
    RoutedAck { request_id, error: Some(error), ..RoutedAck::default() }
}

#[cfg(test)]
mod tests {
    use tidemill_protocol::Offset;
    use tidemill_shard::UnitError;

    use super::*;

    fn stored(partition: u32, count: u32) -> Result<UnitResult, ProposeError> {
        let placements = match count {
            0 => Vec::new(),
            _ => vec![(PartitionId::new(partition), Offset::new(40), count)],
        };
        Ok(UnitResult::RoutedAppended { placements, duplicate: false })
    }

    /// By an earlier attempt.
    fn known(partition: u32, count: u32) -> Result<UnitResult, ProposeError> {
        stored(partition, count).map(|result| match result {
            UnitResult::RoutedAppended { placements, .. } => {
                UnitResult::RoutedAppended { placements, duplicate: true }
            }
            other => other,
        })
    }

    fn forgotten() -> Result<UnitResult, ProposeError> {
        Ok(UnitResult::Refused(UnitError::UnknownProducer(ProducerId::new(7))))
    }

    fn code(ack: &RoutedAck) -> Option<ErrorCode> {
        ack.error.as_ref().and_then(Error::error_code)
    }

    #[test]
    fn a_batch_that_is_stored_in_some_shards_alone_is_not_called_unstored() {
        for outcomes in
            [vec![stored(3, 2), forgotten(), stored(1, 1)], vec![forgotten(), stored(1, 1), stored(3, 2)]]
        {
            let ack = acknowledgement(5, outcomes, Said::Placed);
            assert_eq!((ack.request_id, code(&ack)), (5, Some(ErrorCode::PartlyStored)));
            let places: Vec<_> =
                ack.placements.iter().map(|p| (p.partition, p.base_offset, p.record_count)).collect();
            assert_eq!(places, [(1, 40, 1), (3, 40, 2)]);
        }
        // Nothing of it is anywhere.
        for outcomes in [vec![forgotten(), forgotten()], vec![stored(0, 0), forgotten()]] {
            let ack = acknowledgement(5, outcomes, Said::Placed);
            assert_eq!(code(&ack), Some(ErrorCode::UnknownProducer));
            assert!(ack.placements.is_empty());
        }
        // The same batch again stores the rest.
        let retried = acknowledgement(5, vec![stored(1, 1), Err(ProposeError::Overloaded)], Said::Placed);
        assert_eq!(code(&retried), Some(ErrorCode::Overloaded));
        let unknown = acknowledgement(
            5,
            vec![stored(1, 1), forgotten(), Err(ProposeError::OutcomeUnknown)],
            Said::Placed,
        );
        assert_eq!(code(&unknown), Some(ErrorCode::OutcomeUnknown));
    }

    #[test]
    fn what_is_refused_now_stands_where_an_earlier_attempt_stored_it() {
        let too_large = || Said::Refused(Error::new(ErrorCode::BatchTooLarge, "a part is too large"));
        let refused = acknowledgement(0, vec![stored(0, 0), stored(0, 0)], too_large());
        assert_eq!(code(&refused), Some(ErrorCode::BatchTooLarge));
        let again = acknowledgement(0, vec![known(0, 2), known(0, 0)], too_large());
        assert_eq!((code(&again), again.placements.len()), (None, 1));
        // It did not come to every shard then, and now it does not either.
        for said in [too_large(), Said::LeftOut] {
            let halved = acknowledgement(0, vec![known(0, 2), stored(0, 0)], said);
            assert_eq!((code(&halved), halved.placements.len()), (Some(ErrorCode::PartlyStored), 1));
        }
        let left_out = acknowledgement(0, vec![stored(0, 0)], Said::LeftOut);
        assert_eq!((code(&left_out), left_out.placements.len()), (None, 0));
        let refused_before = acknowledgement(0, vec![stored(0, 0)], Said::Placed);
        assert_eq!(code(&refused_before), Some(ErrorCode::RecordsRejected));
    }
}
