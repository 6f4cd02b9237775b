use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use tidemill_protocol::frame::RawFrame;
use tidemill_protocol::messages::{
    self, Error, InitProducerReply, PluginVersion, ProduceAck, ProduceAcks, ProduceBatch, ProduceOpen,
    ProduceOpened, Reply, Request, RoutedAck, RoutedAcks, RoutedBatch, RoutedOpen, RoutedOpened,
    RoutedPlacement, SubscribeControl, SubscribeData, SubscribeEvent, SubscribeFailed, SubscribeOpened,
    SubscribeStarted, position, reply, request, subscribe_control, subscribe_event,
};
use tidemill_protocol::record_batch::{BatchLimits, RecordBatch};
use tidemill_protocol::{ErrorCode, Offset};

use super::{Fault, Model, Pipe};

fn error(code: ErrorCode) -> Option<Error> {
    Some(Error::new(code, "as the test has it"))
}

pub async fn produce(mut pipe: Pipe, model: &Model, open: ProduceOpen) -> Option<()> {
    pipe.say(&ProduceOpened::default(), &[]).await?;
    let partition = open.partition.expect("a partition").partition as usize;
    let mut expected_id = 0;
    let mut is_silent = false;
    let mut held = Held::default();
    while let Some(frame) = held.next(&mut pipe, model).await {
        let batch: ProduceBatch = frame.message().expect("a batch");
        assert_eq!(batch.request_id, expected_id, "request ids rise by one on each stream");
        expected_id += 1;
        let bytes = frame.payload.len();
        let records = RecordBatch::decode(frame.payload, &BatchLimits::default()).expect("a good batch");
        assert_eq!(records.header().producer_id.get(), open.producer_id);
        let mut ack = ProduceAck { request_id: batch.request_id, log_append_time: -1, ..Default::default() };
        let fault = model.next_fault();
        match fault {
            Fault::ResetBefore => {
                pipe.reset();
                return None;
            }
            Fault::Garbage => {
                pipe.send.write_all(&[0xff; 32]).await.ok()?;
                continue;
            }
            Fault::WrongId => ack.request_id += 7,
            Fault::Refuse(code) => {
                if code == ErrorCode::RecordsRejected {
                    model.logs[partition].lock().expect("no panic").skip(&records);
                }
                ack.error = error(code);
            }
            _ => match model.logs[partition].lock().expect("no panic").append(records) {
                Ok((base, duplicate)) => (ack.base_offset, ack.duplicate) = (base, duplicate),
                Err(code) => ack.error = error(code),
            },
        }
        model.appended.notify_waiters();
        match fault {
            Fault::ResetAfter => {
                pipe.reset();
                return None;
            }
            Fault::CloseAfter => {
                pipe.connection.close(690u32.into(), b"as the test has it");
                return None;
            }
            Fault::Silence => is_silent = true,
            _ => {}
        }
        if !is_silent && open.acks == i32::from(messages::Acks::Quorum) {
            held.push(ack, bytes, model);
            if model.acks_held.load(Ordering::Relaxed) <= 1 {
                held.say(&mut pipe).await?;
            }
        }
    }
    None
}

/// Acknowledgements that wait, to see how much is sent without them.
#[derive(Default)]
struct Held {
    acks: Vec<ProduceAck>,
    bytes: usize,
}

impl Held {
    /// A further batch would be there long before; its absence is what is waited for.
    const QUIET: Duration = Duration::from_millis(100);

    fn push(&mut self, ack: ProduceAck, bytes: usize, model: &Model) {
        self.acks.push(ack);
        self.bytes += bytes;
        model.most_unanswered.fetch_max(self.acks.len(), Ordering::Relaxed);
        model.most_unanswered_bytes.fetch_max(self.bytes, Ordering::Relaxed);
    }

    /// The next frame. Where enough is held, first whatever still comes before the acknowledgements are sent.
    async fn next(&mut self, pipe: &mut Pipe, model: &Model) -> Option<RawFrame> {
        if self.acks.is_empty() || self.acks.len() < model.acks_held.load(Ordering::Relaxed) {
            return pipe.next().await;
        }
        match tokio::time::timeout(Self::QUIET, pipe.next()).await {
            Ok(frame) => frame,
            Err(_) => {
                self.say(pipe).await?;
                pipe.next().await
            }
        }
    }

    async fn say(&mut self, pipe: &mut Pipe) -> Option<()> {
        self.bytes = 0;
        pipe.say(&ProduceAcks { acks: std::mem::take(&mut self.acks) }, &[]).await
    }
}

