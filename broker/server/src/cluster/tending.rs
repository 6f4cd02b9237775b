//! Keeps this broker's replicas in step with what the controller plans, for as long as the broker runs.

use std::sync::Arc;
use std::time::Duration;

use tidemill_controller::{BrokerRecord, Controller, ShardRecord};
use tidemill_protocol::{BrokerId, NodeId, ShardId};
use tidemill_raft::{Begin, Replica};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::losses::{Loss, Lost, planned_by_others};
use super::replicas::{ReplicaStarter, Trust};
use crate::peers::Peers;
use crate::shards::Shards;
use crate::view::ViewReader;

/// So long a replica that has left its group answers that it does not lead, before it stops.
const LEAVING_GRACE: Duration = Duration::from_secs(5);
/// What is not as planned is tried again after this long.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// What brings a shard here to what is planned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Due {
    /// Its replica comes up.
    Start,
    /// It comes up, or goes on, under this id, which is new.
    Renew(NodeId),
    /// It is to be elsewhere, and its group goes on without this one.
    LetGo,
}

/// What goes on beside the tending, and is waited for at its end.
struct Aside {
    /// Replicas that end.
    ending: JoinSet<()>,
    stopping: CancellationToken,
}

impl ReplicaStarter {
    /// Keeps the replicas here in step with what the controller plans: starts those that are to be here, those of another life anew,
    /// and those that were lost under new ids; and lets go of those that are to be here no longer. Ends soon after the broker is told to stop,
    /// and leaves nothing behind that goes on.
    pub(crate) async fn tend(
        self,
        lost: Lost,
        shards: Shards,
        view: ViewReader,
        peers: Peers,
        stopping: CancellationToken,
    ) {
        let mut aside = Aside { ending: JoinSet::new(), stopping: stopping.clone() };
        tokio::select! {
            () = self.keep_in_step(lost, &shards, view, &peers, &mut aside) => {}
            () = stopping.cancelled() => {}
        }
        while aside.ending.join_next().await.is_some() {}
    }

    async fn keep_in_step(
        &self,
        mut lost: Lost,
        shards: &Shards,
        view: ViewReader,
        peers: &Peers,
        aside: &mut Aside,
    ) {
        for (shard, loss) in &lost {
            loss.report(*shard);
        }
        let (mut view, mut asked_for) = (view, self.lives.asked_for());
        // What the controller's replica here was asked for as, and is not: who asked was wrong.
        let mut refuted = 0;
        loop {
            let asked = *asked_for.borrow_and_update();
            let mut failed = false;
            if asked > refuted && !lost.contains_key(&ShardId::CONTROLLER) {
                match self.ask_who_is_here(asked, view.now().controller(), peers).await {
                    Ok(None) => refuted = asked,
                    Ok(Some(planned)) => self.retire_controller(planned, &mut lost, shards, aside).await,
                    Err(reason) => {
                        tracing::info!(
                            reason,
                            "whether the controller's replica here was replaced will be asked again"
                        );
                        failed = true;
                    }
                }
            }
            failed |= !self.replace_lost(&mut lost, shards, peers).await;
            let now = view.now();
            self.snapshot_limiter.set(now.controller().settings().snapshot_bytes_per_second);
            let limit = self.snapshot_limiter.bytes_per_second().unwrap_or(0);
            metrics::gauge!("tidemill_snapshot_rate_limit_bytes_per_second").set(limit as f64);
            for shard in self.all().filter(|shard| !lost.contains_key(shard)) {
                if self.due(now.controller(), shard, shards).is_none() {
                    continue;
                }
                // A replica of the controller that catches up shows what was planned once, and is no more.
                let Some(due) = self.due_now(shard, shards).await else {
                    failed = true;
                    continue;
                };
                if let Err(reason) = self.take(shard, due, shards, aside).await {
                    tracing::warn!(%shard, reason, "a replica is not as planned yet");
                    failed = true;
                }
            }
            tokio::select! {
                changed = view.changed() => if changed.is_none() { return },
                // Its sender is there for as long as this is.
                _ = asked_for.changed() => {}
                // What has left may have been planned here again meanwhile.
                Some(ended) = aside.ending.join_next(), if !aside.ending.is_empty() => {
                    if let Err(error) = ended && error.is_panic() {
                        tracing::error!(%error, "the task that ends a replica panicked; what the replica had here may be left");
                    }
                }
                () = tokio::time::sleep(RETRY_INTERVAL), if failed => {}
            }
        }
    }

