//! The partition itself.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tidemill_protocol::{LeaderEpoch, Offset, ProducerId, Timestamp};

use crate::append::{AppendCheck, AppendError, AppendRequest, Appended, ProducerBatch};
use crate::epochs::{EpochStart, note_epoch, trim_epochs};
use crate::producers::{ProducerState, Producers};
use crate::segments::{RetentionRules, SegmentRules, SegmentSummary};

/// All of a partition's state but its producers.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PartitionHeader {
    /// The first offset that can be read.
    pub log_start: Offset,
    /// The offset that the next record gets: the high watermark of the applied log.
    pub log_end: Offset,
    /// The reigns whose records are here, oldest first.
    pub epochs: Vec<EpochStart>,
    /// The segments, oldest first; the last is active. None where nothing can be read.
    pub segments: Vec<SegmentSummary>,
}

/// What changed since the last checkpoint.
#[derive(Debug, Default)]
pub struct PartitionChanges {
    /// The header, where it changed.
    pub header: Option<Arc<PartitionHeader>>,
    /// Producers that changed; `None`: forgotten. Ascending.
    pub producers: Vec<(ProducerId, Option<Arc<ProducerState>>)>,
}

/// The log can't start there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the log can't start at offset {wanted}: it ends at {log_end}")]
pub struct LogStartError {
    /// What was asked for.
    pub wanted: Offset,
    /// The last possible start.
    pub log_end: Offset,
}

/// One partition's replicated state.
#[derive(Debug, Clone, Default)]
pub struct Partition {
    header: Arc<PartitionHeader>,
    header_changed: bool,
    producers: Producers,
}

impl Partition {
    /// A partition that nothing was appended to; its header is a change to be stored.
    #[must_use]
    pub fn new() -> Self {
        Self { header_changed: true, ..Self::default() }
    }

    /// A partition as it was stored; its producers follow by [`Self::restore_producer`].
    #[must_use]
    pub fn restore(header: PartitionHeader) -> Self {
        Self { header: Arc::new(header), ..Self::default() }
    }

    /// A producer as it was stored.
    pub fn restore_producer(&mut self, id: ProducerId, state: ProducerState) {
        self.producers.restore(id, state);
    }

    /// Offsets, epochs, segments.
    #[must_use]
    pub fn header(&self) -> &PartitionHeader {
        &self.header
    }

    /// The producers, by id.
    pub fn producers(&self) -> impl Iterator<Item = (ProducerId, &ProducerState)> {
        self.producers.iter()
    }

    /// Bytes of all segments.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.header.segments.iter().map(|segment| segment.bytes).sum()
    }

    /// Whether a batch is to be appended; changes nothing.
    ///
    /// # Errors
    /// [`AppendError`], where it is neither next nor known.
    pub fn check_append(&self, request: &AppendRequest, now: Timestamp) -> Result<AppendCheck, AppendError> {
        if request.offset_count == 0 {
            return Err(AppendError::Empty);
        }
        // Room for this batch and for an end behind it.
        if self.header.log_end.get().checked_add(i64::from(request.offset_count)).is_none() {
            return Err(AppendError::OffsetsExhausted);
        }
        match &request.producer {
            Some(producer) => self.producers.check(producer, request.offset_count, now),
            None => Ok(AppendCheck::New),
        }
    }

    /// Appends a batch that [`Self::check_append`] found [`AppendCheck::New`] at the same `now`.
    pub fn append(
        &mut self,
        request: &AppendRequest,
        epoch: LeaderEpoch,
        now: Timestamp,
        rules: &SegmentRules,
    ) -> Appended {
        let base_offset = self.header.log_end;
        if let Some(producer) = &request.producer {
            self.producers.remember(producer, request.offset_count, base_offset, now);
        }
        self.header_changed = true;
        let header = Arc::make_mut(&mut self.header);
        header.log_end = base_offset.plus(u64::from(request.offset_count));
        note_epoch(&mut header.epochs, epoch, base_offset);
        match header.segments.last_mut().filter(|active| !rules.seals(active, request.bytes, now)) {
            Some(active) => {
                active.bytes += u64::from(request.bytes);
                active.last_append = now;
                active.max_timestamp = active.max_timestamp.max(request.max_timestamp);
                Appended { base_offset, starts_segment: false }
            }
            None => {
                header.segments.push(SegmentSummary {
                    base: base_offset,
                    bytes: u64::from(request.bytes),
                    first_append: now,
                    last_append: now,
                    max_timestamp: request.max_timestamp,
                });
                Appended { base_offset, starts_segment: true }
            }
        }
    }

    /// Notes that a batch was refused by a plugin: it takes its sequences and no offset, so that the batches behind it
    /// in flight stand. To be called when [`Self::check_append`] found it new.
    pub fn refuse(&mut self, producer: &ProducerBatch, offset_count: u32, now: Timestamp) {
        self.producers.remember(producer, offset_count, Offset::UNASSIGNED, now);
    }

    /// Where the log may start by these rules: what a leader proposes to [`Self::advance_log_start`].
    #[must_use]
    pub fn retention_horizon(&self, rules: &RetentionRules, now: Timestamp) -> Offset {
        let header = &*self.header;
        rules.horizon(&header.segments, header.log_start, header.log_end, now)
    }

    /// Lets everything before `offset` go. Answers the log start then, which is later than `offset` where it was so
    /// already.
    ///
    /// # Errors
    /// [`LogStartError`] beyond the log's end.
    pub fn advance_log_start(&mut self, offset: Offset) -> Result<Offset, LogStartError> {
        if offset > self.header.log_end {
            return Err(LogStartError { wanted: offset, log_end: self.header.log_end });
        }
        if offset <= self.header.log_start {
            return Ok(self.header.log_start);
        }
        self.header_changed = true;
        let header = Arc::make_mut(&mut self.header);
        header.log_start = offset;
        let kept_from = if offset == header.log_end {
            header.segments.len()
        } else {
            header.segments.partition_point(|segment| segment.base <= offset).saturating_sub(1)
        };
        header.segments.drain(..kept_from);
        trim_epochs(&mut header.epochs, offset);
        Ok(offset)
    }

    /// Forgets producers that expired. What is expired counts as unknown in any case: this frees the memory.
    pub fn sweep_producers(&mut self, now: Timestamp) {
        self.producers.sweep(now);
    }

    /// What changed since the last call.
    pub fn take_changes(&mut self) -> PartitionChanges {
        let header = std::mem::take(&mut self.header_changed).then(|| Arc::clone(&self.header));
        PartitionChanges { header, producers: self.producers.take_changes() }
    }
}

#[cfg(test)]
#[path = "partition_tests.rs"]
mod tests;
