//! Whether there is room for records with every broker that would keep them.
//!
//! What a leader writes, every replica of the shard writes too: one whose disk is full stops. So the leader refuses records as long as any
//! of the group's brokers says that it has no room, as it does for its own disk.

use std::sync::Arc;

use futures::future::BoxFuture;
use tidemill_coordinator::GroupCommand;
use tidemill_protocol::{BrokerId, NodeId};
use tidemill_raft::{Gate, GroupMembers, Held, ProposeError, Replica};
use tidemill_shard::Unit;

use crate::admission::{Admission, Admitted, NoRoom};
use crate::disk::DiskState;
use crate::peers::Peers;

/// Room on the disks of this broker and of the others. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Room {
    disk: Arc<DiskState>,
    peers: Peers,
}

impl Room {
    pub(crate) fn new(disk: &Arc<DiskState>, peers: &Peers) -> Self {
        Self { disk: Arc::clone(disk), peers: peers.clone() }
    }

    /// The broker whose disk keeps records out of a shard, if there is one: this one first.
    pub(crate) fn lacking(&self, replica: &Replica) -> Option<BrokerId> {
        let me = self.peers.myself().broker;
        if self.disk.is_nearly_full() {
            return Some(me);
        }
        first_without_room(&replica.members(), |broker| {
            broker != me && self.peers.disk_of(broker).nearly_full
        })
    }

    /// Whether a broker is to lead, by what is known of its disk; `failed` of this broker's own.
    pub(crate) fn may_lead(&self, broker: BrokerId, failed: bool) -> bool {
        if broker == self.peers.myself().broker {
            return !failed && !self.disk.is_nearly_full();
        }
        let disk = self.peers.disk_of(broker);
        !disk.failed && !disk.nearly_full && !disk.stopping
    }
}

fn first_without_room(members: &GroupMembers, lacks_room: impl Fn(BrokerId) -> bool) -> Option<BrokerId> {
    members
        .voters
        .iter()
        .chain(&members.learners)
        .map(|node| NodeId::broker(*node))
        .find(|broker| lacks_room(*broker))
}

/// Lets in what other brokers propose as if it had come here first.
pub(crate) struct PeersGate {
    pub(crate) room: Room,
    pub(crate) admission: Arc<Admission>,
}

/// What a unit needs room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Needs {
    /// Records, or a task's step: in the log and on every disk of the group.
    Disks,
    /// Positions: in the log.
    Log,
    /// What the cluster tells itself, and what frees room.
    Nothing,
}

fn needs(unit: &Unit) -> Needs {
    match unit {
        Unit::Append { .. }
        | Unit::Refuse { .. }
        | Unit::RoutedAppend(_)
        | Unit::Progress(_)
        | Unit::Deliver { .. } => Needs::Disks,
        Unit::Group(GroupCommand::Commit { .. }) => Needs::Log,
        Unit::Group(GroupCommand::Delete { .. } | GroupCommand::ForgetTopic { .. })
        | Unit::Control(_)
        | Unit::AdoptTopic(_)
        | Unit::AdoptDeployment(_)
        | Unit::Delivered { .. }
        | Unit::AdvanceLogStart { .. }
        | Unit::TaskStatus { .. }
        | Unit::TakeStateHash
        | Unit::ReportStateHash(_)
        | Unit::Tick => Needs::Nothing,
    }
}

impl PeersGate {
    async fn admitted(&self, replica: &Replica, unit: &Unit) -> Result<Option<Admitted>, ProposeError> {
        let admitted = match needs(unit) {
            Needs::Nothing => return Ok(None),
            Needs::Log => self.admission.admit_to_log(unit.bytes()).await,
            Needs::Disks => {
                if let Some(broker) = self.room.lacking(replica) {
                    return Err(ProposeError::DiskFull { broker });
                }
                self.admission.admit(unit.bytes()).await
            }
        };
        admitted.map(Some).map_err(|no_room| match no_room {
            NoRoom::Log => ProposeError::Overloaded,
            NoRoom::Disk => ProposeError::DiskFull { broker: self.room.peers.myself().broker },
        })
    }
}

impl Gate for PeersGate {
    fn admit<'a>(
        &'a self,
        replica: &'a Replica,
        unit: &'a Unit,
    ) -> BoxFuture<'a, Result<Held, ProposeError>> {
        Box::pin(async move { Ok(Box::new(self.admitted(replica, unit).await?) as Held) })
    }
}

#[cfg(test)]
mod tests {
    use tidemill_protocol::Offset;
    use tidemill_protocol::{PartitionId, TopicId, TopicPartition};

    use super::*;

    #[test]
    fn any_member_without_room_keeps_records_out() {
        let node = |broker| NodeId::new(BrokerId::new(broker), 1);
        let members = GroupMembers {
            voters: [1, 2].map(node).into(),
            learners: [7].map(node).into(),
            ..GroupMembers::default()
        };
        let lacking = |full: u32| first_without_room(&members, |broker| broker == BrokerId::new(full));
        assert_eq!(lacking(2), Some(BrokerId::new(2)));
        assert_eq!(lacking(7), Some(BrokerId::new(7)), "it is being filled");
        assert_eq!(lacking(3), None, "it keeps nothing of this shard");
    }

    #[test]
    fn what_frees_room_needs_none() {
        let partition = TopicPartition::new(TopicId::new(uuid::Uuid::from_u128(1)), PartitionId::new(0));
        assert_eq!(needs(&Unit::AdvanceLogStart { partition, offset: Offset::ZERO }), Needs::Nothing);
        assert_eq!(needs(&Unit::Group(GroupCommand::Delete { group: "g".to_owned() })), Needs::Nothing);
        let commit = GroupCommand::Commit { group: "g".to_owned(), positions: Vec::new() };
        assert_eq!(needs(&Unit::Group(commit)), Needs::Log);
        let append = Unit::Append { partition, batch: bytes::Bytes::new(), leader_epoch: None };
        assert_eq!(needs(&append), Needs::Disks);
    }
}
