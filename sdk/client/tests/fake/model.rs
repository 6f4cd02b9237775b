use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};

use bytes::Bytes;
use tidemill_protocol::messages::{self, BrokerInfo, PartitionInfo, TopicInfo};
use tidemill_protocol::record_batch::{BatchLimits, Compression, RecordBatch};
use tidemill_protocol::{ErrorCode, LeaderEpoch, Offset};
use tokio::sync::{Notify, watch};

pub const TOPIC: &str = "plays";

pub fn topic_id() -> Bytes {
    Bytes::from_static(&[9; 16])
}

/// What a broker says of the topic that has not heard of it, or has heard of its end.
pub fn unknown_topic() -> TopicInfo {
    let error = Some(messages::Error::new(ErrorCode::UnknownTopic, "there is none"));
    TopicInfo { name: TOPIC.to_owned(), error, ..TopicInfo::default() }
}

/// What happens instead of the usual, once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    Honest,
    /// The stream is reset before the batch is stored, or before data is sent.
    ResetBefore,
    /// The batch is stored, the stream is reset before the acknowledgement.
    ResetAfter,
    /// As before, and the connection with it.
    CloseAfter,
    /// The batch is refused.
    Refuse(ErrorCode),
    /// The batch is stored, its acknowledgement never sent, nor any other on the stream.
    Silence,
    /// A routed batch is stored in part: another shard has not had those before it.
    Early,
    /// A routed batch came before those that it follows, and nothing of it is stored.
    Overtaking,
    /// A routed batch is stored, and its acknowledgement never sent.
    Unheard,
    /// Acknowledges a batch that was never sent.
    WrongId,
    /// Bytes that are no frame.
    Garbage,
    /// A frame, and what is in it no acknowledgement.
    Nonsense,
    /// A damaged batch.
    Corrupt,
}

/// The broker's memory.
pub struct Model {
    pub logs: Vec<Mutex<Log>>,
    pub appended: Notify,
    /// What befalls the next batches or data frames.
    pub faults: Mutex<VecDeque<Fault>>,
    /// What the next requests are answered with.
    pub request_errors: Mutex<VecDeque<ErrorCode>>,
    pub next_producer: AtomicI64,
    pub routed_seen: Mutex<Vec<messages::RoutedBatch>>,
    pub partitioner_epoch: AtomicU64,
    pub committed: Mutex<Vec<messages::CommittedOffset>>,
    /// Acknowledges batches of a partition only when so many are unanswered, and no further one comes.
    pub acks_held: AtomicUsize,
    /// Most batches, and most bytes of them, that were unanswered on one produce stream.
    pub most_unanswered: AtomicUsize,
    pub most_unanswered_bytes: AtomicUsize,
    /// Largest number of bytes sent to one partition without credit having come back.
    pub most_unreturned: AtomicUsize,
    pub uploaded: Mutex<Bytes>,
    /// Leader and epoch of each partition.
    pub leads: Mutex<Vec<(u32, i32)>>,
    /// The brokers that metadata tell of.
    pub brokers: Mutex<Vec<BrokerInfo>>,
    /// Those that nobody can forward to.
    pub down: Mutex<HashSet<u32>>,
    /// Version of the metadata, and a bell for those who push them.
    pub version: watch::Sender<u64>,
    /// The topic is gone.
    pub is_deleted: AtomicBool,
    /// The newest stream of each producer to each partition; `u32::MAX` where the broker places the records.
    pub generations: Mutex<HashMap<(i64, u32), u64>>,
    /// Broker, partition and leader epoch of each produce stream that was opened.
    pub opened: Mutex<Vec<(u32, u32, i32)>>,
    /// Broker, partition, offset and floor of each subscription that began.
    pub reads: Mutex<Vec<(u32, usize, i64, i64)>>,
}

#[derive(Default)]
pub struct Log {
    pub batches: Vec<RecordBatch>,
    pub end: i64,
    /// Next sequence per producer, and the last results.
    producers: HashMap<i64, (i32, VecDeque<(i32, i64)>)>,
}

impl Model {
    pub(super) fn new(partitions: u32) -> Self {
        Self {
            logs: (0..partitions).map(|_| Mutex::default()).collect(),
            appended: Notify::new(),
            faults: Mutex::default(),
            request_errors: Mutex::default(),
            next_producer: AtomicI64::new(1),
            routed_seen: Mutex::default(),
            partitioner_epoch: AtomicU64::new(1),
            committed: Mutex::default(),
            acks_held: AtomicUsize::new(1),
            most_unanswered: AtomicUsize::new(0),
            most_unanswered_bytes: AtomicUsize::new(0),
            most_unreturned: AtomicUsize::new(0),
            uploaded: Mutex::default(),
            leads: Mutex::new(vec![(1, 0); partitions as usize]),
            brokers: Mutex::default(),
            down: Mutex::default(),
            version: watch::Sender::new(1),
            is_deleted: AtomicBool::new(false),
            generations: Mutex::default(),
            opened: Mutex::default(),
            reads: Mutex::default(),
        }
    }

