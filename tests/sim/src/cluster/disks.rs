//! What disks do wrong, and how a broker comes back from it.
//!
//! A write that goes astray and a flush that was none take back what a broker said that it has. It can notice (a block that is no frame of
//! its log, one that proves that something before it had been flushed), or not: where the end of its log looks as if it had never been
//! written, nothing tells. Two of three replicas can't lose the same promise, whoever implements it, so the broker starts again only once
//! the others have gone on without it; from then on its leader knows better than it does what it had.

use std::time::Duration;

use rand::RngExt;
use tidemill_protocol::{BrokerId, LogIndex, NodeId, ShardId};
use tidemill_raft::Begin;

use super::SHARDS;
use super::bug::Bug;
use super::director::{DOWN_MS, Director, Ending, Undo};
use super::world::Running;
use crate::disk::{Lie, SimDisk, Trouble};
use crate::ledger::Violation;

/// What a disk does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wrong {
    /// A write lands elsewhere.
    Astray,
    /// Nothing is synced.
    Flushes,
}

/// How long a disk does wrong until its broker ends.
const WRONG_MS: std::ops::Range<u64> = 20..400;
/// Writes to the log that still arrive.
const WRITES_BEFORE: std::ops::Range<u64> = 0..12;
/// Writes and syncs that are still done.
const DONE_BEFORE: std::ops::Range<u64> = 0..40;

impl Director {
    pub(super) fn misdirect(&mut self, broker: BrokerId) {
        let (writes, wrong_for) = (self.rng.random_range(WRITES_BEFORE), self.rng.random_range(WRONG_MS));
        let ending = if self.rng.random() { Ending::PowerLost } else { Ending::Killed };
        let Some(machine) = self.machines.get_mut(&broker) else { return };
        machine.wrong = Some(Wrong::Astray);
        machine.disk.lead_astray_after(writes);
        self.later(Duration::from_millis(wrong_for), Undo::ComeToLight(broker, ending));
    }

    pub(super) fn lose_flushes(&mut self, broker: BrokerId) {
        let wrong_for = self.rng.random_range(WRONG_MS);
        let Some(machine) = self.machines.get_mut(&broker) else { return };
        machine.wrong = Some(Wrong::Flushes);
        machine.disk.set_lie(Some(Lie::Wal));
        self.later(Duration::from_millis(wrong_for), Undo::ComeToLight(broker, Ending::PowerLost));
    }

    /// Half of the time the broker is told beforehand that room is short, as the `server` room tells it: it writes its checkpoints first.
    pub(super) fn fill_disk(&mut self, broker: BrokerId, duration: Duration) {
        let is_told = self.rng.random();
        match self.world.at(broker).filter(|_| is_told) {
            Some(running) => {
                running.short_of_room.send_replace(true);
                self.later(duration / 2, Undo::Fill(broker));
            }
            None => self.trouble_at(broker, Some(Trouble::Full)),
        }
        self.later(duration * 2, Undo::Well(broker));
    }

    pub(super) fn trouble_at(&self, broker: BrokerId, trouble: Option<Trouble>) {
        if let Some(machine) = self.machines.get(&broker) {
            machine.disk.set_trouble(trouble);
        }
        if let Some(running) = self.world.at(broker).filter(|_| trouble.is_none()) {
            running.short_of_room.send_replace(false);
        }
    }

    pub(super) fn fail_disk(&mut self, broker: BrokerId, duration: Duration) {
        let (after, lasts) = (self.rng.random_range(DONE_BEFORE), self.rng.random());
        self.trouble_at(broker, Some(Trouble::Fails { after, lasts }));
        self.later(duration * 2, Undo::Well(broker));
    }

    /// Whoever stopped because its disk failed stays so until its process is started anew, and before that perhaps its machine.
    pub(super) fn restart_stopped(&mut self) {
        let stopped = self.world.running().into_iter().filter(Running::has_stopped);
        for broker in stopped.map(|running| running.broker).collect::<Vec<_>>() {
            let Some(machine) = self.machines.get(&broker) else { continue };
            let disk = machine.disk.clone();
            if !disk.has_failed() {
                let is_excused = machine.wrong.is_some() || machine.may_have_lost || disk.has_lost_power();
                if !is_excused {
                    let told = format!("{broker} has stopped, and nothing is wrong with its disk");
                    self.world.broken(Violation::Cluster(told));
                }
                continue;
            }
            let (down, power) = (self.rng.random_range(DOWN_MS), self.rng.random());
            self.trace.note(format_args!("{broker} has stopped"));
            if power {
                disk.lose_power();
            }
            self.end_for(broker, Duration::from_millis(down));
        }
    }

