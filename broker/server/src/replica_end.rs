//! When a replica on this broker has ended, for streams that use it.

use tidemill_protocol::NodeId;
use tidemill_raft::{GroupMembers, Replica, ReplicaRole};
use tokio::sync::watch;

/// Tells when a replica stops, and does not keep it from that. The next replica of the shard opens the same files: nobody may hold
/// one that has ended for longer than it takes to be told.
#[derive(Clone)]
pub(crate) struct ReplicaEnd {
    node: NodeId,
    role: watch::Receiver<ReplicaRole>,
    members: watch::Receiver<GroupMembers>,
}

impl ReplicaEnd {
    pub(crate) fn of(replica: &Replica) -> Self {
        Self { node: replica.node(), role: replica.watch(), members: replica.watch_members() }
    }

    pub(crate) const fn node(&self) -> NodeId {
        self.node
    }

    /// Returns once it has stopped while others go on: nothing comes there any more.
    pub(crate) async fn left_behind(mut self) {
        // The announcer gone means the same.
        drop(self.role.wait_for(|role| role.stopped().is_some()).await);
        if !self.members.borrow().has_voters_beside(self.node) {
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use futures::FutureExt;
    use tidemill_protocol::{BrokerId, Term};
    use tidemill_raft::ReplicaState;

    use super::*;

    #[tokio::test]
    async fn a_replica_of_which_nothing_is_announced_any_more_has_left_its_users_behind() {
        let node = |broker| NodeId::new(BrokerId::new(broker), 1);
        let role = ReplicaRole { state: ReplicaState::Follower, term: Term::new(1), leader: None };
        let (announcer, role) = watch::channel(role);
        let voters = |voters: BTreeSet<NodeId>| GroupMembers { voters, ..GroupMembers::default() };
        let (regroup, members) = watch::channel(voters([node(1), node(2)].into()));
        let end = ReplicaEnd { node: node(1), role, members };
        let left_behind = || end.clone().left_behind().now_or_never().is_some();
        assert!(!left_behind(), "it follows");
        drop(announcer);
        assert!(left_behind());
        regroup.send_replace(voters([node(1)].into()));
        assert!(!left_behind(), "there is nobody to go to");
    }
}
