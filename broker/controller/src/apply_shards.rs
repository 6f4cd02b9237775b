//! Replicas of shards: where they begin, what is planned, what is reported.

use std::collections::BTreeSet;

use tidemill_protocol::{BrokerId, NodeId, ShardId, Timestamp};

use crate::brokers::{BrokerRecord, FIRST_INCARNATION};
use crate::changes::ObjectKey;
use crate::cluster::ClusterIdentity;
use crate::command::ControllerReply;
use crate::error::ControllerError;
use crate::membership_error::MembershipError;
use crate::placement::initial_placement;
use crate::shards::{ReportedMembers, ShardRecord};
use crate::state::{Bounds, Controller};

impl Controller {
    /// A cluster of several brokers from the beginning.
    pub(crate) fn form_cluster(
        &mut self,
        identity: &ClusterIdentity,
        brokers: &[BrokerId],
        now: Timestamp,
    ) -> Result<ControllerReply, ControllerError> {
        let members: BTreeSet<BrokerId> = brokers.iter().copied().collect();
        if let Some(existing) = &self.header.identity {
            // Several of them may ask for it.
            let is_same = existing.cluster == identity.cluster
                && members.iter().all(|broker| self.brokers.contains_key(broker));
            return match is_same {
                true => Ok(ControllerReply::Done),
                false => Err(ControllerError::AlreadyInitialised(existing.cluster.to_string())),
            };
        }
        if members.is_empty() || members.len() != brokers.len() {
            let reason = "name each broker once, and at least one".to_owned();
            return Err(MembershipError::InvalidCluster(reason).into());
        }
        if members.len() > Bounds::BROKERS_MAX {
            return Err(ControllerError::TooMany { what: "brokers", limit: Bounds::BROKERS_MAX });
        }
        self.init_cluster(identity)?;
        for broker in &members {
            self.put_broker(BrokerRecord::expected(*broker, now));
        }
        let replicas = self.settings().replication_factor_max;
        self.plant(initial_placement(brokers, self.data_shards(), replicas));
        self.settle_observers();
        Ok(ControllerReply::Done)
    }

    /// The one broker of a cluster has every shard, from the first registration on that knows of replicas.
    pub(crate) fn plant_shards(&mut self, broker: BrokerId) {
        if self.shards.is_empty() {
            self.plant(initial_placement(&[broker], self.data_shards(), 1));
        }
    }

    fn plant(&mut self, placement: Vec<Vec<NodeId>>) {
        for (shard, replicas) in (0..=self.data_shards()).map(ShardId::new).zip(placement) {
            debug_assert!(replicas.iter().all(|node| node.incarnation() == FIRST_INCARNATION));
            self.shards.insert(shard, ShardRecord::new(shard, replicas));
            self.change_shard(shard, |_| ());
        }
    }

    pub(crate) fn assign_replicas(
        &mut self,
        shard: ShardId,
        replicas: &[BrokerId],
        expected: u64,
    ) -> Result<ControllerReply, ControllerError> {
        let record = self.known_shard(shard)?;
        if !record.brokers().eq(replicas.iter().copied()) {
            let version = record.version;
            if version != expected {
                return Err(MembershipError::StaleVersion { shard, expected, version }.into());
            }
            self.check_replicas(record, replicas)?;
            let before = record.clone();
            let nodes: Vec<NodeId> = replicas
                .iter()
                .map(|broker| before.node_of(*broker).unwrap_or_else(|| self.fresh_node(shard, *broker)))
                .collect();
            self.change_shard(shard, |record| {
                // Of the controller's shard it goes on as a follower, with the log that it has.
                if shard == ShardId::CONTROLLER {
                    record.observers.extend(before.replicas.iter().filter(|node| !nodes.contains(node)));
                    record.observers.retain(|node| !nodes.contains(node));
                }
                record.replicas = nodes;
            });
            self.settle_observers();
        }
        Ok(ControllerReply::Shard(Box::new(self.shards[&shard].clone())))
    }

    fn check_replicas(&self, record: &ShardRecord, replicas: &[BrokerId]) -> Result<(), MembershipError> {
        let shard = record.shard;
        let refuse = |reason: String| Err(MembershipError::InvalidReplicas { shard, reason });
        if replicas.is_empty() || replicas.len() > Bounds::REPLICAS_MAX {
            return refuse(format!("a shard has between 1 and {} replicas", Bounds::REPLICAS_MAX));
        }
        let distinct: BTreeSet<&BrokerId> = replicas.iter().collect();
        if distinct.len() != replicas.len() {
            return refuse("a broker holds one replica of a shard, and one is named twice".into());
        }
        for broker in replicas {
            let known = self.known_broker(*broker)?;
            let is_there = record.brokers().any(|holder| holder == *broker);
            if !known.is_member() || !(is_there || known.state == crate::brokers::BrokerState::Active) {
                return refuse(format!("broker {broker} is drained or removed"));
            }
        }
        Ok(())
    }

