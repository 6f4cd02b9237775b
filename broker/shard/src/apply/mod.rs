//! Apply: from an entry to the next state, the same on every replica. No clock, no randomness, no configuration of this
//! broker, no other shard; the only file touched is the state store, for rows that are not in memory.
//!
//! A unit is atomic: everything is checked before anything is changed. What must happen outside of the state (batches
//! to logs, partitions that come and go) is handed back as [`Effects`].

mod adopt;
mod append;
mod delivery;
mod progress;
mod routed;
mod task_rows;
mod tick;

use std::sync::Arc;

use tidemill_controller::TopicConfig;
use tidemill_log::segment::StoredBatch;
use tidemill_log::wal::EntryId;
use tidemill_partition::leader_epoch;
use tidemill_protocol::{LeaderEpoch, Offset, Timestamp, TopicPartition};

use crate::result::{UnitError, UnitResult};
use crate::state::State;
use crate::store::StoreError;
use crate::unit::{Entry, Unit};

pub use progress::TASK_KEY_BYTES_MAX;
pub(crate) use task_rows::{expired, expiry_end, split_state_value, state_key, timer_by_time_prefix};

/// How far one entry may take the log's time forward. One mad reading of a leader's clock can't expire everything;
/// after a longer standstill a few entries catch up.
pub const LOG_TIME_STEP_MAX_MS: i64 = 24 * 60 * 60 * 1000;

/// What an entry asks of the world outside of the state, in order.
#[derive(Default)]
pub(crate) struct Effects {
    pub(crate) list: Vec<Effect>,
    /// Topics, deployments, tasks or metadata changed.
    pub(crate) metadata_changed: bool,
}

pub(crate) enum Effect {
    Created { partition: TopicPartition, config: TopicConfig },
    Configured { partition: TopicPartition, config: TopicConfig },
    Deleted { partition: TopicPartition },
    Appended { partition: TopicPartition, batch: StoredBatch, starts_segment: bool },
    LogStart { partition: TopicPartition, log_start: Offset, segments: usize, bytes: u64 },
}

/// What every unit of an entry sees.
#[derive(Clone, Copy)]
struct Context {
    /// The log's time.
    now: Timestamp,
    /// The reign under which the entry was proposed.
    epoch: LeaderEpoch,
}

impl State {
    /// Applies an entry. A failure of the state store is not a result: the state is not to be used any more.
    pub(crate) fn apply(
        &mut self,
        id: EntryId,
        entry: &Entry,
        effects: &mut Effects,
    ) -> Result<Vec<UnitResult>, StoreError> {
        let context = Context { now: self.advance_time(entry.time), epoch: leader_epoch(id.term) };
        let results = entry
            .units
            .iter()
            .map(|unit| self.apply_unit(unit, context, effects))
            .collect::<Result<_, _>>()?;
        self.header.set_applied(id);
        Ok(results)
    }

    /// The log's time never goes back, and forward by bounded steps.
    fn advance_time(&mut self, time: Timestamp) -> Timestamp {
        let now = match self.header.log_time {
            Some(last) => time.min(last.plus_ms(LOG_TIME_STEP_MAX_MS)).max(last),
            None => time,
        };
        self.header.log_time = Some(now);
        now
    }

    fn apply_unit(
        &mut self,
        unit: &Unit,
        context: Context,
        effects: &mut Effects,
    ) -> Result<UnitResult, StoreError> {
        let result = match unit {
            Unit::Append { partition, batch, leader_epoch } => {
                self.append(*partition, batch, *leader_epoch, context, effects)
            }
            Unit::Refuse { partition, producer, epoch, base_sequence, record_count } => {
                self.refuse(*partition, (*producer, *epoch, *base_sequence), *record_count, context)
            }
            Unit::RoutedAppend(routed) => self.routed_append(routed, context, effects),
            Unit::Group(command) => Ok(UnitResult::Group(self.groups.apply(command, context.now))),
            Unit::Control(command) => match &mut self.controller {
                Some(controller) => {
                    effects.metadata_changed = true;
                    Ok(UnitResult::Control(Arc::make_mut(controller).apply(command, context.now)))
                }
                None => Err(UnitError::NotController),
            },
            Unit::AdoptTopic(adopt) => Ok(self.adopt_topic(adopt, context, effects)),
            Unit::AdoptDeployment(adopt) => self.adopt_deployment(adopt, context, effects),
            Unit::Progress(progress) => return self.progress(progress, context, effects),
            Unit::Deliver { stream, number, batch } => self.deliver(stream, *number, batch, context, effects),
            Unit::Delivered { stream, up_to } => return self.delivered(stream, *up_to).map(answer),
            Unit::AdvanceLogStart { partition, offset } => {
                self.advance_log_start(*partition, *offset, effects)
            }
            Unit::TaskStatus { deployment, epoch, partition, status } => {
                self.set_task_status((*deployment, *partition), *epoch, status, effects)
            }
            Unit::Tick => {
                self.tick(context)?;
                Ok(UnitResult::Done)
            }
            Unit::TakeStateHash | Unit::ReportStateHash(_) => Ok(UnitResult::Done),
        };
        Ok(answer(result))
    }
}

fn answer(result: Result<UnitResult, UnitError>) -> UnitResult {
    result.unwrap_or_else(UnitResult::Refused)
}
