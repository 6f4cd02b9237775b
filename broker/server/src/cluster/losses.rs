//! Replicas that can't go on as what they were, and how others make good for them.
//!
//! ```text
//!   what is lost                        what is left, under the new id that the controller gives
//!   its log, or the end of it           what its checkpoint holds
//!   what it stored: segments, state     nothing: it is removed, once the others were seen to go on without this replica
//! ```
//!
//! That the end of its log is gone a replica may not know: it looks as if it had never been written. Its leader does, feeds it no more, and
//! has another planned in its place, of which the broker hears by its replica of the controller. Where it is that one which lost something,
//! others ask for the new one in vain, and so the broker asks them.
//!
//! Until it has its new id a lost replica does not run, and nothing of it is touched. Broken off anywhere behind that, the next start finds it lost
//! again, in the one way or the other.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tidemill_controller::{ControllerCommand, ControllerReply};
use tidemill_protocol::messages::Error;
use tidemill_protocol::{BrokerId, ErrorCode, NodeId, ShardId};
use tidemill_raft::ReplicaStartError;
use tidemill_shard::{ShardOpenError, Unit, UnitResult};
use tokio::time::Instant;

use super::replicas::ReplicaStarter;
use crate::peers::messages::{Purpose, ReplaceOpen, ReplaceReply};
use crate::peers::{NotConnected, Peers};
use crate::shards::Shards;
use crate::start_error::StartError;

/// An incarnation older than all that ever live. Whoever gives up a replica under it is answered which one is planned now, and nothing changes.
const NEVER_LIVED: u32 = 0;

/// For the answers of all others together. While they are asked no other replica here is tended.
const OTHERS_PATIENCE: Duration = Duration::from_secs(15);

/// Replicas that can't be started as they are, and why.
pub(crate) type Lost = BTreeMap<ShardId, Loss>;

/// Why a replica can't be started as it is, while its group may be well.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Loss {
    /// What it may have promised.
    #[error(transparent)]
    Promises(ReplicaStartError),
    /// What it acknowledged, as its leader found: it hears no more of the cluster.
    #[error("the cluster has replica {0} in its place")]
    Replaced(NodeId),
    /// What it stored is damaged.
    #[error(transparent)]
    Stored(Box<ShardOpenError>),
}

impl Loss {
    /// The loss that kept a replica from starting.
    ///
    /// # Errors
    /// It is none: it may pass, or others can't help.
    pub(super) fn of(error: StartError) -> Result<Self, StartError> {
        match error {
            StartError::Replica(
                error @ (ReplicaStartError::DoubtfulTail { .. }
                | ReplicaStartError::LogLost { .. }
                | ReplicaStartError::StateLost { .. }
                | ReplicaStartError::Missing { .. }),
            ) => Ok(Self::Promises(error)),
            StartError::Shard { source, .. } if source.is_damage() => Ok(Self::Stored(source)),
            error => Err(error),
        }
    }

    /// Says that a replica is retired, and counts it.
    pub(super) fn report(&self, shard: ShardId) {
        let what = match self {
            Self::Promises(_) => "a replica lost what it may have promised",
            Self::Replaced(_) => "a replica lost what it had acknowledged",
            Self::Stored(_) => "what a replica stored is damaged",
        };
        tracing::error!(%shard, error = %self, "{what}; it is retired, and comes back as a new one");
        metrics::counter!("tidemill_replicas_retired_total").increment(1);
    }
}

impl ReplicaStarter {
    /// Has lost replicas come back as new ones; `false` where some are still missing.
    pub(super) async fn replace_lost(&self, lost: &mut Lost, shards: &Shards, peers: &Peers) -> bool {
        for (shard, loss) in std::mem::take(lost) {
            let old = self.lives.node(shard);
            match self.replace(shard, old, &loss, shards, peers).await {
                Ok(node) => tracing::info!(%shard, %old, %node, "a retired replica goes on as a new one"),
                Err(reason) => {
                    tracing::warn!(%shard, %old, reason, "a retired replica is not replaced yet");
                    lost.insert(shard, loss);
                }
            }
        }
        lost.is_empty()
    }

