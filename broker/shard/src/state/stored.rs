//! From memory to rows at a checkpoint, and back at a start.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use tidemill_controller::Controller;
use tidemill_coordinator::Groups;
use tidemill_log::segment::{PartitionEnds, SegmentEnd};
use tidemill_partition::{Partition, PartitionChanges, PartitionHeader, ProducerState};
use tidemill_protocol::{DeploymentId, Offset, ProducerId, ShardId, TopicId, TopicPartition};

use super::objects::{
    DeploymentState, InboxState, Object, ObjectError, OutboxState, RoutedProducer, ShardHeader, TaskState,
    TopicState,
};
use super::tracked::Changes;
use super::{Partitions, State};
use crate::keys::{KeyPart, TaskKey, key, key_with, space};
use crate::store::{BaseRows, FrozenRows, StoreError};
use crate::unit::OutboxStream;

/// Takes a key and its value, `None` to delete.
pub(crate) type Put<'a> = dyn FnMut(&[u8], Option<&[u8]>) -> Result<(), StoreError> + 'a;

/// What one generation changed: shared objects that nobody changes any more.
pub(crate) struct Frozen {
    pub(crate) header: ShardHeader,
    pub(crate) removed: Vec<(TopicPartition, Vec<ProducerId>)>,
    pub(crate) partitions: Vec<(TopicPartition, PartitionChanges)>,
    topics: Changes<TopicId, TopicState>,
    routed: Changes<(TopicId, ProducerId), RoutedProducer>,
    deployments: Changes<DeploymentId, DeploymentState>,
    tasks: Changes<TaskKey, TaskState>,
    outboxes: Changes<OutboxStream, OutboxState>,
    inboxes: Changes<OutboxStream, InboxState>,
    rows: FrozenRows,
}

impl Partitions {
    fn take_changes(&mut self) -> Vec<(TopicPartition, PartitionChanges)> {
        let mut changed = std::mem::take(&mut self.changed);
        changed.sort_unstable();
        changed.dedup();
        let take = |id| {
            let slot = self.slots.get_mut(&id)?;
            slot.changed = false;
            Some((id, slot.partition.take_changes()))
        };
        changed.into_iter().filter_map(take).collect()
    }
}

impl State {
    /// Moves the changes of groups and metadata into rows, where they are like any other.
    pub(crate) fn gather_rows(&mut self) {
        let mut changes: Vec<_> =
            self.groups.take_changes().into_iter().map(|change| (space::GROUP, change)).collect();
        if let Some(controller) = &mut self.controller {
            // Copies the metadata where a reader holds it: once per checkpoint at most.
            let taken = Arc::make_mut(controller).take_changes();
            changes.extend(taken.into_iter().map(|change| (space::CONTROLLER, change)));
        }
        for (space, (own, value)) in changes {
            let key = key_with(space, &(), &own);
            match value {
                Some(value) => self.rows.put(key, value, false),
                None => self.rows.delete(key),
            }
        }
    }

    /// Ends a generation: what it changed is handed out, and apply goes on with the next.
    pub(crate) fn freeze(&mut self) -> Frozen {
        self.gather_rows();
        Frozen {
            header: self.header.clone(),
            removed: std::mem::take(&mut self.partitions.removed),
            partitions: self.partitions.take_changes(),
            topics: self.topics.take_changes(),
            routed: self.routed.take_changes(),
            deployments: self.deployments.take_changes(),
            tasks: self.tasks.take_changes(),
            outboxes: self.outboxes.take_changes(),
            inboxes: self.inboxes.take_changes(),
            rows: self.rows.freeze(),
        }
    }

    /// Every object as it would be stored, in the order of the keys within each kind.
    pub(crate) fn write_objects(&self, put: &mut Put<'_>) -> Result<(), StoreError> {
        put_object(put, &(), &self.header)?;
        for (id, partition) in self.partitions.iter() {
            put(&key(space::PARTITION, id), Some(&partition.header().encode()))?;
            for (producer, state) in partition.producers() {
                put(&key(space::PRODUCER, &(*id, producer)), Some(&state.encode()))?;
            }
        }
        self.topics.iter().try_for_each(|(key, object)| put_object(put, key, object))?;
        self.routed.iter().try_for_each(|(key, object)| put_object(put, key, object))?;
        self.deployments.iter().try_for_each(|(key, object)| put_object(put, key, object))?;
        self.tasks.iter().try_for_each(|(key, object)| put_object(put, key, object))?;
        self.outboxes.iter().try_for_each(|(key, object)| put_object(put, key, object))?;
        self.inboxes.iter().try_for_each(|(key, object)| put_object(put, key, object))
    }
}