    /// What is planned for this broker is its own. Where another directory has its place, it is that one's: two must never live under one id.
    fn has_its_place(&self, controller: &Controller) -> bool {
        let is_mine = |known: &BrokerRecord| known.is_member() && known.incarnation == self.meta.incarnation;
        controller.broker(BrokerId::new(self.meta.broker_id)).is_none_or(is_mine)
    }

    /// Another broker asked for the controller's replica here under a later incarnation. The id that is planned, where it is a newer one
    /// indeed: others are asked, since to a replica that was found to lack what it acknowledged nothing is told.
    async fn ask_who_is_here(
        &self,
        asked: u32,
        controller: &Controller,
        peers: &Peers,
    ) -> Result<Option<NodeId>, String> {
        let here = self.lives.node(ShardId::CONTROLLER);
        if asked <= here.incarnation() || !self.has_its_place(controller) {
            return Ok(None);
        }
        let planned = planned_by_others(ShardId::CONTROLLER, here.broker(), peers).await?;
        Ok(planned.filter(|planned| {
            planned.broker() == here.broker() && planned.incarnation() > here.incarnation()
        }))
    }

    /// Ends the controller's replica here, which was replaced without being told: it comes back as one that was lost.
    async fn retire_controller(&self, planned: NodeId, lost: &mut Lost, shards: &Shards, aside: &mut Aside) {
        let loss = Loss::Replaced(planned);
        loss.report(ShardId::CONTROLLER);
        if let Some(replica) = shards.replica(ShardId::CONTROLLER) {
            shards.remove(ShardId::CONTROLLER);
            self.note_former(ShardId::CONTROLLER, &replica);
            aside.end(replica).await;
        }
        lost.insert(ShardId::CONTROLLER, loss);
    }

    /// What is to be done so that a shard is here as planned; `None`: nothing.
    fn due(&self, controller: &Controller, shard: ShardId, shards: &Shards) -> Option<Due> {
        let record = controller.shard(shard)?;
        if self.leaving.lock().contains(&shard) || !self.has_its_place(controller) {
            return None;
        }
        let planned = record.node_of(BrokerId::new(self.meta.broker_id));
        let last = self.lives.node(shard);
        match (planned, shards.replica(shard)) {
            (Some(node), None) if node == last => Some(Due::Start),
            (Some(node), None) if node.incarnation() > last.incarnation() => Some(Due::Renew(node)),
            (Some(node), Some(replica)) if node.incarnation() > replica.node().incarnation() => {
                Some(Due::Renew(node))
            }
            // Whoever is a broker of the cluster follows the controller.
            (None, Some(replica)) if shard != ShardId::CONTROLLER && has_left(record, replica.node()) => {
                Some(Due::LetGo)
            }
            _ => None,
        }
    }

    /// The same by what the controller has decided up to now; `None` where it can't be asked.
    async fn due_now(&self, shard: ShardId, shards: &Shards) -> Option<Option<Due>> {
        let state = shards.controller_now().await?;
        Some(self.due(&state, shard, shards))
    }

