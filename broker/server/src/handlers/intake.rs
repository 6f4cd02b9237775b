//! What both kinds of produce stream do alike: they open, take batches in order, check them, and follow their topic.
//!
//! [`ProduceStream`] is what each does in its own way; [`serve`] plays a stream from its opening to its end.

use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use tidemill_controller::TopicRecord;
use tidemill_net::{FrameReader, FrameWriter};
use tidemill_protocol::messages::{Acks, Error};
use tidemill_protocol::record_batch::{BatchLimits, RecordBatch};
use tidemill_protocol::{DeploymentId, ErrorCode, ProducerEpoch, ProducerId};

use crate::components;
use crate::connection::{ClientName, Opened};
use crate::context::Context;
use crate::errors;
use crate::generations::{Target, Turn};
use crate::handlers::acks::{self, Ack, AckQueue};
use crate::handlers::produce_filter::ProduceFilter;
use crate::refusals;
use crate::unpacking::{Unpacked, Unpacker};
use crate::view::ViewReader;

/// One kind of produce stream.
pub(crate) trait ProduceStream: Sized + Send {
    /// What the kind is called.
    const KIND: &str;
    /// What a client asks for.
    type Open: Sync;
    /// What it is told then.
    type Opened: Message;
    /// What stands before each batch.
    type Header: Message + Default;
    /// A batch that was handed on.
    type Submitted: Send;
    /// A batch's acknowledgement on its way.
    type Answer: Future<Output = Self::Ack> + Unpin + Send;
    type Ack: Ack + Send;
    type Acks: Message;

    fn open(
        context: &Arc<Context>,
        unpacker: Unpacker,
        open: &Self::Open,
    ) -> impl Future<Output = Result<Self, Error>> + Send;
    fn opened(&self) -> Self::Opened;
    fn not_opened(error: Error) -> Self::Opened;
    fn intake(&self) -> &Intake;
    fn request_id(header: &Self::Header) -> u64;
    /// Checks and filters a batch, and hands it on in the order of the stream.
    fn submit(
        &mut self,
        header: &Self::Header,
        payload: Bytes,
    ) -> impl Future<Output = Result<Self::Submitted, Error>> + Send;
    fn answer(request_id: u64, submitted: Result<Self::Submitted, Error>) -> Self::Answer;
    fn join(acks: Vec<Self::Ack>) -> Self::Acks;
}

/// Serves a produce stream until it ends.
pub(crate) async fn serve<S: ProduceStream>(
    context: Arc<Context>,
    client: ClientName,
    unpacker: Unpacker,
    opened: Opened,
    open: S::Open,
) {
    let Opened { stream, .. } = opened;
    let (reader, mut writer) = (stream.reader, stream.writer);
    let stream = match S::open(&context, unpacker, &open).await {
        Ok(stream) => stream,
        Err(error) => {
            refusals::opening(&client.0, &error);
            let _ = writer.send(&S::not_opened(error), &[]).await;
            let _ = writer.finish().await;
            return;
        }
    };
    if writer.send(&stream.opened(), &[]).await.is_ok() {
        run(stream, reader, writer, &client).await;
    }
}

async fn run<S: ProduceStream>(
    mut stream: S,
    mut reader: FrameReader,
    writer: FrameWriter,
    client: &ClientName,
) {
    let intake = stream.intake();
    let limits = &intake.context.config.limits;
    let (answers, queue) = AckQueue::new(limits.produce_in_flight_max, limits.produce_window_bytes);
    let writing = acks::answer(intake.acknowledged, queue, writer, Arc::clone(&intake.topic), S::join);
    let reading = async {
        let read = read(&mut stream, &mut reader, &answers).await;
        acks::no_more(client, read, reader, answers)
    };
    acks::serve(reading, writing).await;
}

/// Takes batches until the stream ends, or must be reset for the reason given.
async fn read<S: ProduceStream>(
    stream: &mut S,
    reader: &mut FrameReader,
    answers: &AckQueue<S::Answer>,
) -> Result<(), Error> {
    let mut expected = 0;
    while let Some(frame) = answers.next_frame(reader).await? {
        let header: S::Header = frame
            .message()
            .map_err(|_| errors::bad_message(&format!("what comes on a {} stream are batches", S::KIND)))?;
        let request_id = S::request_id(&header);
        if request_id != expected {
            return Err(errors::bad_message(&format!(
                "request ids of a {} stream rise by one, from 0",
                S::KIND
            )));
        }
        expected += 1;
        let room = answers.room(frame.payload.len()).await;
        let submitted = stream.submit(&header, frame.payload).await;
        reader.done();
        // Where nothing is acknowledged, nothing behind a refused batch is taken.
        let last = !stream.intake().acknowledged && submitted.is_err();
        if !answers.push(S::answer(request_id, submitted), room).await || last {
            break;
        }
    }
    Ok(())
}