/// Everything goes to partition 0.
pub async fn routed(mut pipe: Pipe, model: &Model, _open: RoutedOpen) -> Option<()> {
    let opened = RoutedOpened {
        error: None,
        partitioner_epoch: model.partitioner_epoch.load(Ordering::Relaxed) as u32,
        partition_count: model.logs.len() as u32,
    };
    pipe.say(&opened, &[]).await?;
    while let Some(frame) = pipe.next().await {
        let batch: RoutedBatch = frame.message().expect("a batch");
        model.routed_seen.lock().expect("no panic").push(batch);
        let records = RecordBatch::decode(frame.payload, &BatchLimits::default()).expect("a good batch");
        let record_count = records.header().record_count();
        let mut ack = RoutedAck { request_id: batch.request_id, ..RoutedAck::default() };
        let fault = model.next_fault();
        match fault {
            Fault::ResetBefore => {
                pipe.reset();
                return None;
            }
            Fault::ResetAfter => {
                model.logs[0].lock().expect("no panic").append(records).expect("in order");
                pipe.reset();
                return None;
            }
            Fault::Refuse(code) => ack.error = error(code),
            _ => {}
        }
        // Stored in part: partition 0 has its own.
        if ack.error.is_none() || fault == Fault::Refuse(ErrorCode::PartlyStored) {
            let (base_offset, duplicate) =
                model.logs[0].lock().expect("no panic").append(records).expect("in order");
            ack.placements = vec![RoutedPlacement { partition: 0, base_offset, record_count }];
            ack.duplicate = duplicate;
        }
        pipe.say(&RoutedAcks { acks: vec![ack] }, &[]).await?;
    }
    None
}

struct Reading {
    partition: usize,
    offset: i64,
    generation: u64,
    credit: i64,
    unreturned: usize,
    paused: bool,
}

pub async fn subscribe(mut pipe: Pipe, model: &Model) -> Option<()> {
    pipe.say(&SubscribeOpened::default(), &[]).await?;
    let mut readings: HashMap<u32, Reading> = HashMap::new();
    loop {
        let mut appended = std::pin::pin!(model.appended.notified());
        appended.as_mut().enable();
        while let Some(id) = next_due(model, &readings) {
            let reading = readings.get_mut(&id).expect("due");
            send_data(&mut pipe, model, id, reading).await?;
        }
        let frame = tokio::select! {
            () = appended => continue,
            frame = pipe.next() => frame?,
        };
        let control: SubscribeControl = frame.message().expect("a control message");
        handle(&mut pipe, model, &mut readings, control.kind.expect("of some kind")).await?;
    }
}

fn next_due(model: &Model, readings: &HashMap<u32, Reading>) -> Option<u32> {
    let due = |reading: &Reading| {
        let end = model.logs[reading.partition].lock().expect("no panic").end;
        !reading.paused && reading.credit > 0 && reading.offset < end
    };
    readings.iter().find(|(_, reading)| due(reading)).map(|(id, _)| *id)
}

/// One batch, the one that holds the offset.
async fn send_data(pipe: &mut Pipe, model: &Model, id: u32, reading: &mut Reading) -> Option<()> {
    let (batch, end) = {
        let log = model.logs[reading.partition].lock().expect("no panic");
        let place =
            log.batches.partition_point(|batch| batch.header().next_offset() <= Offset::new(reading.offset));
        (log.batches[place].clone(), log.end)
    };
    let mut payload = batch.bytes().to_vec();
    match model.next_fault() {
        Fault::ResetBefore => {
            pipe.reset();
            return None;
        }
        Fault::CloseAfter => {
            pipe.connection.close(690u32.into(), b"as the test has it");
            return None;
        }
        Fault::Garbage => {
            pipe.send.write_all(&[0xff; 32]).await.ok()?;
            return Some(());
        }
        Fault::Corrupt => *payload.last_mut().expect("not empty") ^= 1,
        _ => {}
    }
    reading.offset = batch.header().next_offset().get();
    reading.credit -= payload.len() as i64;
    reading.unreturned += payload.len();
    model.most_unreturned.fetch_max(reading.unreturned, Ordering::Relaxed);
    let data = SubscribeData {
        id,
        generation: reading.generation,
        next_offset: reading.offset,
        high_watermark: end,
        bytes_scanned: payload.len() as u64,
    };
    pipe.say(&event(subscribe_event::Kind::Data(data)), &payload).await
}

const fn event(kind: subscribe_event::Kind) -> SubscribeEvent {
    SubscribeEvent { kind: Some(kind) }
}

