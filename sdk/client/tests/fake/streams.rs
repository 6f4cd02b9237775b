use std::collections::HashMap;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use tidemill_protocol::messages::{
    self, Error, InitProducerReply, PluginVersion, Reply, Request, SubscribeAdd, SubscribeControl,
    SubscribeData, SubscribeEvent, SubscribeFailed, SubscribeOpened, SubscribeStarted, position, reply,
    request, subscribe_control, subscribe_event,
};
use tidemill_protocol::{ErrorCode, Offset};

use super::{Fault, Model, Node, Pipe};

pub(super) fn error(code: ErrorCode) -> Option<Error> {
    Some(Error::new(code, "as the test has it"))
}

struct Reading {
    partition: usize,
    offset: i64,
    generation: u64,
    credit: i64,
    unreturned: usize,
    paused: bool,
    has_begun: bool,
}

pub async fn subscribe(mut pipe: Pipe, node: &Node) -> Option<()> {
    pipe.say(&SubscribeOpened::default(), &[]).await?;
    let model = &*node.model;
    let mut readings: HashMap<u32, Reading> = HashMap::new();
    // Those whose floor this replica has not reached.
    let mut waiting: Vec<SubscribeAdd> = Vec::new();
    loop {
        let mut appended = std::pin::pin!(model.appended.notified());
        appended.as_mut().enable();
        let is_due = |add: &mut SubscribeAdd| {
            let partition = add.partition.as_ref().expect("a partition").partition as usize;
            node.end(partition) >= add.floor_offset
        };
        for add in waiting.extract_if(.., is_due) {
            start(&mut pipe, node, &mut readings, add.id, add.start).await?;
        }
        while let Some(id) = next_due(node, &readings) {
            let reading = readings.get_mut(&id).expect("due");
            send_data(&mut pipe, node, id, reading).await?;
        }
        let frame = tokio::select! {
            () = appended => continue,
            frame = pipe.next() => frame?,
        };
        let control: SubscribeControl = frame.message().expect("a control message");
        let kind = control.kind.expect("of some kind");
        handle(&mut pipe, node, &mut readings, &mut waiting, kind).await?;
    }
}

fn next_due(node: &Node, readings: &HashMap<u32, Reading>) -> Option<u32> {
    let due = |reading: &Reading| {
        let end = node.end(reading.partition);
        reading.has_begun && !reading.paused && reading.credit > 0 && reading.offset < end
    };
    readings.iter().find(|(_, reading)| due(reading)).map(|(id, _)| *id)
}

/// One batch, the one that holds the offset.
async fn send_data(pipe: &mut Pipe, node: &Node, id: u32, reading: &mut Reading) -> Option<()> {
    let (model, end) = (&*node.model, node.end(reading.partition));
    let batch = {
        let log = model.logs[reading.partition].lock().expect("no panic");
        let place =
            log.batches.partition_point(|batch| batch.header().next_offset() <= Offset::new(reading.offset));
        log.batches[place].clone()
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
    node: &Node,
    readings: &mut HashMap<u32, Reading>,
    waiting: &mut Vec<SubscribeAdd>,
    kind: subscribe_control::Kind,
) -> Option<()> {
    use subscribe_control::Kind;
    match kind {
        Kind::Add(add) => {
            let partition = add.partition.as_ref().expect("a partition").partition as usize;
            let reading = Reading {
                partition,
                offset: 0,
                generation: 0,
                credit: add.credit_bytes as i64,
                unreturned: 0,
                paused: add.paused,
                has_begun: false,
            };
            assert!(readings.insert(add.id, reading).is_none(), "ids are unique on a stream");
            let at = add.start.and_then(|start| start.at);
            let offset = if let Some(position::At::Offset(offset)) = at { offset } else { -1 };
            node.model.reads.lock().expect("no panic").push((node.id, partition, offset, add.floor_offset));
            waiting.push(add);
        }
        Kind::Remove(remove) => {
            // It may have failed meanwhile.
            readings.remove(&remove.id);
            waiting.retain(|add| add.id != remove.id);
        }
        Kind::Seek(seek) => {
            let reading = readings.get_mut(&seek.id).expect("known");
            assert!(seek.generation > reading.generation);
            reading.generation = seek.generation;
            waiting.retain(|add| add.id != seek.id);
            start(pipe, node, readings, seek.id, seek.start).await?;
        }
        Kind::Pause(pause) => readings.get_mut(&pause.id).expect("known").paused = pause.paused,
        Kind::Credit(credit) => {
            let Some(reading) = readings.get_mut(&credit.id) else { return Some(()) };
            reading.credit += credit.bytes as i64;
            reading.unreturned =
                reading.unreturned.checked_sub(credit.bytes as usize).expect("no more than was sent");
        }
    }
    Some(())
}

async fn start(
    pipe: &mut Pipe,
    node: &Node,
    readings: &mut HashMap<u32, Reading>,
    id: u32,
    position: Option<messages::Position>,
) -> Option<()> {
    let reading = readings.get_mut(&id).expect("known");
    let end = node.end(reading.partition);
    if node.model.is_deleted() {
        return fail(pipe, readings, id, ErrorCode::UnknownTopic).await;
    }
    let offset = match position.and_then(|position| position.at).expect("a position") {
        position::At::Offset(offset) => offset,
        position::At::Latest(_) => end,
        position::At::Earliest(_) | position::At::Timestamp(_) => 0,
    };
    let generation = reading.generation;
    if offset > end {
        return fail(pipe, readings, id, ErrorCode::OffsetOutOfRange).await;
    }
    reading.offset = offset;
    reading.has_begun = true;
    let started = SubscribeStarted { id, generation, offset, log_start_offset: 0, high_watermark: end };
    pipe.say(&event(subscribe_event::Kind::Started(started)), &[]).await
}

/// Ends a partition.
async fn fail(pipe: &mut Pipe, readings: &mut HashMap<u32, Reading>, id: u32, code: ErrorCode) -> Option<()> {
    let generation = readings.remove(&id).expect("known").generation;
    let failed = SubscribeFailed { id, generation, error: error(code) };
    pipe.say(&event(subscribe_event::Kind::Failed(failed)), &[]).await
}

pub async fn request(mut pipe: Pipe, node: &Node, request: Request) -> Option<()> {
    use request::Body;
    let model: &Model = &node.model;
    node.requests.fetch_add(1, Ordering::Relaxed);
    let refused = node.refuses.load(Ordering::Relaxed).then_some(ErrorCode::NotLeader);
    let planned = || model.request_errors.lock().expect("no panic").pop_front();
    if let Some(code) = refused.or_else(planned) {
        pipe.say(&Reply { error: error(code), body: None }, &[]).await?;
        return pipe.send.finish().ok();
    }
    let body = match request.body.expect("a body") {
        Body::Metadata(_) => reply::Body::Metadata(node.metadata()),
        Body::CreateJoinToken(request) => reply::Body::JoinToken(messages::JoinToken {
            token: format!("tmj1.{}", request.broker_id),
            expires_at: request.valid_ms as i64,
        }),
        Body::DrainBroker(_) | Body::RemoveBroker(_) | Body::AlterCluster(_) => {
            reply::Body::Empty(messages::Empty {})
        }
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
