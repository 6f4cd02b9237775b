//! Which brokers should hold each shard.
//!
//! First what is missing or must go: replicas of removed, drained and long dead brokers, and those that a shard has too few
//! of. Only where nothing of that is left are replicas spread over racks, and then over brokers: safety before evenness.

use std::collections::{BTreeMap, BTreeSet};

use tidemill_protocol::{BrokerId, ShardId, Timestamp};

use crate::brokers::{BrokerRecord, BrokerState};
use crate::command::ControllerCommand;
use crate::placement::{any_path, follow};
use crate::shards::{ShardRecord, is_majority};
use crate::state::Controller;

/// So many shards at most have replicas on the way at a time: each takes disk and network from clients.
pub(crate) const SHARDS_MOVING_MAX: usize = 4;
/// So many paths at most are followed in one call, see [`any_path`]; what they move is bounded far below.
const PATHS_MAX: usize = 1_000;

type Set = Vec<BrokerId>;

pub(super) fn plan(controller: &Controller, now: Timestamp) -> Vec<ControllerCommand> {
    let mut draft = Draft::new(controller, now);
    draft.repair();
    if draft.is_as_it_was() {
        draft.spread_over_racks();
    }
    if draft.is_as_it_was() {
        draft.spread_over_brokers();
    }
    draft.commands()
}

/// The sets of all shards as they should become.
struct Draft<'a> {
    controller: &'a Controller,
    now: Timestamp,
    eligible: BTreeMap<BrokerId, &'a BrokerRecord>,
    sets: BTreeMap<ShardId, Set>,
    /// Replicas of data shards, of every eligible broker.
    load: BTreeMap<BrokerId, usize>,
}

impl<'a> Draft<'a> {
    fn new(controller: &'a Controller, now: Timestamp) -> Self {
        let eligible: BTreeMap<BrokerId, &BrokerRecord> =
            controller.eligible_brokers().map(|record| (record.broker, record)).collect();
        let sets = controller.shards().map(|shard| (shard.shard, shard.brokers().collect())).collect();
        let mut draft = Self { controller, now, eligible, sets, load: BTreeMap::new() };
        draft.count();
        draft
    }

    fn count(&mut self) {
        self.load = self.eligible.keys().map(|broker| (*broker, 0)).collect();
        let data = self.sets.iter().filter(|(shard, _)| **shard != ShardId::CONTROLLER);
        for broker in data.flat_map(|(_, set)| set) {
            self.load.entry(*broker).and_modify(|count| *count += 1);
        }
    }

    fn is_as_it_was(&self) -> bool {
        self.controller.shards().all(|shard| shard.brokers().eq(self.sets[&shard.shard].iter().copied()))
    }

