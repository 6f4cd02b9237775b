//! Appends to one partition, and its log start.

use bytes::Bytes;
use tidemill_controller::TopicConfig;
use tidemill_log::segment::StoredBatch;
use tidemill_partition::{AppendCheck, AppendRequest, Partition, ProducerBatch, SegmentRules};
use tidemill_protocol::{LeaderEpoch, Offset, ProducerEpoch, ProducerId, Sequence, TopicPartition};

use super::{Context, Effect, Effects};
use crate::batch::{BatchFault, BatchHead, PREFIX_BYTES, with_log_append_time};
use crate::result::{UnitError, UnitResult};
use crate::state::State;

impl State {
    pub(super) fn append(
        &mut self,
        id: TopicPartition,
        batch: &Bytes,
        named_epoch: Option<LeaderEpoch>,
        context: Context,
        effects: &mut Effects,
    ) -> Result<UnitResult, UnitError> {
        if let Some(named) = named_epoch.filter(|named| *named != context.epoch) {
            return Err(UnitError::WrongLeaderEpoch { named, current: context.epoch });
        }
        let (config, partition) = self.target(id)?;
        let head = checked_head(batch, &config)?;
        let request = head.request(true);
        let log_start = partition.header().log_start;
        let stamped = |time| config.log_append_time.then_some(time);
        let check = partition.check_append(&request, context.now);
        match check.map_err(|error| UnitError::from_append(error, id))? {
            AppendCheck::New => {
                let base_offset = self.put_batch(id, &config, &request, batch, context, effects);
                let log_append_time = stamped(context.now);
                Ok(UnitResult::Appended { base_offset, log_append_time, log_start, duplicate: false })
            }
            AppendCheck::Duplicate { base_offset: Some(base_offset), answered_at } => {
                let log_append_time = stamped(answered_at);
                Ok(UnitResult::Appended { base_offset, log_append_time, log_start, duplicate: true })
            }
            AppendCheck::Duplicate { base_offset: None, .. } => {
                Ok(UnitResult::BatchRefused { duplicate: true })
            }
        }
    }

    pub(super) fn refuse(
        &mut self,
        id: TopicPartition,
        (producer, epoch, base_sequence): (ProducerId, ProducerEpoch, Sequence),
        record_count: u32,
        context: Context,
    ) -> Result<UnitResult, UnitError> {
        let (config, partition) = self.target(id)?;
        if producer.get() < 0 || epoch.get() < 0 || base_sequence.get() < 0 || record_count == 0 {
            return Err(UnitError::InvalidBatch(BatchFault::Producer));
        }
        let batch = ProducerBatch { id: producer, epoch, base_sequence };
        let request = AppendRequest {
            offset_count: record_count,
            bytes: 0,
            max_timestamp: context.now,
            producer: Some(batch),
        };
        let check = partition.check_append(&request, context.now);
        match check.map_err(|error| UnitError::from_append(error, id))? {
            AppendCheck::New => {
                if let Some(partition) = self.partitions.get_mut(&id) {
                    partition.refuse(&batch, record_count, context.now);
                }
                Ok(UnitResult::BatchRefused { duplicate: false })
            }
            // It had been accepted, before its filter changed: that stands.
            AppendCheck::Duplicate { base_offset: Some(base_offset), answered_at } => {
                Ok(UnitResult::Appended {
                    base_offset,
                    log_append_time: config.log_append_time.then_some(answered_at),
                    log_start: partition.header().log_start,
                    duplicate: true,
                })
            }
            AppendCheck::Duplicate { base_offset: None, .. } => {
                Ok(UnitResult::BatchRefused { duplicate: true })
            }
        }
    }

    pub(super) fn advance_log_start(
        &mut self,
        id: TopicPartition,
        offset: Offset,
        effects: &mut Effects,
    ) -> Result<UnitResult, UnitError> {
        let (_, partition) = self.target(id)?;
        let before = partition.header().log_start;
        if offset <= before {
            return Ok(UnitResult::LogStart { offset: before });
        }
        let high_watermark = partition.header().log_end;
        let beyond = UnitError::OffsetOutOfRange { wanted: offset, log_start: before, high_watermark };
        if offset > high_watermark {
            return Err(beyond);
        }
        let Some(partition) = self.partitions.get_mut(&id) else {
            return Err(UnitError::UnknownPartition(id));
        };
        let log_start = partition.advance_log_start(offset).map_err(|_| beyond)?;
        let (segments, bytes) = (partition.header().segments.len(), partition.bytes());
        effects.list.push(Effect::LogStart { partition: id, log_start, segments, bytes });
        Ok(UnitResult::LogStart { offset: log_start })
    }

    /// The partition that a unit names, and its topic's settings.
    pub(super) fn target(&self, id: TopicPartition) -> Result<(TopicConfig, &Partition), UnitError> {
        let topic = self.topics.get(&id.topic).ok_or(UnitError::NotAdopted(id.topic))?;
        if topic.deleted_at.is_some() {
            return Err(UnitError::TopicDeleted(id.topic));
        }
        let partition = self.partitions.get(&id).ok_or(UnitError::UnknownPartition(id))?;
        Ok((topic.config, partition))
    }

    /// Appends a batch whose head, target and room were checked. Never refuses.
    pub(super) fn put_batch(
        &mut self,
        id: TopicPartition,
        config: &TopicConfig,
        request: &AppendRequest,
        batch: &Bytes,
        context: Context,
        effects: &mut Effects,
    ) -> Offset {
        let stamped =
            if config.log_append_time { Some(with_log_append_time(batch, context.now)) } else { None };
        let request = match &stamped {
            Some(_) => AppendRequest { max_timestamp: context.now, ..*request },
            None => *request,
        };
        let body = stamped.unwrap_or_else(|| batch.slice(PREFIX_BYTES..));
        let rules = SegmentRules { segment_bytes: config.segment_bytes, segment_ms: config.segment_ms };
        let partition = self.partitions.get_mut(&id).expect("the target was checked");
        let appended = partition.append(&request, context.epoch, context.now, &rules);
        let last = appended.base_offset.plus(u64::from(request.offset_count) - 1);
        let batch = StoredBatch::new(appended.base_offset, last, context.epoch, request.max_timestamp, body)
            .expect("offsets and length were checked");
        effects.list.push(Effect::Appended { partition: id, batch, starts_segment: appended.starts_segment });
        appended.base_offset
    }
}

/// The head of a batch that the topic takes.
pub(super) fn checked_head(batch: &[u8], config: &TopicConfig) -> Result<BatchHead, BatchFault> {
    let head = BatchHead::parse(batch)?;
    if head.bytes > config.batch_bytes_max {
        return Err(BatchFault::TooLarge { bytes: batch.len(), limit: config.batch_bytes_max });
    }
    Ok(head)
}
