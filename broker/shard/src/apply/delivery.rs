//! Outbox and inbox: what a task emits to another shard's partition arrives there once and in order.
//!
//! ```text
//!  source shard                                   target shard
//!  Progress --> outbox: items first..next  ---->  Deliver(number): inbox takes last + 1 only
//!  Delivered(up to) frees them             <----  Delivered{last} | OutOfOrder{last}
//! ```

use bytes::Bytes;
use tidemill_protocol::DeploymentId;

use super::{Context, Effects};
use crate::batch::BatchHead;
use crate::keys::{TaskKey, key, space};
use crate::result::{UnitError, UnitResult};
use crate::state::{InboxState, OutboxState, State, TaskState};
use crate::store::StoreError;
use crate::unit::{AdoptedStatus, OutboxStream};

impl State {
    pub(super) fn deliver(
        &mut self,
        stream: &OutboxStream,
        number: u64,
        batch: &Bytes,
        context: Context,
        effects: &mut Effects,
    ) -> Result<UnitResult, UnitError> {
        let (config, partition) = self.target(stream.target)?;
        let last = self.inboxes.get(stream).map_or(0, |inbox| inbox.last);
        if number <= last {
            return Ok(UnitResult::Delivered { last });
        }
        if number != last + 1 {
            return Ok(UnitResult::OutOfOrder { last });
        }
        // The target's size limit is for clients: the item was bounded where it was emitted, and must get through.
        let request = BatchHead::parse(batch)?.request(false);
        let checked = partition.check_append(&request, context.now);
        checked.map_err(|error| UnitError::from_append(error, stream.target))?;
        self.put_batch(stream.target, &config, &request, batch, context, effects);
        self.inboxes.insert(*stream, InboxState { last: number, last_used: context.now });
        Ok(UnitResult::Delivered { last: number })
    }

    pub(super) fn delivered(
        &mut self,
        stream: &OutboxStream,
        up_to: u64,
    ) -> Result<Result<UnitResult, UnitError>, StoreError> {
        let Some(outbox) = self.outboxes.get(stream).copied().filter(|outbox| up_to < outbox.next) else {
            return Ok(Err(UnitError::UnknownOutboxItem { up_to }));
        };
        if up_to < outbox.first {
            return Ok(Ok(UnitResult::Done));
        }
        let mut freed = 0;
        for number in outbox.first..=up_to {
            let key = key(space::OUTBOX_ITEM, &(*stream, number));
            freed += self.rows.get(&key)?.map_or(0, |batch| batch.len() as u64);
            self.rows.delete(key);
        }
        let left = OutboxState { first: up_to + 1, bytes: outbox.bytes.saturating_sub(freed), ..outbox };
        if left.first == left.next && self.is_deleted(stream.deployment) {
            self.outboxes.remove(stream);
        } else {
            self.outboxes.insert(*stream, left);
        }
        Ok(Ok(UnitResult::Done))
    }

    /// Puts a batch behind the others on its way.
    pub(super) fn emit(&mut self, stream: OutboxStream, batch: &Bytes) {
        let outbox = self.outboxes.get_or_insert_with(stream, || OutboxState { first: 1, next: 1, bytes: 0 });
        let number = outbox.next;
        outbox.next += 1;
        outbox.bytes += batch.len() as u64;
        self.rows.put(key(space::OUTBOX_ITEM, &(stream, number)), batch.clone(), true);
    }

    pub(super) fn is_deleted(&self, deployment: DeploymentId) -> bool {
        self.deployments.get(&deployment).is_none_or(|known| known.status == AdoptedStatus::Deleted)
    }

    pub(crate) fn tasks_of(&self, deployment: DeploymentId) -> impl Iterator<Item = (&TaskKey, &TaskState)> {
        let from = (deployment, tidemill_protocol::PartitionId::new(0));
        self.tasks.range(from..).take_while(move |(key, _)| key.0 == deployment)
    }
}
