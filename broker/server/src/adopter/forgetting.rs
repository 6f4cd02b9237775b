//! Deletions that every shard has adopted: the controller needs to remember them no longer.
//!
//! A broker that has a replica of every shard looks for itself. A controller's leader that has not asks about the shards that are
//! not here at brokers that have them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tidemill_controller::{ControllerCommand, DeploymentRecord, TopicRecord};
use tidemill_protocol::messages::Error;
use tidemill_protocol::{DeploymentId, ShardId, TopicId};
use tidemill_raft::Replica;
use tidemill_shard::Unit;

use crate::cluster::ask_a_holder;
use crate::context::Context;
use crate::errors;
use crate::peers::messages::{DeletedDeployment, DeletedTopic, HeldOpen, HeldReply, Purpose};
use crate::view::ClusterView;

/// Of what was deleted, so much is looked at in one turn; the rest follows.
const DELETED_MAX: usize = 1_000;

/// What was deleted, with the versions of the deletions.
struct Deleted {
    topics: BTreeMap<TopicId, u64>,
    deployments: BTreeMap<DeploymentId, u64>,
}

/// What of it shards still hold.
#[derive(Default)]
struct Held {
    topics: BTreeSet<TopicId>,
    deployments: BTreeSet<DeploymentId>,
}

/// Tells the controller which deletions every shard has adopted; `false` where that is to be tried again.
pub(super) async fn forget(context: &Arc<Context>, view: &ClusterView) -> bool {
    let deleted = Deleted::of(view);
    if deleted.topics.is_empty() && deleted.deployments.is_empty() {
        return true;
    }
    let shards = &context.shards;
    let elsewhere: BTreeSet<ShardId> =
        shards.numbers().filter(|shard| shards.replica(*shard).is_none()).collect();
    let leads = || shards.controller().is_some_and(|controller| controller.watch().borrow().is_leader());
    if !elsewhere.is_empty() && !leads() {
        return true;
    }
    let mut held = Held::default();
    for (_, replica) in shards.data() {
        // One that is behind may not know yet what is to be forgotten.
        if replica.read_barrier().await.is_err() {
            return false;
        }
        held.take(&replica, &deleted);
    }
    for shard in elsewhere {
        if let Err(error) = ask(context, shard, &deleted, &mut held).await {
            tracing::debug!(%shard, %error, "whether a shard has let go of what was deleted is not known");
            return false;
        }
    }
    let mut done = true;
    for command in deleted.forgotten(&held) {
        done &= shards.propose(ShardId::CONTROLLER, Unit::Control(command)).await.is_ok();
    }
    done
}

impl Deleted {
    fn of(view: &ClusterView) -> Self {
        let topics = view.controller().topics().filter(|topic| topic.deleted).take(DELETED_MAX);
        // A retry of a batch may still name it.
        let is_remembered = |id: DeploymentId| view.controller().topics().any(|topic| topic.remembers(id));
        let deployments = view.controller().deployments().filter(|record| record.deleted);
        let deployments = deployments.filter(|record| !is_remembered(record.id)).take(DELETED_MAX);
        Self {
            topics: topics.map(|topic: &TopicRecord| (topic.id, topic.version)).collect(),
            deployments: deployments.map(|record: &DeploymentRecord| (record.id, record.version)).collect(),
        }
    }

    fn read(open: &HeldOpen) -> Option<Self> {
        let topic = |topic: &DeletedTopic| Some((TopicId::from_slice(&topic.topic_id)?, topic.version));
        Some(Self {
            topics: open.topics.iter().map(topic).collect::<Option<_>>()?,
            deployments: open
                .deployments
                .iter()
                .map(|deployment| (DeploymentId::new(deployment.deployment_id), deployment.version))
                .collect(),
        })
    }

    fn question(&self, shard: ShardId) -> HeldOpen {
        let topic = |(id, version): (&TopicId, &u64)| DeletedTopic {
            topic_id: bytes::Bytes::copy_from_slice(&id.bytes()),
            version: *version,
        };
        let deployment = |(id, version): (&DeploymentId, &u64)| DeletedDeployment {
            deployment_id: id.get(),
            version: *version,
        };
        HeldOpen {
            shard: u32::from(shard.get()),
            topics: self.topics.iter().map(topic).collect(),
            deployments: self.deployments.iter().map(deployment).collect(),
        }
    }

    /// What nobody needs to know any more.
    fn forgotten(&self, held: &Held) -> Vec<ControllerCommand> {
        let topics = self.topics.keys().filter(|id| !held.topics.contains(id));
        let topics = topics.map(|id| ControllerCommand::ForgetTopic { id: *id });
        let deployments = self.deployments.keys().filter(|id| !held.deployments.contains(id));
        topics.chain(deployments.map(|id| ControllerCommand::ForgetDeployment { id: *id })).collect()
    }
}

impl Held {
    /// Adds what a shard holds: it has not adopted the deletion yet, or has outputs of a deployment and could not be told yet.
    fn take(&mut self, replica: &Replica, deleted: &Deleted) {
        let shard = replica.shard();
        let topics = deleted.topics.iter();
        let topics =
            topics.filter(|(id, version)| shard.topic_version(**id).is_some_and(|held| held < **version));
        self.topics.extend(topics.map(|(id, _)| *id));
        let deployments = deleted.deployments.iter();
        let deployments = deployments
            .filter(|(id, version)| shard.deployment_version(**id).is_some_and(|held| held < **version));
        self.deployments.extend(deployments.map(|(id, _)| *id));
        if !deleted.deployments.is_empty() {
            self.deployments.extend(shard.strange_senders());
        }
    }

    fn read(&mut self, reply: &HeldReply) -> Option<()> {
        for id in &reply.topics {
            self.topics.insert(TopicId::from_slice(id)?);
        }
        self.deployments.extend(reply.deployments.iter().map(|id| DeploymentId::new(*id)));
        Some(())
    }
}

async fn ask(context: &Context, shard: ShardId, deleted: &Deleted, held: &mut Held) -> Result<(), Error> {
    let question = Purpose::Held(deleted.question(shard));
    let reply = ask_a_holder(context, shard, question, |reply: &HeldReply| reply.error.as_ref()).await?;
    held.read(&reply).ok_or_else(errors::not_an_id)
}

/// What a replica here holds of what was deleted, for another broker.
pub(crate) async fn held_here(context: &Context, open: &HeldOpen) -> HeldReply {
    match find(context, open).await {
        Ok(held) => HeldReply {
            error: None,
            topics: held.topics.iter().map(|id| bytes::Bytes::copy_from_slice(&id.bytes())).collect(),
            deployments: held.deployments.iter().map(|id| id.get()).collect(),
        },
        Err(error) => HeldReply { error: Some(error), ..HeldReply::default() },
    }
}

async fn find(context: &Context, open: &HeldOpen) -> Result<Held, Error> {
    let deleted = Deleted::read(open).ok_or_else(errors::not_an_id)?;
    let shard = u16::try_from(open.shard).map(ShardId::new).map_err(|_| errors::not_an_id())?;
    let replica = context.shards.serving(shard).ok_or_else(|| errors::not_on_this_broker(shard))?;
    replica.read_barrier().await.map_err(|error| errors::barrier(&error, replica.others_vote()))?;
    let mut held = Held::default();
    held.take(&replica, &deleted);
    Ok(held)
}