    async fn take(
        &self,
        shard: ShardId,
        due: Option<Due>,
        shards: &Shards,
        aside: &mut Aside,
    ) -> Result<(), String> {
        let Some(due) = due else { return Ok(()) };
        if due == Due::Start {
            // One that has not begun has promised nothing, whatever an earlier life left on the disk: this broker may have been killed
            // before what was left was put away.
            let waits = matches!(self.begin(shard, Trust::Whole), Begin::Join);
            return self.bring_up(shard, shards, if waits { Trust::New } else { Trust::Whole }).await;
        }
        let replica = shards.replica(shard);
        if let Some(replica) = &replica {
            tracing::info!(%shard, node = %replica.node(), ?due, "a replica's life here ends");
            shards.remove(shard);
        }
        match (due, replica) {
            (Due::LetGo, Some(replica)) => {
                self.leaving.lock().insert(shard);
                aside.ending.spawn(self.clone().leave(shard, replica, aside.stopping.clone()));
                Ok(())
            }
            (Due::Renew(node), replica) => {
                if let Some(replica) = replica {
                    self.note_former(shard, &replica);
                    aside.end(replica).await;
                }
                self.renew(shard, node, shards).await
            }
            // Nobody else takes a replica out, so there is one to let go.
            (Due::LetGo | Due::Start, _) => Ok(()),
        }
    }

    /// Stops a replica that has left its group, when streams that were opened to it have heard that it does not lead any more; then removes
    /// what it had. Where the broker stops before that, it stays: the next start lets go of it again.
    async fn leave(self, shard: ShardId, replica: Replica, stopping: CancellationToken) {
        let _leaving = Leaving { starter: &self, shard };
        tokio::select! {
            () = tokio::time::sleep(LEAVING_GRACE) => {}
            () = stopping.cancelled() => {}
        }
        self.note_former(shard, &replica);
        replica.stop().await;
        drop(replica);
        while !stopping.is_cancelled() {
            let Err(reason) = self.empty(shard).await else { return };
            tracing::warn!(%shard, reason, "what a replica had here is not removed yet; it only takes room");
            tokio::select! {
                () = tokio::time::sleep(RETRY_INTERVAL) => {}
                () = stopping.cancelled() => {}
            }
        }
    }

    fn note_former(&self, shard: ShardId, replica: &Replica) {
        self.former.lock().insert(shard, replica.shard().still_open());
    }

    /// Removes what a replica that has left its group had here, and what is left of that where it was broken off.
    pub(super) async fn empty(&self, shard: ShardId) -> Result<(), String> {
        let (lives, wal) = (Arc::clone(&self.lives), self.wal.clone());
        let (storage, directory) = (Arc::clone(self.files.storage()), (self.shard_config)(shard).dir);
        let emptied = tokio::task::spawn_blocking(move || {
            // First, so that what is half removed is never taken for whole.
            if !lives.has_left(shard) {
                lives.leave(shard)?;
            }
            // What it has in the log keeps that from becoming smaller, whether the directory goes or not.
            let held = wal.range(shard);
            if let Some(last) = held.last.filter(|_| held.first.is_some()) {
                wal.purge(shard, last, Box::new(|_| ()));
            }
            storage.remove_dir_all(&directory)
        });
        emptied.await.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
    }
}

/// A shard whose replica is on its way out, for as long as that takes, however it ends.
struct Leaving<'a> {
    starter: &'a ReplicaStarter,
    shard: ShardId,
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.starter.leaving.lock().remove(&self.shard);
    }
}

impl Aside {
    /// Stops a replica that nobody else finds any more. The stop is not broken off with whoever waits here: it comes before the log's end.
    async fn end(&mut self, replica: Replica) {
        let (done, ended) = oneshot::channel::<()>();
        self.ending.spawn(async move {
            replica.stop().await;
            drop(replica);
            drop(done);
        });
        // It says nothing: it is dropped in the end.
        let _ = ended.await;
    }
}

/// Whether a shard's group has gone on without a node, as its leader said.
fn has_left(record: &ShardRecord, node: NodeId) -> bool {
    record
        .members
        .as_ref()
        .is_some_and(|members| !members.voters.contains(&node) && !members.learners.contains(&node))
}

#[cfg(test)]
mod tests;