    pub fn script(&self, faults: impl IntoIterator<Item = Fault>) {
        *self.faults.lock().expect("no panic") = faults.into_iter().collect();
    }

    pub fn next_fault(&self) -> Fault {
        self.faults.lock().expect("no panic").pop_front().unwrap_or(Fault::Honest)
    }

    pub fn metadata(&self) -> messages::Metadata {
        let brokers = self.brokers.lock().expect("no panic").clone();
        let replicas: Vec<u32> = brokers.iter().map(|broker| broker.broker_id).collect();
        let leads = self.leads.lock().expect("no panic").clone();
        let partitions = (0..).zip(leads).map(|(partition, (leader, leader_epoch))| PartitionInfo {
            partition,
            shard: 1,
            leader,
            leader_epoch,
            replicas: replicas.clone(),
        });
        let topic = match self.is_deleted() {
            true => unknown_topic(),
            false => TopicInfo {
                topic_id: topic_id(),
                name: TOPIC.to_owned(),
                partitions: partitions.collect(),
                ..TopicInfo::default()
            },
        };
        messages::Metadata { version: *self.version.borrow(), brokers, topics: vec![topic] }
    }

    /// Another leader, in the next epoch; 0: nobody yet. Brokers that push metadata do.
    pub fn elect(&self, partition: usize, leader: u32) {
        let mut leads = self.leads.lock().expect("no panic");
        leads[partition] = (leader, leads[partition].1 + 1);
        drop(leads);
        self.version.send_modify(|version| *version += 1);
    }

    /// The topic goes. Brokers that push metadata say so.
    pub fn delete(&self) {
        self.is_deleted.store(true, Ordering::Relaxed);
        self.version.send_modify(|version| *version += 1);
    }

    pub fn is_deleted(&self) -> bool {
        self.is_deleted.load(Ordering::Relaxed)
    }

    /// Whether this stream is its producer's newest, or becomes it.
    pub fn enter(&self, producer: i64, partition: u32, generation: u64) -> bool {
        let mut generations = self.generations.lock().expect("no panic");
        let newest = generations.entry((producer, partition)).or_insert(0);
        let is_newer = producer < 0 || generation > *newest;
        *newest = generation.max(*newest);
        is_newer
    }

    pub fn is_newest(&self, producer: i64, partition: u32, generation: u64) -> bool {
        let generations = self.generations.lock().expect("no panic");
        producer < 0 || generations.get(&(producer, partition)) == Some(&generation)
    }

    /// How each batch of a partition was compressed, and how many records it has.
    pub fn batches(&self, partition: usize) -> Vec<(Compression, u32)> {
        let log = self.logs[partition].lock().expect("no panic");
        log.batches.iter().map(|b| (b.header().attributes.compression, b.header().record_count())).collect()
    }

    /// All values of a partition, in order.
    pub fn values(&self, partition: usize) -> Vec<Bytes> {
        let log = self.logs[partition].lock().expect("no panic");
        let mut values = Vec::new();
        for batch in &log.batches {
            let records = batch.records(&BatchLimits::default()).expect("valid");
            for record in &records {
                let record = record.expect("valid");
                assert_eq!(record.offset.get(), values.len() as i64);
                values.push(records.slice_of(record.value.expect("a value")));
            }
        }
        values
    }
}

impl Log {
    /// Appends as a broker does: in sequence, once.
    pub fn append(&mut self, batch: RecordBatch) -> Result<(i64, bool), ErrorCode> {
        let header = *batch.header();
        let count = header.record_count;
        if header.producer_id.get() >= 0 {
            let sequence = header.base_sequence.get();
            let known = self.producers.entry(header.producer_id.get()).or_default();
            if let Some((_, base)) = known.1.iter().find(|(first, _)| *first == sequence) {
                return Ok((*base, true));
            }
            if known.0 != sequence {
                return Err(ErrorCode::OutOfOrderSequence);
            }
            known.0 += count;
            known.1.push_back((sequence, self.end));
            if known.1.len() > 5 {
                known.1.pop_front();
            }
        }
        let base = self.end;
        self.batches.push(batch.placed_at(Offset::new(base), LeaderEpoch::new(0)));
        self.end += i64::from(count);
        Ok((base, false))
    }

    /// A batch that a plugin refuses uses its sequences all the same.
    pub fn skip(&mut self, batch: &RecordBatch) {
        let header = batch.header();
        self.producers.entry(header.producer_id.get()).or_default().0 += header.record_count;
    }
}