    pub(crate) fn report_members(
        &mut self,
        shard: ShardId,
        members: &ReportedMembers,
    ) -> Result<ControllerReply, ControllerError> {
        let record = self.known_shard(shard)?;
        if members.voters.len() + members.learners.len() > Bounds::BROKERS_MAX * 2 {
            let limit = Bounds::BROKERS_MAX * 2;
            return Err(ControllerError::TooMany { what: "members of a shard's group", limit });
        }
        // A leader's membership may be undone by the next leader, whose term is higher.
        let at = |members: &ReportedMembers| (members.term, members.index);
        let is_news = match &record.members {
            None => true,
            Some(known) if at(known) == at(members) => known.leader != members.leader,
            Some(known) => at(known) < at(members),
        };
        if is_news {
            // What is planned is as it was, so its version is too.
            self.note_change(ObjectKey::Shard(shard));
            self.shards.entry(shard).and_modify(|record| record.members = Some(members.clone()));
            self.next_version();
        }
        Ok(ControllerReply::Done)
    }

    /// A replica that can't be trusted any more comes back as a new one.
    pub(crate) fn replace_replica(
        &mut self,
        shard: ShardId,
        old: NodeId,
    ) -> Result<ControllerReply, ControllerError> {
        let broker = old.broker();
        let current = self.known_shard(shard)?.node_of(broker);
        let node = match current {
            Some(current) if current == old => {
                self.known_broker(broker)?;
                let node = self.fresh_node(shard, broker);
                self.change_shard(shard, |record| exchange(record, old, node));
                node
            }
            Some(current) if current.incarnation() > old.incarnation() => current,
            _ => return Err(MembershipError::UnknownReplica { shard, node: old }.into()),
        };
        Ok(ControllerReply::Replica(node))
    }

    /// Every replica of a broker's earlier lives is to be replaced by one of its present life.
    pub(crate) fn renew_replicas(&mut self, broker: BrokerId) {
        let incarnation = self.brokers[&broker].incarnation;
        let old: Vec<(ShardId, NodeId)> = self
            .shards()
            .filter_map(|shard| Some((shard.shard, shard.node_of(broker)?)))
            .filter(|(_, node)| node.incarnation() < incarnation)
            .collect();
        for (shard, old) in old {
            let node = self.fresh_node(shard, broker);
            self.change_shard(shard, |record| exchange(record, old, node));
        }
    }

    /// Every member that has no vote in the controller's shard follows it.
    pub(crate) fn settle_observers(&mut self) {
        let Some(record) = self.shards.get(&ShardId::CONTROLLER).cloned() else { return };
        let is_voter = |broker: BrokerId| record.brokers().any(|voter| voter == broker);
        let followers: Vec<BrokerId> = self
            .brokers()
            .filter(|broker| broker.is_member() && !is_voter(broker.broker))
            .map(|broker| broker.broker)
            .collect();
        let observers: Vec<NodeId> = followers
            .into_iter()
            .map(|broker| {
                record.node_of(broker).unwrap_or_else(|| self.fresh_node(ShardId::CONTROLLER, broker))
            })
            .collect();
        if observers != record.observers {
            self.change_shard(ShardId::CONTROLLER, |record| record.observers = observers);
        }
    }

    /// A node id that a broker never had in this shard: that of its directory's life, else the next of all.
    fn fresh_node(&mut self, shard: ShardId, broker: BrokerId) -> NodeId {
        let used = self.shards.get(&shard).and_then(|record| record.used.get(&broker)).copied();
        let record = self.brokers.get_mut(&broker).expect("callers look the broker up first");
        let incarnation = if used.is_none_or(|used| used < record.incarnation) {
            record.incarnation
        } else {
            let next = record.next_incarnation;
            record.next_incarnation = next.saturating_add(1);
            self.note_change(ObjectKey::Broker(broker));
            next
        };
        self.shards.entry(shard).and_modify(|record| {
            record.used.insert(broker, incarnation);
        });
        NodeId::new(broker, incarnation)
    }

    pub(crate) fn known_shard(&self, shard: ShardId) -> Result<&ShardRecord, MembershipError> {
        self.shards.get(&shard).ok_or(MembershipError::UnknownShard(shard))
    }

    /// Changes what is planned of a shard that is known to be there, and gives it the next version.
    pub(crate) fn change_shard(&mut self, shard: ShardId, change: impl FnOnce(&mut ShardRecord)) {
        let version = self.next_version();
        self.note_change(ObjectKey::Shard(shard));
        let record = self.shards.get_mut(&shard).expect("callers look the shard up first");
        change(record);
        record.version = version;
    }
}

fn exchange(record: &mut ShardRecord, old: NodeId, new: NodeId) {
    for node in record.replicas.iter_mut().chain(&mut record.observers).filter(|node| **node == old) {
        *node = new;
    }
}