    fn shard(&self, shard: ShardId) -> Option<&'a ShardRecord> {
        self.controller.shard(shard)
    }

    /// Whether a shard's group could carry out a change at all.
    fn can_change(&self, shard: &ShardRecord) -> bool {
        let (alive, voters) = self.controller.alive_voters(shard);
        shard.members.is_some() && is_majority(alive, voters)
    }

    fn is_removed(&self, broker: BrokerId) -> bool {
        self.controller.broker(broker).is_none_or(|record| !record.is_member())
    }

    /// Whether a broker's replicas are to be elsewhere.
    fn is_left(&self, broker: BrokerId) -> bool {
        let Some(record) = self.controller.broker(broker) else { return true };
        let dead_ms = self.now.get().saturating_sub(record.alive_changed_at.get());
        let delay_ms = i64::try_from(self.controller.settings().rebuild_delay_ms).unwrap_or(i64::MAX);
        record.state != BrokerState::Active || (!record.alive && dead_ms >= delay_ms)
    }

    fn replicas_wanted(&self, now: usize) -> usize {
        let most = usize::from(self.controller.settings().replication_factor_max);
        // With fewer brokers than that a shard keeps as many as it has: a second one alone would make it weaker.
        if self.eligible.len() >= most { most } else { now }
    }

    fn domain(&self, broker: BrokerId) -> Result<&str, BrokerId> {
        self.controller.broker(broker).map_or(Err(broker), BrokerRecord::fault_domain)
    }

    /// Replicas that share a rack with another of the set.
    fn doubled(&self, set: &[BrokerId]) -> usize {
        let domains: BTreeSet<_> = set.iter().map(|broker| self.domain(*broker)).collect();
        set.len() - domains.len()
    }

    /// The best broker to take a replica beside those of the set.
    fn best_beside(&self, set: &[BrokerId]) -> Option<BrokerId> {
        let is_doubled = |broker: BrokerId| set.iter().any(|held| self.domain(*held) == self.domain(broker));
        let free = self.eligible.keys().copied().filter(|broker| !set.contains(broker));
        free.min_by_key(|broker| (is_doubled(*broker), self.load[broker], *broker))
    }

    fn repair(&mut self) {
        for shard in self.controller.shards().filter(|shard| self.can_change(shard)).collect::<Vec<_>>() {
            let set: Set = shard.brokers().collect();
            let repaired = self.repaired(&set);
            let growing = repaired.iter().any(|broker| !set.contains(broker));
            // What is on its way already is only changed where it can't arrive.
            if shard.is_settled() || growing || set.iter().any(|broker| self.is_left(*broker)) {
                self.sets.insert(shard.shard, repaired);
                self.count();
            }
        }
    }

    fn repaired(&self, set: &[BrokerId]) -> Set {
        let wanted = self.replicas_wanted(set.len());
        let mut kept: Set = set.iter().copied().filter(|broker| !self.is_left(*broker)).collect();
        while kept.len() < wanted
            && let Some(best) = self.best_beside(&kept)
        {
            kept.push(best);
        }
        // Better a drained or dead one than none at all.
        let mut spare: Set = set.iter().copied().filter(|broker| !kept.contains(broker)).collect();
        spare.retain(|broker| !self.is_removed(*broker));
        spare.sort_by_key(|broker| !self.controller.broker(*broker).is_some_and(|record| record.alive));
        let missing = wanted.min(set.len()).saturating_sub(kept.len());
        kept.extend(spare.into_iter().take(missing));
        while kept.len() > wanted {
            let cost = |broker: &BrokerId| {
                (!self.eligible.contains_key(broker), self.load.get(broker).copied().unwrap_or(0))
            };
            let Some(place) = (0..kept.len()).max_by_key(|place| cost(&kept[*place])) else { break };
            kept.remove(place);
        }
        // Who was there stands before who comes, in the order that was.
        let place = |broker: &BrokerId| set.iter().position(|held| held == broker).unwrap_or(set.len());
        kept.sort_by_key(place);
        kept
    }

    /// Whether a replica may be moved for the sake of evenness.
    fn is_free(&self, shard: ShardId) -> bool {
        self.shard(shard).is_some_and(|record| record.is_settled() && self.can_change(record))
    }

    fn spread_over_racks(&mut self) {
        for shard in self.sets.keys().copied().filter(|shard| self.is_free(*shard)).collect::<Vec<_>>() {
            let mut set = self.sets[&shard].clone();
            while let Some((place, best)) = self.apart(&set) {
                set.remove(place);
                set.push(best);
            }
            self.sets.insert(shard, set);
            self.count();
        }
    }

    /// A replica that shares its rack, and a broker in a rack that has none.
    fn apart(&self, set: &[BrokerId]) -> Option<(usize, BrokerId)> {
        let doubled = |place: &usize| {
            let domain = self.domain(set[*place]);
            self.eligible.contains_key(&set[*place])
                && set.iter().filter(|broker| self.domain(**broker) == domain).count() > 1
        };
        let place = (0..set.len()).filter(doubled).max_by_key(|place| self.load[&set[*place]])?;
        let best = self.best_beside(set)?;
        let is_new = set.iter().all(|broker| self.domain(*broker) != self.domain(best));
        is_new.then_some((place, best))
    }

    fn spread_over_brokers(&mut self) {
        let most = usize::from(self.controller.settings().replication_factor_max);
        let short = |set: &Set| set.len() < most;
        // Before a third broker comes, moving what will be copied to all of them would be for nothing.
        if self.sets.values().any(short) {
            return;
        }
        for _ in 0..PATHS_MAX {
            let path = any_path(&self.load, |from, to| {
                let mut data = self.sets.iter().filter(|(shard, _)| **shard != ShardId::CONTROLLER);
                data.find(|(shard, set)| self.is_free(**shard) && self.may_move(set, from, to))
                    .map(|(shard, _)| *shard)
            });
            let Some(path) = path else { break };
            let before = self.sets.clone();
            // From the end, where there is room.
            let went = path.iter().rev().all(|step| {
                let may = self.may_move(&self.sets[&step.shard], step.from, step.to);
                if may {
                    self.sets.entry(step.shard).and_modify(|set| exchange(set, step.from, step.to));
                }
                may
            });
            if !went {
                self.sets = before;
                break;
            }
            follow(&mut self.load, &path);
        }
    }

    fn may_move(&self, set: &[BrokerId], from: BrokerId, to: BrokerId) -> bool {
        if !set.contains(&from) || set.contains(&to) {
            return false;
        }
        let mut moved = set.to_vec();
        exchange(&mut moved, from, to);
        self.doubled(&moved) <= self.doubled(set)
    }

    /// Who has replicas on the way that will arrive.
    fn is_moving(&self, shard: &ShardRecord) -> bool {
        let arrives = shard.replicas.iter().all(|node| self.controller.is_alive_in(shard, *node));
        self.can_change(shard) && !shard.is_settled() && arrives
    }

    fn is_safe(&self, shard: &ShardRecord, set: &[BrokerId]) -> bool {
        let is_alive = |broker: &BrokerId| match shard.node_of(*broker) {
            Some(node) => self.controller.is_alive_in(shard, node),
            None => self.eligible.contains_key(broker),
        };
        !set.is_empty() && is_majority(set.iter().filter(|broker| is_alive(broker)).count(), set.len())
    }

    fn commands(&self) -> Vec<ControllerCommand> {
        let moving = self.controller.shards().filter(|shard| self.is_moving(shard)).count();
        let mut room = SHARDS_MOVING_MAX.saturating_sub(moving);
        let mut commands = Vec::new();
        for shard in self.controller.shards() {
            let replicas = self.sets[&shard.shard].clone();
            if shard.brokers().eq(replicas.iter().copied()) || !self.is_safe(shard, &replicas) {
                continue;
            }
            if !self.is_moving(shard) {
                let Some(left) = room.checked_sub(1) else { continue };
                room = left;
            }
            commands.push(ControllerCommand::AssignReplicas {
                shard: shard.shard,
                replicas,
                expected_version: shard.version,
            });
        }
        commands
    }
}

/// Who leaves makes room at the end, so that the others keep their order.
fn exchange(set: &mut Set, from: BrokerId, to: BrokerId) {
    set.retain(|broker| *broker != from);
    set.push(to);
}
