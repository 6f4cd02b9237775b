//! Producer ids, taken from the controller in blocks.

use tidemill_controller::{ControllerCommand, ControllerReply, ProducerIdBlock};
use tidemill_protocol::{ProducerId, ShardId};
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
}

impl ProducerIds {
    pub(crate) fn new(shards: Shards) -> Self {
        Self { shards, block: Mutex::new(None) }
    }

    /// A new id.
    ///
    /// The lock is held while the controller is asked: whoever comes meanwhile needs the same block.
    pub(crate) async fn next(&self) -> Result<ProducerId, WireError> {
        let mut held = self.block.lock().await;
        let block = match *held {
            Some(block) if block.count > 0 => block,
            _ => self.allocate().await?,
        };
        *held =
            Some(ProducerIdBlock { first: ProducerId::new(block.first.get() + 1), count: block.count - 1 });
        Ok(block.first)
    }

    async fn allocate(&self) -> Result<ProducerIdBlock, WireError> {
        let command = ControllerCommand::AllocateProducerIds { count: BLOCK };
        let unit = Unit::Control(command);
        match self.shards.propose(ShardId::CONTROLLER, unit).await.map_err(|e| errors::propose(&e))? {
            UnitResult::Control(Ok(ControllerReply::ProducerIds(block))) => Ok(block),
            UnitResult::Control(Err(error)) => Err(errors::controller(&error)),
            other => Err(errors::unexpected(&other)),
        }
    }
}
