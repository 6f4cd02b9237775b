//! What was acknowledged, and whether it is there.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use tidemill_protocol::{Offset, TopicPartition};
use tidemill_shard::{Fetch, Shard};

/// Of a record batch: what stands before is the broker's to fill in.
const FROM_MAGIC: usize = 16;
const FETCH_BYTES: usize = 64 << 10;
const PRODUCER: std::ops::Range<usize> = 43..51;
const SEQUENCE: std::ops::Range<usize> = 53..57;

/// A promise that was broken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// The broker does not start on what it left on its disk.
    #[error("the broker does not start: {reason}")]
    NoStart {
        /// What it says.
        reason: String,
    },
    /// A batch that was acknowledged at an offset is not there.
    #[error("{partition}: what was acknowledged at offset {offset} is not there")]
    Lost {
        /// Where.
        partition: TopicPartition,
        /// At which offset.
        offset: Offset,
    },
    /// A batch is there that nobody sent, or twice.
    #[error("{partition}: what stands at offset {offset} was never sent, or stands before already")]
    Strange {
        /// Where.
        partition: TopicPartition,
        /// At which offset.
        offset: Offset,
    },
    /// A producer's batches are not in the order in which it sent them, or one is missing.
    #[error("{partition}: sequence {found} stands at offset {offset}, where {expected} is next")]
    Disorder {
        /// Where.
        partition: TopicPartition,
        /// At which offset.
        offset: Offset,
        /// What would be next.
        expected: i32,
        /// What is there.
        found: i32,
    },
    /// What a task emits is not in the order of its steps, or something is missing.
    #[error(
        "{partition}: at offset {offset} is what a task emits of {source_partition} from {found} on, where {expected} is next"
    )]
    StepMissing {
        /// Where.
        partition: TopicPartition,
        /// At which offset.
        offset: Offset,
        /// What the task reads.
        source_partition: TopicPartition,
        /// Where the step would begin that is next.
        expected: Offset,
        /// Where the one begins that is there.
        found: Offset,
    },
    /// A broken promise among several brokers.
    #[error("{0}")]
    Cluster(String),
    /// A partition can't be read.
    #[error("{partition}: offset {offset} can't be read: {reason}")]
    Unreadable {
        /// Where.
        partition: TopicPartition,
        /// At which offset.
        offset: Offset,
        /// Why.
        reason: String,
    },
}

/// What clients sent, and what was acknowledged.
#[derive(Default)]
pub(crate) struct Ledger {
    sent: BTreeSet<Digest>,
    acknowledged: BTreeMap<(TopicPartition, Offset), Digest>,
    steps: BTreeMap<Digest, Step>,
    /// Where a partition may start by now, at the latest.
    may_start: BTreeMap<TopicPartition, Offset>,
    /// Where it must, at the earliest.
    must_start: BTreeMap<TopicPartition, Offset>,
}

/// What one batch that a task emits says: that it has read a source from one offset to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) source: TopicPartition,
    pub(crate) from: Offset,
    pub(crate) to: Offset,
}

/// What a shard holds.
pub(crate) struct Held {
    /// The digest of all batches as they stand.
    pub(crate) batches: blake3::Hash,
    /// Up to where tasks have read their sources, by what they have emitted to here.
    pub(crate) steps_to: BTreeMap<TopicPartition, Offset>,
}

type Digest = [u8; 32];

impl Ledger {
    pub(crate) fn send(&mut self, batch: &Bytes) -> Digest {
        let digest = digest(batch);
        self.sent.insert(digest);
        digest
    }

    /// The same of a batch that a task emits.
    pub(crate) fn send_step(&mut self, batch: &Bytes, step: Step) {
        let digest = self.send(batch);
        self.steps.insert(digest, step);
    }

    pub(crate) fn acknowledge(&mut self, partition: TopicPartition, offset: Offset, batch: Digest) {
        self.acknowledged.insert((partition, offset), batch);
    }

    /// Somebody asks for what stands before `start` to be gone.
    pub(crate) fn lets_go(&mut self, partition: TopicPartition, start: Offset) {
        self.may_start.insert(partition, start);
    }

    /// It was acknowledged that it is.
    pub(crate) fn has_let_go(&mut self, partition: TopicPartition, start: Offset) {
        self.must_start.insert(partition, start);
    }

