//! Waiting for the shards that have a replica here to adopt what the controller decided, so that whoever had it decided finds it with the
//! next request.

use std::time::Duration;

use tidemill_protocol::ShardId;
use tidemill_raft::{Replica, ReplicaRole, ReplicaState};
use tokio::time::Instant;

use crate::context::Context;

/// How long whoever changes something waits for shards to have heard of it.
const ADOPTION_PATIENCE: Duration = Duration::from_secs(5);
/// Between two looks at them.
pub(super) const ADOPTION_INTERVAL: Duration = Duration::from_millis(50);

/// Until when who asks now waits.
pub(super) fn patience() -> Instant {
    Instant::now() + ADOPTION_PATIENCE
}

/// Waits until the replicas here of these shards have adopted something, no longer than `until`: it stands whether or not anybody waits.
/// Only those that answer for their shards count, for as long as they do: one that has stopped, or is still being filled, adopts nothing,
/// and requests go elsewhere.
pub(super) async fn adopted(
    context: &Context,
    shards: &[ShardId],
    until: Instant,
    has_adopted: impl Fn(&Replica) -> bool,
) {
    for shard in shards {
        while let Some(replica) = adopting(context, *shard) {
            let mut changes = replica.changes();
            if has_adopted(&replica) {
                break;
            }
            let now = Instant::now();
            if now >= until {
                return;
            }
            // A replica that ends tells of no change: after a while it is looked again whether it goes on.
            let _ = tokio::time::timeout_at(until.min(now + ADOPTION_INTERVAL), changes.changed()).await;
        }
    }
}

/// The replica here of a shard, where it answers for the shard and adopts what comes.
fn adopting(context: &Context, shard: ShardId) -> Option<Replica> {
    let replica = context.shards.serving(shard)?;
    let adopts = adopts(&replica.watch().borrow());
    adopts.then_some(replica)
}

const fn adopts(role: &ReplicaRole) -> bool {
    !matches!(role.state, ReplicaState::Learner | ReplicaState::Stopped { .. })
}

/// Whether a shard that has `adopted` this version of something, if any, needs no other. Of what is deleted and never came to it there is
/// nothing to adopt.
pub(super) const fn is_current(adopted: Option<u64>, version: u64, deleted: bool) -> bool {
    match adopted {
        Some(adopted) => adopted >= version,
        None => deleted,
    }
}

#[cfg(test)]
mod tests {
    use tidemill_protocol::Term;

    use super::*;

    #[test]
    fn nobody_waits_for_a_replica_that_adopts_nothing() {
        let adopts = |state| adopts(&ReplicaRole { state, term: Term::new(1), leader: None });
        assert!(!adopts(ReplicaState::Stopped { reason: "EIO".into() }));
        assert!(!adopts(ReplicaState::Learner));
        assert!(adopts(ReplicaState::Leader) && adopts(ReplicaState::Follower));
    }

    #[test]
    fn what_is_deleted_and_was_never_here_is_not_waited_for() {
        assert!(!is_current(None, 3, false) && is_current(None, 3, true));
        for deleted in [false, true] {
            assert!(!is_current(Some(2), 3, deleted) && is_current(Some(3), 3, deleted));
        }
    }
}