fn put_object<O: Object>(put: &mut Put<'_>, identity: &O::Key, object: &O) -> Result<(), StoreError> {
    put(&key(O::SPACE, identity), Some(&object.encode()))
}

fn put_changes<O: Object>(put: &mut Put<'_>, changes: &Changes<O::Key, O>) -> Result<(), StoreError> {
    changes.iter().try_for_each(|(identity, object)| {
        put(&key(O::SPACE, identity), object.as_deref().map(Object::encode).as_deref())
    })
}

impl Frozen {
    /// Writes the generation as rows.
    pub(crate) fn write(&self, put: &mut Put<'_>) -> Result<(), StoreError> {
        put_object(put, &(), &self.header)?;
        for (id, producers) in &self.removed {
            put(&key(space::PARTITION, id), None)?;
            for producer in producers {
                put(&key(space::PRODUCER, &(*id, *producer)), None)?;
            }
        }
        for (id, changes) in &self.partitions {
            if let Some(header) = &changes.header {
                put(&key(space::PARTITION, id), Some(&header.encode()))?;
            }
            for (producer, state) in &changes.producers {
                let value = state.as_deref().map(ProducerState::encode);
                put(&key(space::PRODUCER, &(*id, *producer)), value.as_deref())?;
            }
        }
        put_changes(put, &self.topics)?;
        put_changes(put, &self.routed)?;
        put_changes(put, &self.deployments)?;
        put_changes(put, &self.tasks)?;
        put_changes(put, &self.outboxes)?;
        put_changes(put, &self.inboxes)?;
        self.rows.iter().try_for_each(|(key, change)| put(key, change.value().map(|value| &value[..])))
    }
}

/// The recorded ends of all partitions' segments. This broker's own, not part of the replicated state.
pub(crate) type SegmentEnds = BTreeMap<TopicPartition, PartitionEnds>;

/// Rebuilds the state and the recorded ends from the rows of a checkpoint.
pub(crate) fn read_all(shard: ShardId, base: &BaseRows) -> Result<(State, SegmentEnds), ReadStateError> {
    let mut reader = Reader::new(State::new(shard, Some(base.clone())));
    let objects = base.range(Bound::Unbounded, Bound::Excluded(&[space::ROWS]))?;
    for row in objects {
        let (key, value) = row.map_err(|error| StoreError::new("can't be read", error))?;
        reader.row(key.value(), value.value())?;
    }
    reader.finish(shard)
}

/// The recorded ends alone.
pub(crate) fn read_ends(base: &BaseRows) -> Result<SegmentEnds, ReadStateError> {
    let mut ends = SegmentEnds::new();
    let range = (Bound::Included(&[space::SEGMENT_END][..]), Bound::Excluded(&[space::SEGMENT_END + 1][..]));
    for row in base.range(range.0, range.1)? {
        let (key, value) = row.map_err(|error| StoreError::new("can't be read", error))?;
        let mut identity = key.value().get(1..).unwrap_or_default();
        let (partition, _) = take::<(TopicPartition, Offset)>(&mut identity)?;
        ends.entry(partition).or_default().segments.push(decode_end(value.value())?);
    }
    Ok(ends)
}

/// The shard's header alone.
pub(crate) fn read_header(base: &BaseRows) -> Result<ShardHeader, ReadStateError> {
    let row = base.get(&key(space::SHARD, &()))?.ok_or_else(|| damaged("shard header", "it is missing"))?;
    Ok(ShardHeader::decode(&row)?)
}

/// Why a stored state can't be used.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum ReadStateError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Object(#[from] ObjectError),
    #[error("it belongs to shard {found}, not to shard {expected}")]
    OtherShard { found: ShardId, expected: ShardId },
}

struct Reader {
    state: State,
    ends: SegmentEnds,
    headers: BTreeMap<TopicPartition, Partition>,
    groups: Vec<(Bytes, Bytes)>,
    controller: Vec<(Bytes, Bytes)>,
    header: Option<ShardHeader>,
}

impl Reader {
    fn new(state: State) -> Self {
        Self {
            state,
            ends: BTreeMap::new(),
            headers: BTreeMap::new(),
            groups: Vec::new(),
            controller: Vec::new(),
            header: None,
        }
    }