    async fn replace(
        &self,
        shard: ShardId,
        old: NodeId,
        loss: &Loss,
        shards: &Shards,
        peers: &Peers,
    ) -> Result<NodeId, String> {
        let is_damaged = matches!(loss, Loss::Stored(_));
        // Of the controller's own shard the others show it by giving the id: its replica here does not run, so they decided without it.
        if is_damaged && shard != ShardId::CONTROLLER {
            others_go_on(shard, shards).await?;
        }
        let node = new_node(shard, old, shards, peers).await?;
        if is_damaged {
            self.discard(shard).await?;
        }
        self.renew(shard, node, shards).await?;
        Ok(node)
    }

    /// Removes what a replica stored that is damaged, where the others go on without it.
    pub(super) async fn clear(&self, shard: ShardId, shards: &Shards) -> Result<(), String> {
        others_go_on(shard, shards).await?;
        self.discard(shard).await
    }

    /// Removes a damaged shard. Broken off, what is left of it is as damaged; or it is gone, and its log says that there was more.
    async fn discard(&self, shard: ShardId) -> Result<(), String> {
        let (storage, directory) = (Arc::clone(self.files.storage()), (self.shard_config)(shard).dir);
        tracing::warn!(%shard, directory = %directory.display(), "removing a damaged replica, which the others have whole");
        let removed = tokio::task::spawn_blocking(move || {
            storage.remove_dir_all(&directory)?;
            storage.sync_dir(directory.parent().unwrap_or(Path::new("")))
        });
        removed.await.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
    }
}

/// Whether a shard's other replicas decide without the one here, which does not run: a majority that does has all that was ever
/// acknowledged, and what is here is needed no more.
async fn others_go_on(shard: ShardId, shards: &Shards) -> Result<(), String> {
    // It says nothing but the time; what counts is that it is committed.
    match shards.propose(shard, Unit::Tick).await {
        Ok(_) => Ok(()),
        Err(error) => Err(format!(
            "the other replicas of the shard do not go on without it, so what is left of it is kept: {error}"
        )),
    }
}

/// Asks the controller for the id under which a retired replica comes back: by this broker's own replica of it, else by another broker.
async fn new_node(shard: ShardId, old: NodeId, shards: &Shards, peers: &Peers) -> Result<NodeId, String> {
    if shard != ShardId::CONTROLLER && shards.controller().is_some() {
        return replacement(shards, shard, old).await.map_err(|error| error.message);
    }
    ask_others(shard, old, peers).await.map_err(|error| error.message)
}

/// The id under which the replica of a shard is planned here, by what another broker has the controller say: it need not have come to this
/// broker's own replica of it. `None`: there is none planned.
pub(super) async fn planned_by_others(
    shard: ShardId,
    me: BrokerId,
    peers: &Peers,
) -> Result<Option<NodeId>, String> {
    match ask_others(shard, NodeId::new(me, NEVER_LIVED), peers).await {
        Ok(node) => Ok(Some(node)),
        Err(error) if is_final(&error) => Ok(None),
        Err(error) => Err(error.message),
    }
}

/// Asks other brokers, one after the other, for the id under which a replica of this one comes back.
async fn ask_others(shard: ShardId, old: NodeId, peers: &Peers) -> Result<NodeId, Error> {
    let ask = move |broker| {
        let open = ReplaceOpen { shard: u32::from(shard.get()), node: old.get() };
        peers.ask::<ReplaceReply>(broker, Purpose::Replace(open))
    };
    ask_each(&peers.connected(), ask).await
}

