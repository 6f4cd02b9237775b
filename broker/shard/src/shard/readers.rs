//! What the rest of the broker reads: partitions, groups, metadata, what a leader should propose.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use tidemill_controller::Controller;
use tidemill_coordinator::CommittedPosition;
use tidemill_log::background::Background;
use tidemill_partition::RetentionRules;
use tidemill_protocol::record_batch::{BatchLimits, RecordBatch, TimestampType};
use tidemill_protocol::{
    DeploymentId, Offset, PartitionId, ProducerEpoch, ProducerId, Timestamp, TopicId, TopicPartition,
};
use tokio::sync::watch;

use super::Shard;
use crate::keys::space;
use crate::partition_log::{Fetch, FetchError, PartitionLog, PartitionView};
use crate::store::{StillOpen, StoreError};
use crate::unit::{AdoptedStatus, FilterPass, OutboxStream, Unit};

/// A topic as this shard adopted it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdoptedTopic {
    /// Its id.
    pub topic: TopicId,
    /// The controller's version; a leader proposes a newer one when there is.
    pub version: u64,
    /// For people.
    pub name: String,
    /// Its partitions here.
    pub partitions: Vec<PartitionId>,
    /// Whether it is gone.
    pub deleted: bool,
}

/// A deployment as this shard adopted it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AdoptedDeployment {
    /// Its id.
    pub deployment: DeploymentId,
    /// The controller's version; a leader proposes a newer one when there is.
    pub version: u64,
    /// Fences progress.
    pub epoch: u32,
    /// Whether it runs.
    pub status: AdoptedStatus,
}

/// A routed batch that is in this shard's log, with records of it or without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RoutedAttempt {
    /// What it passed before it was split; `None`: no filter.
    pub filtered: Option<FilterPass>,
}

impl Shard {
    /// Why the shard stopped, if it did. Nothing of it is to be acknowledged from then on.
    #[must_use]
    pub fn poisoned(&self) -> Option<Arc<str>> {
        self.inner.poison.reason()
    }

    /// Tells of the state file, as this shard has it open, for longer than the shard is there: it is not to be opened a second time before
    /// that has ended. A snapshot that is read, or a reader, may keep it.
    #[must_use]
    pub fn still_open(&self) -> StillOpen {
        self.inner.store.still_open()
    }

    /// On what the shard works beside its callers.
    #[must_use]
    pub fn background(&self) -> &Arc<dyn Background> {
        &self.inner.config.background
    }

