//! Producer ids, taken from the controller in blocks.

use std::sync::atomic::{AtomicI64, Ordering};

use tidemill_controller::{ControllerCommand, ControllerReply, ProducerIdBlock};
use tidemill_protocol::{ErrorCode, ProducerId, ShardId};
use tidemill_shard::{Unit, UnitResult};
use tokio::sync::Mutex;

use crate::errors::{self, WireError};
use crate::shards::Shards;

/// Ids of one block: a broker that restarts leaves the rest of its block unused.
const BLOCK: u32 = 1000;

/// Hands out ids that nobody else has.
pub(crate) struct ProducerIds {
    shards: Shards,
    block: Mutex<Option<ProducerIdBlock>>,
    /// Ids below were given out by some broker, as far as this one has asked.
    given_out: AtomicI64,
}

impl ProducerIds {
    pub(crate) fn new(shards: Shards) -> Self {
        Self { shards, block: Mutex::new(None), given_out: AtomicI64::new(0) }
    }

    /// A new id.
    ///
    /// The lock is held while the controller is asked: whoever comes meanwhile needs the same block.
    pub(crate) async fn next(&self) -> Result<ProducerId, WireError> {
        let mut held = self.block.lock().await;
        let block = match *held {
            Some(block) if block.count > 0 => block,
            _ => self.allocate(BLOCK).await?,
        };
        *held =
            Some(ProducerIdBlock { first: ProducerId::new(block.first.get() + 1), count: block.count - 1 });
        Ok(block.first)
    }

    /// Refuses an id that the cluster never gave out: everyone who makes up ids would otherwise be remembered in every partition.
    /// `producer` below 0 is none, and stands.
    pub(crate) async fn check(&self, producer: ProducerId) -> Result<(), WireError> {
        let is_known = || producer.get() < self.given_out.load(Ordering::Relaxed);
        if is_known() {
            return Ok(());
        }
        // Given out by another broker, or by this one before it restarted; or by nobody. Who makes up ids writes nothing to the
        // controller's log: its state is read.
        let end = self.end_now().await?;
        self.given_out.fetch_max(end.get(), Ordering::Relaxed);
        if is_known() {
            return Ok(());
        }
        Err(WireError::new(
            ErrorCode::UnknownProducer,
            format!(
                "producer id {producer} was never given out by this cluster; ask for one (init_producer)"
            ),
        ))
    }

    /// Ids below were given out by some broker before the call.
    async fn end_now(&self) -> Result<ProducerId, WireError> {
        let not_here = || errors::not_on_this_broker(ShardId::CONTROLLER);
        let replica = self.shards.controller().ok_or_else(not_here)?;
        // As for any other request: all who ask meanwhile share one round.
        replica.read_barrier().await.map_err(|error| errors::barrier(&error, replica.others_vote()))?;
        let controller = replica.shard().controller().ok_or_else(not_here)?;
        Ok(controller.producer_ids_end())
    }

    async fn allocate(&self, count: u32) -> Result<ProducerIdBlock, WireError> {
        let command = ControllerCommand::AllocateProducerIds { count };
        let unit = Unit::Control(command);
        match self.shards.propose(ShardId::CONTROLLER, unit).await.map_err(|e| errors::propose(&e))? {
            UnitResult::Control(Ok(ControllerReply::ProducerIds(block))) => {
                let end = block.first.get() + i64::from(block.count);
                self.given_out.fetch_max(end, Ordering::Relaxed);
                Ok(block)
            }
            UnitResult::Control(Err(error)) => Err(errors::controller(&error)),
            other => Err(errors::unexpected(&other)),
        }
    }
}