    fn row(&mut self, key: &[u8], value: &[u8]) -> Result<(), ObjectError> {
        let Some((&kind, mut identity)) = key.split_first() else {
            return Err(damaged("row", "its key is empty"));
        };
        let own = |identity: &[u8]| (Bytes::copy_from_slice(identity), Bytes::copy_from_slice(value));
        match kind {
            space::SHARD => self.header = Some(ShardHeader::decode(value)?),
            space::TOPIC => self.state.topics.restore(take(&mut identity)?, TopicState::decode(value)?),
            space::PARTITION => {
                let header = PartitionHeader::decode(value)
                    .map_err(|error| damaged("partition", &error.to_string()))?;
                self.headers.insert(take(&mut identity)?, Partition::restore(header));
            }
            space::PRODUCER => {
                let (partition, producer) = take::<(TopicPartition, ProducerId)>(&mut identity)?;
                let state =
                    ProducerState::decode(value).map_err(|error| damaged("producer", &error.to_string()))?;
                // A partition's row comes before its producers'.
                let partition = self.headers.get_mut(&partition);
                partition
                    .ok_or_else(|| damaged("producer", "its partition is not stored"))?
                    .restore_producer(producer, state);
            }
            space::ROUTED => {
                let producer = RoutedProducer::decode(value)?;
                let key = take(&mut identity)?;
                self.state.routed_bytes += producer.bytes();
                self.state.routed_by_use.insert((producer.last_used, key));
                self.state.routed.restore(key, producer);
            }
            space::GROUP => self.groups.push(own(identity)),
            space::CONTROLLER => self.controller.push(own(identity)),
            space::DEPLOYMENT => {
                self.state.deployments.restore(take(&mut identity)?, DeploymentState::decode(value)?)
            }
            space::TASK => self.state.tasks.restore(take(&mut identity)?, TaskState::decode(value)?),
            space::OUTBOX => self.state.outboxes.restore(take(&mut identity)?, OutboxState::decode(value)?),
            space::INBOX => self.state.inboxes.restore(take(&mut identity)?, InboxState::decode(value)?),
            space::SEGMENT_END => {
                let (partition, base) = take::<(TopicPartition, Offset)>(&mut identity)?;
                let end = decode_end(value)?;
                if end.base_offset != base {
                    return Err(damaged("segment end", "its key names another segment"));
                }
                self.ends.entry(partition).or_default().segments.push(end);
            }
            other => return Err(damaged("row", &format!("its kind {other} is not known to this release"))),
        }
        Ok(())
    }

    fn finish(mut self, shard: ShardId) -> Result<(State, SegmentEnds), ReadStateError> {
        let header = self.header.ok_or_else(|| damaged("shard header", "it is missing"))?;
        if header.shard != shard {
            return Err(ReadStateError::OtherShard { found: header.shard, expected: shard });
        }
        self.state.header = header;
        for (id, partition) in self.headers {
            self.state.partitions.restore(id, partition);
        }
        self.state.groups =
            Groups::restore(self.groups).map_err(|error| damaged("group", &error.to_string()))?;
        if self.state.controller.is_some() {
            let controller = Controller::restore(self.controller);
            let controller = controller.map_err(|error| damaged("metadata object", &error.to_string()))?;
            self.state.controller = Some(Arc::new(controller));
        }
        Ok((self.state, self.ends))
    }
}

fn take<K: KeyPart>(identity: &mut &[u8]) -> Result<K, ObjectError> {
    match K::take(identity) {
        Some(key) if identity.is_empty() => Ok(key),
        _ => Err(damaged("row", "its key has the wrong length")),
    }
}

fn damaged(what: &'static str, reason: &str) -> ObjectError {
    ObjectError { what, reason: reason.to_owned() }
}

const END_FORMAT: u8 = 1;

/// The stored form of a segment's end: format u8 (1) | postcard.
pub(crate) fn encode_end(end: &SegmentEnd) -> Vec<u8> {
    postcard::to_extend(end, vec![END_FORMAT]).expect("plain data always encodes into memory")
}

pub(crate) fn decode_end(value: &[u8]) -> Result<SegmentEnd, ObjectError> {
    match value.split_first() {
        Some((&END_FORMAT, rest)) => match postcard::take_from_bytes(rest) {
            Ok((end, [])) => Ok(end),
            Ok(_) => Err(damaged("segment end", "something follows it")),
            Err(error) => Err(damaged("segment end", &error.to_string())),
        },
        _ => Err(damaged("segment end", "its format is not known to this release")),
    }
}