/// What both kinds of stream have.
pub(crate) struct Intake {
    pub(crate) context: Arc<Context>,
    pub(crate) view: ViewReader,
    pub(crate) topic: Arc<TopicRecord>,
    pub(crate) producer: ProducerId,
    pub(crate) epoch: ProducerEpoch,
    /// The topic's produce filter, as of the topic's version.
    pub(crate) filter: ProduceFilter,
    pub(crate) unpacker: Unpacker,
    pub(crate) turn: Turn,
    target: Target,
    limits: BatchLimits,
    acknowledged: bool,
}

/// Who wants to produce.
pub(crate) struct Producer {
    pub(crate) id: i64,
    pub(crate) epoch: i32,
    pub(crate) generation: u64,
    pub(crate) acks: i32,
}

impl Intake {
    pub(crate) async fn open(
        context: &Arc<Context>,
        unpacker: Unpacker,
        topic: Arc<TopicRecord>,
        target: Target,
        producer: Producer,
    ) -> Result<Self, Error> {
        let epoch = i16::try_from(producer.epoch)
            .map_err(|_| errors::bad_message("a producer epoch is a 16-bit number"))?;
        // The shards would refuse each batch of it, and take it for this broker's fault.
        if producer.id != ProducerId::NONE.get() && (producer.id < 0 || epoch < 0) {
            return Err(errors::bad_message(
                "a producer has an id and an epoch, each 0 or more; without one the id is -1",
            ));
        }
        let filter = open_filter(context, target, &topic, topic.produce_filter).await?;
        let (id, epoch) = (ProducerId::new(producer.id), ProducerEpoch::new(epoch));
        context.producer_ids.check(id).await?;
        // The last thing that can fail: an older stream of this producer is over with it.
        let turn = context.generations.enter(id, target, (epoch, producer.generation))?;
        Ok(Self {
            context: Arc::clone(context),
            view: context.view.clone(),
            limits: context.batch_limits(topic.config.batch_bytes_max),
            topic,
            producer: id,
            epoch,
            filter,
            unpacker,
            turn,
            target,
            acknowledged: Acks::try_from(producer.acks).unwrap_or(Acks::Quorum) == Acks::Quorum,
        })
    }

    /// A batch as a client may send it to this stream; [`Self::unpack`] looks at its records. It names the stream's producer, or
    /// `may_be_nameless`.
    pub(crate) fn check(&self, payload: Bytes, may_be_nameless: bool) -> Result<RecordBatch, Error> {
        let batch = RecordBatch::decode(payload, &self.limits).map_err(|error| errors::batch(&error))?;
        let header = batch.header();
        if header.attributes.control || header.attributes.transactional {
            return Err(Error::new(
                ErrorCode::InvalidBatch,
                "a client does not send control batches, and this release has no transactions",
            ));
        }
        let is_nameless = may_be_nameless && !header.has_producer();
        if header.producer_id != self.producer && !is_nameless {
            return Err(Error::new(
                ErrorCode::InvalidBatch,
                "the batch has another producer id than its stream",
            ));
        }
        Ok(batch)
    }

    /// The records of a batch that was checked, each of them checked too. They may hold room that others wait for: what takes long
    /// and does not need them comes before.
    pub(crate) async fn unpack(&self, batch: &RecordBatch) -> Result<Unpacked, Error> {
        self.unpacker.unpack(batch, &self.limits).await
    }

    /// The largest batch that the topic takes here.
    pub(crate) const fn batch_bytes_max(&self) -> usize {
        self.limits.batch_bytes_max
    }

    /// Notices that the topic was altered or deleted, or its filter exchanged. Answers whether anything changed.
    pub(crate) async fn follow_topic(&mut self) -> Result<bool, Error> {
        let view = self.view.now();
        let topic =
            view.topic(self.topic.id).ok_or_else(|| errors::topic_deleted(self.topic.name.as_str()))?;
        if topic.version == self.topic.version {
            return Ok(false);
        }
        // Opened before anything is taken over: no batch gets past a filter that can't be opened.
        self.filter = self.open_filter(topic, topic.produce_filter).await?;
        self.topic = Arc::clone(topic);
        self.limits = self.context.batch_limits(self.topic.config.batch_bytes_max);
        Ok(true)
    }

    /// Opens a deployment as the topic's produce filter.
    pub(crate) async fn open_filter(
        &self,
        topic: &Arc<TopicRecord>,
        deployment: Option<DeploymentId>,
    ) -> Result<ProduceFilter, Error> {
        open_filter(&self.context, self.target, topic, deployment).await
    }
}

/// A partition's batches are its leader's alone to take, while any broker may place those of a routed stream.
async fn open_filter(
    context: &Context,
    target: Target,
    topic: &Arc<TopicRecord>,
    deployment: Option<DeploymentId>,
) -> Result<ProduceFilter, Error> {
    let opened = ProduceFilter::open(context, topic, deployment).await;
    match target {
        Target::Partition(_) => opened,
        Target::Routed(_) => opened.map_err(|error| components::elsewhere(context, error)),
    }
}