    fn check_start(&self, partition: TopicPartition, start: Offset) -> Result<(), Violation> {
        let known = |starts: &BTreeMap<_, _>| starts.get(&partition).copied().unwrap_or(Offset::ZERO);
        let (earliest, latest) = (known(&self.must_start), known(&self.may_start));
        if earliest <= start && start <= latest {
            return Ok(());
        }
        let told = format!("{partition} starts at {start}, where {earliest} to {latest} was asked for");
        Err(Violation::Cluster(told))
    }

    pub(crate) fn acknowledged(&self) -> usize {
        self.acknowledged.len()
    }

    /// Up to where a partition's acknowledged batches reach.
    pub(crate) fn acknowledged_end(&self, partition: TopicPartition) -> Option<Offset> {
        let range = (partition, Offset::ZERO)..=(partition, Offset::new(i64::MAX));
        self.acknowledged.range(range).next_back().map(|((_, offset), _)| offset.plus(1))
    }

    /// Reads everything, from memory and from segments, and compares with what was acknowledged in the shard's partitions.
    pub(crate) fn check(
        &self,
        shard: &Shard,
        is_here: impl Fn(TopicPartition) -> bool,
    ) -> Result<Held, Violation> {
        let mut steps_to = BTreeMap::new();
        let mut stored = BTreeMap::new();
        let mut seen = BTreeSet::new();
        let mut sequences = BTreeMap::new();
        let mut all = blake3::Hasher::new();
        let mut starts = BTreeMap::new();
        for (partition, view) in shard.partitions() {
            self.check_start(partition, view.log_start)?;
            starts.insert(partition, view.log_start);
            let mut from = view.log_start;
            loop {
                let unreadable = |reason: String| Violation::Unreadable { partition, offset: from, reason };
                let batches = match shard.fetch(partition, from, FETCH_BYTES) {
                    Fetch::Memory(batches) => batches,
                    Fetch::Disk(disk) => disk.run().map_err(|error| unreadable(error.to_string()))?,
                    other => return Err(unreadable(format!("{other:?}"))),
                };
                if batches.is_empty() {
                    break;
                }
                for batch in batches.contiguous() {
                    let offset = base_offset(&batch);
                    let digest = digest(&batch);
                    if !self.sent.contains(&digest) || !seen.insert((partition, digest)) {
                        return Err(Violation::Strange { partition, offset });
                    }
                    if let Some((producer, sequence)) = produced(&batch) {
                        // What its first one here would be, nobody knows of a log whose beginning is gone.
                        let first = if view.log_start > Offset::ZERO { sequence } else { 0 };
                        let before = sequences.insert((partition, producer), sequence + 1);
                        let expected = before.unwrap_or(first);
                        if sequence != expected {
                            return Err(Violation::Disorder { partition, offset, expected, found: sequence });
                        }
                    }
                    if let Some(Step { source, from, to }) = self.steps.get(&digest).copied() {
                        let expected = steps_to.insert(source, to).unwrap_or(Offset::ZERO);
                        if from != expected {
                            let (source_partition, found) = (source, from);
                            return Err(Violation::StepMissing {
                                partition,
                                offset,
                                source_partition,
                                expected,
                                found,
                            });
                        }
                    }
                    all.update(&batch);
                    stored.insert((partition, offset), digest);
                }
                from = batches.next;
            }
        }
        let is_kept = |(partition, offset): &(TopicPartition, Offset)| {
            is_here(*partition) && starts.get(partition).is_none_or(|start| offset >= start)
        };
        let mut here = self.acknowledged.iter().filter(|(place, _)| is_kept(place));
        match here.find(|(place, batch)| stored.get(place) != Some(*batch)) {
            Some(((partition, offset), _)) => Err(Violation::Lost { partition: *partition, offset: *offset }),
            None => Ok(Held { batches: all.finalize(), steps_to }),
        }
    }
}

/// Producer and sequence of a batch of one record, where an idempotent producer made it.
fn produced(batch: &[u8]) -> Option<(i64, i32)> {
    let id = i64::from_be_bytes(batch.get(PRODUCER)?.try_into().ok()?);
    let sequence = i32::from_be_bytes(batch.get(SEQUENCE)?.try_into().ok()?);
    (id >= 0).then_some((id, sequence))
}

fn base_offset(batch: &Bytes) -> Offset {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&batch[..8]);
    Offset::new(i64::from_be_bytes(bytes))
}

fn digest(batch: &Bytes) -> Digest {
    *blake3::hash(&batch[FROM_MAGIC..]).as_bytes()
}