    pub(super) fn come_to_light(&mut self, broker: BrokerId, ending: Ending) {
        let down = Duration::from_millis(self.rng.random_range(WRONG_MS));
        let runs = self
            .machines
            .get(&broker)
            .is_some_and(|machine| machine.life.is_some() && machine.wrong.is_some());
        // Another fault came before.
        if !runs {
            return;
        }
        if let Some(machine) = self.machines.get(&broker).filter(|_| ending == Ending::PowerLost) {
            machine.disk.lose_power();
        }
        self.end_for(broker, down);
    }

    /// Whether a broker whose disk did wrong has to wait: until the other members of each of its groups have all that a leader among them has,
    /// which is then all that was ever acknowledged.
    pub(super) fn must_wait(&mut self, broker: BrokerId) -> bool {
        let lie = self.bug.and_then(Bug::lie);
        let Some(machine) = self.machines.get_mut(&broker) else { return false };
        if machine.wrong.is_none() || machine.life.is_some() {
            return false;
        }
        let places: Vec<_> = machine.places.iter().map(|(shard, place)| (*shard, place.node)).collect();
        if places.iter().any(|(shard, node)| !self.have_gone_on(*shard, *node)) {
            return true;
        }
        let Some(machine) = self.machines.get_mut(&broker) else { return false };
        machine.wrong = None;
        machine.disk.set_lie(lie);
        false
    }

    fn have_gone_on(&self, shard: ShardId, without: NodeId) -> bool {
        if !self.world.wanted(shard).contains(&without) {
            return true;
        }
        let Some((_, leader)) = self.world.leader(shard) else { return false };
        let Some(last) = leader.status().last_entry.map(|last| last.index) else { return false };
        let progress = leader.followers();
        let matched = |node: &NodeId| progress.get(node).and_then(|follower| follower.matched);
        let has_all =
            |node: &NodeId| *node == leader.node() || matched(node).map(LogIndex::get) >= Some(last.get());
        let leads_on =
            leader.shard().applied().last.map(|applied| applied.term) == Some(leader.watch().borrow().term);
        leads_on
            && leader.node() != without
            && leader.members().voters.iter().filter(|node| node.broker() != without.broker()).all(has_all)
    }

    /// The broker's replica of the shard comes back under a new id.
    pub(super) fn renew(&mut self, broker: BrokerId, shard: ShardId) {
        let Some(place) = self.machines.get_mut(&broker).and_then(|machine| machine.places.get_mut(&shard))
        else {
            return;
        };
        let old = place.node;
        place.node = NodeId::new(broker, old.incarnation() + 1);
        (place.begin, place.retired, place.old_vote) = (Begin::Join, true, None);
        self.retired += 1;
        let mut wanted = self.world.wanted(shard);
        if wanted.remove(&old) {
            wanted.insert(place.node);
            self.world.want(shard, wanted);
        }
    }

    pub(super) fn lose_disk(&mut self, broker: BrokerId) {
        let seed = self.rng.random();
        let Some(machine) = self.machines.get_mut(&broker) else { return };
        machine.disk = SimDisk::new(&format!("disk-{broker}"), seed, &self.trace);
        self.trace.note(format_args!("{broker} has an empty disk"));
        for shard in SHARDS {
            if self.bug == Some(Bug::WipedUnderOldId) {
                if let Some(place) =
                    self.machines.get_mut(&broker).and_then(|machine| machine.places.get_mut(&shard))
                {
                    place.begin = Begin::Join;
                }
            } else {
                self.renew(broker, shard);
            }
        }
    }

    /// Who was found to have lost what it acknowledged comes back under a new id, as the controller has it.
    pub(crate) fn replace_lost(&mut self) {
        for shard in SHARDS {
            let lost =
                self.world.leader(shard).map(|(_, leader)| leader.lost_followers()).unwrap_or_default();
            for node in lost {
                let place = self.machines.get(&node.broker()).and_then(|machine| machine.places.get(&shard));
                if place.is_some_and(|place| place.node == node) {
                    self.trace.note(format_args!("shard {shard}: {node} lost what it acknowledged"));
                    self.kill(node.broker());
                    self.renew(node.broker(), shard);
                    self.start(node.broker());
                }
            }
        }
    }

    pub(super) fn damage_log(&mut self, broker: BrokerId) {
        self.kill(broker);
        let Some(machine) = self.machines.get_mut(&broker) else { return };
        if machine.disk.damage_log(&mut self.rng) {
            machine.may_have_lost = true;
        }
        self.start(broker);
    }
}