    /// A number that rises when topics, deployments, tasks or metadata change, or the shard stops. Ends when another shard
    /// has taken this one's place.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.inner.changes.subscribe()
    }

    /// The log's time: what expiry, timers and retention go by.
    #[must_use]
    pub fn log_time(&self) -> Timestamp {
        self.inner.state.read().header.now()
    }

    /// One partition, if it is here.
    #[must_use]
    pub fn partition(&self, id: TopicPartition) -> Option<PartitionView> {
        self.inner.log(id).map(|log| log.view())
    }

    /// The partitions here, in order.
    #[must_use]
    pub fn partitions(&self) -> Vec<(TopicPartition, PartitionView)> {
        let mut partitions: Vec<_> =
            self.inner.logs.read().iter().map(|(id, log)| (*id, log.view())).collect();
        partitions.sort_unstable_by_key(|(id, _)| *id);
        partitions
    }

    /// Whole batches from the one that holds `from` on, about `bytes_max` bytes and at least one batch.
    #[must_use]
    pub fn fetch(&self, id: TopicPartition, from: Offset, bytes_max: usize) -> Fetch {
        let fetched = self.inner.log(id).map_or(Fetch::Unknown, |log| log.fetch(from, bytes_max));
        if matches!(fetched, Fetch::Memory(_)) {
            self.inner.write_behind.tail_was_read();
        }
        fetched
    }

    /// Follows a partition's high watermark. Ends, or wakes without a change, when the partition is gone, or another shard has
    /// taken this one's place.
    #[must_use]
    pub fn watch(&self, id: TopicPartition) -> Option<watch::Receiver<Offset>> {
        self.inner.log(id).map(|log| log.watch())
    }

    /// The first record at or after a time, and its timestamp; `None` where all are earlier, or the partition is not
    /// here. Blocking.
    ///
    /// # Errors
    /// Damage, or the disk refused.
    pub fn offset_for_time(
        &self,
        id: TopicPartition,
        time: Timestamp,
    ) -> Result<Option<(Offset, Timestamp)>, FetchError> {
        let Some(log) = self.inner.log(id) else { return Ok(None) };
        let stored = match log.opened() {
            Some(store) => store.find_by_time(time)?.map(|found| found.offset),
            None => None,
        };
        let Some(mut from) = stored.or_else(|| log.tail_by_time(time)) else { return Ok(None) };
        // The batch found holds a record that is late enough, but perhaps none after the log start: then look on.
        loop {
            let log_start = log.view().log_start;
            let batches = match log.fetch(from.max(log_start), 1) {
                Fetch::Memory(batches) => batches,
                Fetch::Disk(disk) => disk.run()?,
                Fetch::OutOfRange { .. } | Fetch::Unknown => return Ok(None),
            };
            let Some(batch) = batches.contiguous().next() else { return Ok(None) };
            if let Some(found) = record_at(batch, time, log_start) {
                return Ok(Some(found));
            }
            from = batches.next;
        }
    }

    /// A group's committed positions; `None` where there is no such group.
    #[must_use]
    pub fn group(&self, name: &str) -> Option<Vec<(TopicPartition, CommittedPosition)>> {
        let state = self.inner.state.read();
        let positions = state.groups.group(name)?;
        Some(positions.iter().map(|(partition, position)| (*partition, position.clone())).collect())
    }

    /// The names of the groups whose home is this shard, ascending.
    #[must_use]
    pub fn group_names(&self) -> Vec<String> {
        self.inner.state.read().groups.names().map(str::to_owned).collect()
    }

    /// The topics of which groups hold positions here, whether they are known here or not.
    #[must_use]
    pub fn group_topics(&self) -> BTreeSet<TopicId> {
        self.inner.state.read().groups.topics()
    }

    /// The deployments of other shards whose outputs came here and that were never adopted here, ascending: nobody would tell this shard that
    /// one of them is gone.
    #[must_use]
    pub fn strange_senders(&self) -> Vec<DeploymentId> {
        let state = self.inner.state.read();
        let first = |deployment| OutboxStream {
            deployment,
            incarnation: 0,
            source: PartitionId::new(0),
            target: TopicPartition::new(TopicId::new(uuid::Uuid::nil()), PartitionId::new(0)),
        };
        let mut found = Vec::new();
        let mut next = Some(DeploymentId::new(0));
        while let Some((stream, _)) = next.and_then(|from| state.inboxes.range(first(from)..).next()) {
            if state.deployments.get(&stream.deployment).is_none() {
                found.push(stream.deployment);
            }
            next = stream.deployment.get().checked_add(1).map(DeploymentId::new);
        }
        found
    }

    /// The cluster's metadata as it is now; `None` where this is not the controller's shard.
    #[must_use]
    pub fn controller(&self) -> Option<Arc<Controller>> {
        self.inner.state.read().controller.clone()
    }

    /// The adopted topics, deleted ones that are still remembered included.
    #[must_use]
    pub fn topics(&self) -> Vec<AdoptedTopic> {
        let state = self.inner.state.read();
        let adopted = state.topics.iter().map(|(topic, known)| AdoptedTopic {
            topic: *topic,
            version: known.version,
            name: known.name.clone(),
            partitions: known.partitions.clone(),
            deleted: known.deleted_at.is_some(),
        });
        adopted.collect()
    }

    /// The adopted version of a topic.
    #[must_use]
    pub fn topic_version(&self, topic: TopicId) -> Option<u64> {
        self.inner.state.read().topics.get(&topic).map(|known| known.version)
    }

    /// The version of a deployment that was adopted.
    #[must_use]
    pub fn deployment_version(&self, deployment: DeploymentId) -> Option<u64> {
        self.inner.state.read().deployments.get(&deployment).map(|known| known.version)
    }

    /// The adopted deployments, deleted ones that are still remembered included.
    #[must_use]
    pub fn deployments(&self) -> Vec<AdoptedDeployment> {
        let state = self.inner.state.read();
        let adopted = state.deployments.iter().map(|(deployment, known)| AdoptedDeployment {
            deployment: *deployment,
            version: known.version,
            epoch: known.epoch,
            status: known.status,
        });
        adopted.collect()
    }

    /// What this shard remembers of a routed batch; `None` where it has none of it.
    #[must_use]
    pub fn routed_attempt(
        &self,
        topic: TopicId,
        (producer, epoch): (ProducerId, ProducerEpoch),
        topic_sequence: u64,
    ) -> Option<RoutedAttempt> {
        let state = self.inner.state.read();
        let known = state.routed.get(&(topic, producer))?;
        if known.epoch != epoch || known.expired(state.header.now()) {
            return None;
        }
        known.answer(topic_sequence).map(|answer| RoutedAttempt { filtered: answer.filtered })
    }

    /// What retention asks of the leader now: units to propose, one for each partition with something to let go.
    #[must_use]
    pub fn retention_due(&self) -> Vec<Unit> {
        self.retention_due_at(Timestamp::new(i64::MIN))
    }

    /// The same for when the log's time is `now`, should it not be later already: it stands still where nothing is written.
    #[must_use]
    pub fn retention_due_at(&self, now: Timestamp) -> Vec<Unit> {
        let state = self.inner.state.read();
        let now = state.header.now().max(now);
        let due = state.partitions.iter().filter_map(|(id, partition)| {
            let config = &state.topics.get(&id.topic)?.config;
            let rules =
                RetentionRules { retention_ms: config.retention_ms, retention_bytes: config.retention_bytes };
            let offset = partition.retention_horizon(&rules, now);
            (offset > partition.header().log_start)
                .then_some(Unit::AdvanceLogStart { partition: *id, offset })
        });
        due.collect()
    }

    /// blake3 over the replicated state: equal on two replicas that applied the same entries, whatever their
    /// checkpoints. Reads all of it: for tests and for comparing replicas now and then. Blocking.
    ///
    /// # Errors
    /// The state store can't be read.
    pub fn state_hash(&self) -> Result<[u8; 32], StoreError> {
        let mut hasher = blake3::Hasher::new();
        let mut hash = |key: &[u8], value: &[u8]| {
            for part in [key, value] {
                hasher.update(&(part.len() as u64).to_le_bytes());
                hasher.update(part);
            }
        };
        let mut state = self.inner.state.write();
        state.gather_rows();
        state.write_objects(&mut |key, value| {
            hash(key, value.unwrap_or_default());
            Ok(())
        })?;
        // Groups and metadata are rows; what is this broker's own (segment ends) lies between and is left out.
        let groups: &[u8] = &[space::GROUP];
        let after_controller: &[u8] = &[space::CONTROLLER + 1];
        let rows: &[u8] = &[space::ROWS];
        use std::ops::Bound::{Excluded, Included, Unbounded};
        for (start, end) in [(Included(groups), Excluded(after_controller)), (Included(rows), Unbounded)] {
            state.rows.scan(start, end, |key, value| {
                hash(key, value);
                std::ops::ControlFlow::Continue(())
            })?;
        }
        Ok(*hasher.finalize().as_bytes())
    }
}

/// The first record of a batch at or after both a time and the log start.
fn record_at(batch: Bytes, time: Timestamp, log_start: Offset) -> Option<(Offset, Timestamp)> {
    let batch = RecordBatch::decode_trusted(batch, &BatchLimits::STORED).ok()?;
    let header = *batch.header();
    let stamped = header.attributes.timestamp_type == TimestampType::LogAppendTime;
    let records = batch.records(&BatchLimits::STORED).ok()?;
    records.iter().filter_map(Result::ok).find_map(|record| {
        let offset = header.base_offset.plus(u64::from(record.offset_delta));
        let timestamp = if stamped {
            header.max_timestamp
        } else {
            header.base_timestamp.plus_ms(record.timestamp_delta)
        };
        (offset >= log_start && timestamp >= time).then_some((offset, timestamp))
    })
}

const _: () = {
    const fn shared<T: Send + Sync>() {}
    shared::<Shard>();
    shared::<PartitionLog>();
};
