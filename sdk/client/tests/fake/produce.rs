use std::sync::atomic::Ordering;
use std::time::Duration;

use tidemill_protocol::ErrorCode;
use tidemill_protocol::frame::RawFrame;
use tidemill_protocol::messages::{
    self, ProduceAck, ProduceAcks, ProduceBatch, ProduceOpen, ProduceOpened, RoutedAck, RoutedAcks,
    RoutedBatch, RoutedOpen, RoutedOpened, RoutedPlacement,
};
use tidemill_protocol::record_batch::{BatchLimits, RecordBatch};

use super::streams::error;
use super::{Fault, Model, Node, Pipe};

pub async fn produce(mut pipe: Pipe, node: &Node, open: ProduceOpen) -> Option<()> {
    let model = &*node.model;
    let number = open.partition.as_ref().expect("a partition").partition;
    let partition = number as usize;
    model.opened.lock().expect("no panic").push((node.id, number, open.leader_epoch));
    if model.is_deleted() {
        return refuse(pipe, ErrorCode::UnknownTopic).await;
    }
    let Some(reign) = node.reign(partition, open.leader_epoch) else {
        return refuse(pipe, ErrorCode::NotLeader).await;
    };
    if !model.enter(open.producer_id, number, open.generation) {
        return refuse(pipe, ErrorCode::StaleGeneration).await;
    }
    pipe.say(&ProduceOpened { error: None, leader_epoch: reign.1 }, &[]).await?;
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
            Fault::Nonsense => {
                // A number where a list of acknowledgements belongs.
                pipe.say(&ProduceBatch { request_id: 1 }, &[]).await?;
                continue;
            }
            Fault::WrongId => ack.request_id += 7,
            Fault::Refuse(code) => {
                if code == ErrorCode::RecordsRejected {
                    model.logs[partition].lock().expect("no panic").skip(&records);
                }
                ack.error = error(code);
            }
            _ if !model.is_newest(open.producer_id, number, open.generation) => {
                ack.error = error(ErrorCode::StaleGeneration);
            }
            _ => match append(model, partition, reign, records) {
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

async fn refuse(mut pipe: Pipe, code: ErrorCode) -> Option<()> {
    pipe.say(&ProduceOpened { error: error(code), leader_epoch: -1 }, &[]).await?;
    pipe.send.finish().ok()?;
    pipe.send.stopped().await.ok().map(drop)
}

/// Appends while the reign lasts that the stream was opened under.
fn append(
    model: &Model,
    partition: usize,
    reign: (u32, i32),
    records: RecordBatch,
) -> Result<(i64, bool), ErrorCode> {
    let leads = model.leads.lock().expect("no panic");
    if leads[partition] != reign {
        return Err(ErrorCode::NotLeader);
    }
    model.logs[partition].lock().expect("no panic").append(records)
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
pub async fn routed(mut pipe: Pipe, node: &Node, open: RoutedOpen) -> Option<()> {
    let model = &*node.model;
    node.routed.fetch_add(1, Ordering::Relaxed);
    let refused = if model.is_deleted() {
        Some(ErrorCode::UnknownTopic)
    } else {
        let is_newest = model.enter(open.producer_id, u32::MAX, open.generation);
        (!is_newest).then_some(ErrorCode::StaleGeneration)
    };
    if let Some(code) = refused {
        pipe.say(&RoutedOpened { error: error(code), ..Default::default() }, &[]).await?;
        return pipe.send.finish().ok();
    }
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
            Fault::Early => {
                ack.error = error(ErrorCode::PartlyStored).map(|error| error.with_retriable(true));
            }
            Fault::Overtaking => {
                ack.error = error(ErrorCode::OutOfOrderSequence).map(|error| error.with_retriable(true));
            }
            _ => {}
        }
        // Stored in part: partition 0 has its own.
        if ack.error.is_none() || matches!(fault, Fault::Refuse(ErrorCode::PartlyStored) | Fault::Early) {
            let (base_offset, duplicate) =
                model.logs[0].lock().expect("no panic").append(records).expect("in order");
            ack.placements = vec![RoutedPlacement { partition: 0, base_offset, record_count }];
            ack.duplicate = duplicate;
        }
        if fault == Fault::Unheard {
            continue;
        }
        pipe.say(&RoutedAcks { acks: vec![ack] }, &[]).await?;
    }
    None
}