/// Each has its share of the time that is left: one that is silent does not keep the next from being asked. Nothing is concluded from
/// silence. What it stands for may have been decided all the same, and then the next to be asked says so.
async fn ask_each<F>(others: &[BrokerId], ask: impl Fn(BrokerId) -> F) -> Result<NodeId, Error>
where
    F: Future<Output = Result<ReplaceReply, NotConnected>>,
{
    let until = Instant::now() + OTHERS_PATIENCE;
    let mut last = Error::new(ErrorCode::NotLeader, "no other broker is connected");
    let mut left_to_ask = u32::try_from(others.len()).unwrap_or(u32::MAX);
    for broker in others {
        let share = until.saturating_duration_since(Instant::now()) / left_to_ask.max(1);
        left_to_ask = left_to_ask.saturating_sub(1);
        last = match tokio::time::timeout(share, ask(*broker)).await {
            Ok(Ok(ReplaceReply { error: None, node })) => return Ok(NodeId::from_raw(node)),
            Ok(Ok(ReplaceReply { error: Some(error), .. })) => {
                Error { message: format!("broker {broker}: {}", error.message), ..error }
            }
            Ok(Err(error)) => error.into(),
            Err(_elapsed) => {
                Error::new(ErrorCode::Deadline, format!("broker {broker} did not answer in time"))
            }
        };
        if is_final(&last) {
            break;
        }
    }
    Err(last)
}

/// Whether the controller itself has refused something: it would do so whoever passes it on.
fn is_final(error: &Error) -> bool {
    error.error_code() == Some(ErrorCode::ClusterChangeRefused)
}

