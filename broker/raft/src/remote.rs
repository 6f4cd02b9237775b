//! A shard of which this broker has no replica: its units go to whoever leads it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tidemill_protocol::{NodeId, ShardId};
use tidemill_shard::{Unit, UnitResult};
use tokio::time::Instant;

use crate::anywhere::{PermitAnywhere, Seeker, propose_at_leader};
use crate::config::ReplicaLimits;
use crate::error::ProposeError;
use crate::forward::Forwarder;
use crate::peer_network::PeerLinks;
use crate::peers::PeerDialer;
use crate::snapshot::SnapshotLimiter;

/// The way to a shard's leader for who has no replica of the shard. Units are written there as those of a replica that follows are,
/// over the same kind of stream. Cheap to clone.
#[derive(Clone)]
pub struct RemoteShard(Arc<Inner>);

struct Inner {
    shard: ShardId,
    forwarder: Forwarder,
    leader: Box<dyn Fn() -> Option<NodeId> + Send + Sync>,
    proposal_deadline: Duration,
}

impl RemoteShard {
    /// A way that begins at `from`: this broker, under its directory's incarnation. It may be a member's id, too; nothing but proposals
    /// goes out under it. `leader` says who leads as
    /// far as this broker has heard; a replica that does not lead any more knows better.
    pub fn new(
        shard: ShardId,
        from: NodeId,
        dialer: Arc<dyn PeerDialer>,
        limits: &ReplicaLimits,
        leader: impl Fn() -> Option<NodeId> + Send + Sync + 'static,
    ) -> Self {
        let bytes_max = limits.append_in_flight_bytes_max;
        // No snapshot ever leaves from here.
        let links =
            PeerLinks::new(dialer, shard, from, bytes_max, Arc::new(SnapshotLimiter::new(None)), None);
        Self(Arc::new(Inner {
            shard,
            forwarder: Forwarder::new(links, limits),
            leader: Box::new(leader),
            proposal_deadline: limits.proposal_deadline,
        }))
    }

    /// Writes one unit at the shard's leader.
    ///
    /// # Errors
    /// As of [`Replica::propose_anywhere`](crate::Replica::propose_anywhere).
    pub async fn propose(&self, unit: Unit) -> Result<UnitResult, ProposeError> {
        let deadline = Instant::now() + self.0.proposal_deadline;
        propose_at_leader(&mut self.clone(), unit, deadline).await
    }

    /// Waits for room for a unit of `bytes` on the stream to the leader: units that are submitted to the same leader are written in the
    /// order of the calls.
    ///
    /// # Errors
    /// As of [`Replica::reserve_anywhere`](crate::Replica::reserve_anywhere).
    pub async fn reserve(&self, bytes: usize) -> Result<PermitAnywhere, ProposeError> {
        let leader = (self.0.leader)().ok_or(ProposeError::NotLeader { leader: None })?;
        self.0.forwarder.reserve(leader, bytes).await.map(PermitAnywhere::there)
    }
}

impl Seeker for RemoteShard {
    async fn leader(&mut self, _deadline: Instant) -> Result<Option<NodeId>, ProposeError> {
        Ok((self.0.leader)())
    }

    async fn ask(
        &mut self,
        leader: NodeId,
        unit: Unit,
        deadline: Instant,
    ) -> Result<UnitResult, ProposeError> {
        self.0.forwarder.propose(leader, unit, deadline).await
    }

    async fn news(&mut self, until: Instant) {
        // None wakes it: `leader` is asked again.
        tokio::time::sleep_until(until).await;
    }

    fn last_heard(&self) -> Option<NodeId> {
        (self.0.leader)()
    }
}

impl fmt::Debug for RemoteShard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RemoteShard").field(&self.0.shard).finish()
    }
}