async fn handle(
    pipe: &mut Pipe,
    model: &Model,
    readings: &mut HashMap<u32, Reading>,
    kind: subscribe_control::Kind,
) -> Option<()> {
    use subscribe_control::Kind;
    match kind {
        Kind::Add(add) => {
            let partition = add.partition.expect("a partition").partition as usize;
            let reading = Reading {
                partition,
                offset: 0,
                generation: 0,
                credit: add.credit_bytes as i64,
                unreturned: 0,
                paused: add.paused,
            };
            assert!(readings.insert(add.id, reading).is_none(), "ids are unique on a stream");
            start(pipe, model, readings, add.id, add.start).await?;
        }
        Kind::Remove(remove) => drop(readings.remove(&remove.id).expect("known")),
        Kind::Seek(seek) => {
            let reading = readings.get_mut(&seek.id).expect("known");
            assert!(seek.generation > reading.generation);
            reading.generation = seek.generation;
            start(pipe, model, readings, seek.id, seek.start).await?;
        }
        Kind::Pause(pause) => readings.get_mut(&pause.id).expect("known").paused = pause.paused,
        Kind::Credit(credit) => {
            let reading = readings.get_mut(&credit.id).expect("known");
            reading.credit += credit.bytes as i64;
            reading.unreturned =
                reading.unreturned.checked_sub(credit.bytes as usize).expect("no more than was sent");
        }
    }
    Some(())
}

async fn start(
    pipe: &mut Pipe,
    model: &Model,
    readings: &mut HashMap<u32, Reading>,
    id: u32,
    position: Option<messages::Position>,
) -> Option<()> {
    let reading = readings.get_mut(&id).expect("known");
    let end = model.logs[reading.partition].lock().expect("no panic").end;
    let offset = match position.and_then(|position| position.at).expect("a position") {
        position::At::Offset(offset) => offset,
        position::At::Latest(_) => end,
        position::At::Earliest(_) | position::At::Timestamp(_) => 0,
    };
    let generation = reading.generation;
    if offset > end {
        readings.remove(&id);
        let failed = SubscribeFailed { id, generation, error: error(ErrorCode::OffsetOutOfRange) };
        return pipe.say(&event(subscribe_event::Kind::Failed(failed)), &[]).await;
    }
    reading.offset = offset;
    let started = SubscribeStarted { id, generation, offset, log_start_offset: 0, high_watermark: end };
    pipe.say(&event(subscribe_event::Kind::Started(started)), &[]).await
}

pub async fn request(mut pipe: Pipe, model: &Model, request: Request) -> Option<()> {
    use request::Body;
    let planned = model.request_errors.lock().expect("no panic").pop_front();
    if let Some(code) = planned {
        pipe.say(&Reply { error: error(code), body: None }, &[]).await?;
        return pipe.send.finish().ok();
    }
    let body = match request.body.expect("a body") {
        Body::Metadata(_) => reply::Body::Metadata(model.metadata()),
        Body::InitProducer(_) => {
            let producer_id = model.next_producer.fetch_add(1, Ordering::Relaxed);
            reply::Body::InitProducer(InitProducerReply { producer_id, producer_epoch: 0 })
        }
        Body::CommitOffsets(commit) => {
            let errors = commit.offsets.iter().map(|_| Error::default()).collect();
            *model.committed.lock().expect("no panic") = commit.offsets;
            reply::Body::CommitOffsets(messages::CommitOffsetsReply { errors })
        }
        Body::DescribeGroup(describe) => {
            let offsets = model.committed.lock().expect("no panic").clone();
            reply::Body::Group(messages::GroupDescription { group: describe.group, offsets })
        }
        Body::UploadPlugin(upload) => {
            let mut bytes = Vec::new();
            // The first frame's payload was taken with the opening: the digest tells whether all is there.
            while let Some(frame) = pipe.next().await {
                bytes.extend_from_slice(&frame.payload);
            }
            *model.uploaded.lock().expect("no panic") = Bytes::from(bytes);
            reply::Body::PluginVersion(PluginVersion { size: upload.size, ..Default::default() })
        }
        // Not answered at all.
        Body::ClusterStatus(_) => {
            pipe.connection.closed().await;
            return None;
        }
        // Nonsense.
        Body::Metrics(_) => reply::Body::Empty(messages::Empty {}),
        other => panic!("the fake broker does not know {other:?}"),
    };
    pipe.say(&Reply { error: None, body: Some(body) }, &[]).await?;
    pipe.send.finish().ok()?;
    // The reply must be out before the stream is dropped.
    pipe.send.stopped().await.ok().map(drop)
}