/// The id under which a retired replica comes back, from the controller.
pub(crate) async fn replacement(shards: &Shards, shard: ShardId, old: NodeId) -> Result<NodeId, Error> {
    let unit = Unit::Control(ControllerCommand::ReplaceReplica { shard, old });
    match shards.propose(ShardId::CONTROLLER, unit).await {
        Ok(UnitResult::Control(Ok(ControllerReply::Replica(node)))) => Ok(node),
        Ok(UnitResult::Control(Err(refused))) => {
            Err(Error::new(ErrorCode::ClusterChangeRefused, refused.to_string()))
        }
        Ok(other) => Err(Error::new(ErrorCode::Internal, format!("the controller answered {other:?}"))),
        Err(error) => Err(crate::errors::propose(&error)),
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::path::PathBuf;

    use tidemill_controller::{ClusterIdentity, Controller, Durability};
    use tidemill_log::segment::OpenError;
    use tidemill_protocol::{ClusterId, Timestamp};

    use super::*;
    use crate::broker::Broker;
    use crate::testing::small_config;

    const SHARD: ShardId = ShardId::new(1);

    fn opening(source: ShardOpenError) -> StartError {
        StartError::Shard { shard: SHARD, source: Box::new(source) }
    }

    #[test]
    fn damage_is_a_loss_and_what_the_storage_refuses_is_none() {
        let file = PathBuf::from("shard-01/0.log");
        for damage in [
            ShardOpenError::Damaged { path: file.clone(), reason: "no sense".to_owned() },
            OpenError::Missing { file: file.clone(), recorded: 9 }.into(),
            OpenError::Short { file: file.clone(), recorded: 9, found: 8 }.into(),
        ] {
            let said = damage.to_string();
            assert!(matches!(Loss::of(opening(damage)), Ok(Loss::Stored(_))), "{said}");
            assert!(said.contains("from a copy"), "{said}");
        }
        for kind in [io::ErrorKind::PermissionDenied, io::ErrorKind::StorageFull, io::ErrorKind::Other] {
            let path = || file.clone();
            for refused in [
                ShardOpenError::Io { path: path(), source: kind.into() },
                OpenError::Io { path: path(), source: kind.into() }.into(),
            ] {
                assert!(matches!(Loss::of(opening(refused)), Err(StartError::Shard { .. })), "{kind}");
            }
        }
        let other = ShardOpenError::OtherShard { path: file, found: ShardId::new(2), expected: SHARD };
        assert!(matches!(Loss::of(opening(other)), Err(StartError::Shard { .. })));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_broker_that_knows_no_other_does_not_start_on_damage_and_removes_nothing() {
        let home = tempfile::tempdir().expect("a directory");
        let config = small_config(home.path());
        Broker::start(config.clone()).await.expect("starts").shutdown("enough").await;
        let (state, rubbish) = (home.path().join("shard-01/state"), vec![0xa5; 9_000]);
        std::fs::write(&state, &rubbish).expect("written");
        let Err(error) = Broker::start(config).await else { panic!("nobody else has the shard") };
        assert!(matches!(error, StartError::Shard { .. }), "{error:?}");
        assert!(error.to_string().contains("restore the data directory from a copy"), "{error}");
        assert!(std::fs::read(&state).expect("it is there") == rubbish);
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_answer_is_not_waited_for_and_the_next_is_asked() {
        let others = [1, 2, 3].map(BrokerId::new);
        let node = NodeId::new(BrokerId::new(9), 4);
        let begun = Instant::now();
        let only_the_last = |broker: BrokerId| async move {
            if broker != BrokerId::new(3) {
                std::future::pending::<()>().await;
            }
            Ok(ReplaceReply { error: None, node: node.get() })
        };
        assert_eq!(ask_each(&others, only_the_last).await.expect("one answers"), node);
        assert!(begun.elapsed() < OTHERS_PATIENCE);

        let begun = Instant::now();
        let unanswered = ask_each(&others, |_| std::future::pending()).await.expect_err("nobody answers");
        assert!(!is_final(&unanswered), "it is asked again: {unanswered}");
        assert!(begun.elapsed() < OTHERS_PATIENCE + Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_controller_refuses_is_asked_of_nobody_else() {
        let others = [1, 2].map(BrokerId::new);
        let refused = ask_each(&others, |broker| async move {
            assert_eq!(broker, BrokerId::new(1));
            let error = Some(Error::new(ErrorCode::ClusterChangeRefused, "there is none"));
            Ok(ReplaceReply { error, node: 0 })
        });
        assert!(is_final(&refused.await.expect_err("it is refused")));
    }

    #[test]
    fn who_is_planned_is_asked_without_a_change() {
        let (one, two) = (BrokerId::new(1), BrokerId::new(2));
        let identity = ClusterIdentity {
            cluster: ClusterId::new(uuid::Uuid::from_u128(7)),
            data_shards: 1,
            durability: Durability::Fsync,
        };
        let (mut controller, now) = (Controller::default(), Timestamp::new(1_700_000_000_000));
        let mut apply = |command| controller.apply(&command, now).map(|reply| (reply, controller.version()));
        let form = ControllerCommand::FormCluster { identity, brokers: vec![one, two] };
        let (_, version) = apply(form).expect("formed");
        let ask = |broker| {
            let (shard, old) = (ShardId::CONTROLLER, NodeId::new(broker, NEVER_LIVED));
            ControllerCommand::ReplaceReplica { shard, old }
        };
        let planned = ControllerReply::Replica(NodeId::new(two, 1));
        assert_eq!(apply(ask(two)), Ok((planned, version)));
        assert!(apply(ask(BrokerId::new(3))).is_err(), "none of its is planned");
    }

    #[test]
    fn a_log_that_is_gone_is_a_loss_and_one_that_this_release_can_not_read_is_none() {
        let lost = ReplicaStartError::Missing { shard: SHARD };
        assert!(matches!(Loss::of(StartError::Replica(lost)), Ok(Loss::Promises(_))));
        let unread =
            ReplicaStartError::Unreadable { shard: SHARD, what: "a vote", reason: "newer".to_owned() };
        assert!(matches!(Loss::of(StartError::Replica(unread)), Err(StartError::Replica(_))));
        assert!(matches!(Loss::of(StartError::Interrupted), Err(StartError::Interrupted)));
    }
}
