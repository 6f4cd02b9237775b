//! A cluster in miniature, which does what is planned.

use std::collections::{BTreeMap, BTreeSet};

use tidemill_protocol::{BrokerId, DirectoryId, ShardId, Timestamp};

use crate::brokers::{BrokerStart, JoinRequest};
use crate::command::{ControllerCommand, ControllerReply};
use crate::error::ControllerError;
use crate::membership_error::MembershipError;
use crate::planner::replicas::SHARDS_MOVING_MAX;
use crate::planner::{Liveness, PLAN_COMMANDS_MAX, plan};
use crate::shards::{ShardRecord, is_majority};
use crate::state::Controller;
use crate::testing::*;

/// A cluster whose brokers do what is planned, in a time of its own.
pub(super) struct World {
    pub(super) controller: Controller,
    pub(super) now_ms: u64,
    /// Brokers that run, with their lives' directories.
    pub(super) up: BTreeSet<BrokerId>,
    next_directory: u128,
    starts: BTreeMap<BrokerId, u64>,
    lives: Lives,
}

impl World {
    pub(super) fn new(brokers: &[&str], data_shards: u16) -> Self {
        let count = u32::try_from(brokers.len()).unwrap();
        let mut controller = Controller::default();
        apply(&mut controller, form(count, data_shards));
        let mut world = Self {
            controller,
            now_ms: 1_000_000,
            up: BTreeSet::new(),
            next_directory: 100,
            starts: BTreeMap::new(),
            lives: Lives::default(),
        };
        for (number, rack) in (1..).zip(brokers) {
            world.register(id(number), directory(u128::from(number)), 1, rack);
        }
        world.follow();
        world
    }

    pub(super) fn now(&self) -> Timestamp {
        Timestamp::new(self.now_ms.cast_signed())
    }

    pub(super) fn apply(&mut self, command: &ControllerCommand) -> bool {
        let outcome = self.controller.apply(command, self.now());
        self.lives.watch(&self.controller);
        outcome.is_ok()
    }

    pub(super) fn register(
        &mut self,
        broker: BrokerId,
        directory: DirectoryId,
        incarnation: u32,
        rack: &str,
    ) {
        let starts = self.starts.entry(broker).or_default();
        *starts += 1;
        let start =
            BrokerStart { incarnation, directory, rack: rack.to_owned(), ..start(broker.get(), *starts) };
        assert!(self.apply(&ControllerCommand::Register(start)));
        self.up.insert(broker);
    }

    /// The controller has noticed that nobody hears of a broker.
    pub(super) fn is_known_to_be_down(&mut self, broker: BrokerId) {
        let starts = self.controller.broker(broker).map(|record| record.starts);
        let starts = starts.unwrap_or_default();
        self.apply(&ControllerCommand::SetAlive { broker, starts, alive: false });
    }

    /// A new broker, or one that lost its directory: that one stays away where too few of the others are there.
    pub(super) fn join(&mut self, broker: u32, rack: &str) {
        self.is_known_to_be_down(id(broker));
        self.next_directory += 1;
        let hash = [u8::try_from(self.next_directory % 251).unwrap(); 32];
        let mut hash_of_all = hash;
        hash_of_all[..16].copy_from_slice(&self.next_directory.to_be_bytes());
        let token = ControllerCommand::CreateJoinToken {
            hash: hash_of_all,
            broker: Some(id(broker)),
            expires_at: self.now().plus_ms(1),
        };
        assert!(self.apply(&token));
        let request = JoinRequest {
            hash: hash_of_all,
            rack: rack.to_owned(),
            ..request(0, broker, self.next_directory)
        };
        let directory = request.directory;
        let incarnation = match self.controller.apply(&ControllerCommand::Join(request), self.now()) {
            Ok(ControllerReply::Joined { incarnation }) => incarnation,
            Err(ControllerError::Membership(MembershipError::JoinLosesQuorum { .. })) => return,
            other => panic!("{other:?}"),
        };
        self.register(id(broker), directory, incarnation, rack);
    }

    pub(super) fn restart(&mut self, broker: u32) {
        let Some(record) = self.controller.broker(id(broker)).cloned() else { return };
        if let Some(directory) = record.directory.filter(|_| record.is_member()) {
            self.register(record.broker, directory, record.incarnation, &record.rack);
        }
    }

    pub(super) fn liveness(&self) -> Liveness {
        let heard_at_ms = self.up.iter().map(|broker| (*broker, self.now_ms)).collect();
        Liveness { now_ms: self.now_ms, listening_since_ms: 0, heard_at_ms }
    }

    /// Leaders make their groups what is planned, where they can.
    pub(super) fn follow(&mut self) {
        for shard in self.controller.shards().cloned().collect::<Vec<_>>() {
            let runs = |broker: BrokerId| self.up.contains(&broker);
            let voters = shard.voters();
            let (alive, all) = self.controller.alive_voters(&shard);
            let arrives = shard.replicas.iter().filter(|node| !voters.contains(node));
            if is_majority(alive, all) && arrives.clone().all(|node| runs(node.broker())) {
                assert!(self.apply(&report_as_planned(&shard)));
            }
        }
    }

    pub(super) fn unsettled(&self) -> usize {
        self.controller.shards().filter(|shard| !shard.is_settled()).count()
    }

    /// Shards that take disk and network from clients.
    pub(super) fn moving(&self) -> usize {
        let arrives = |shard: &&ShardRecord| {
            let (alive, voters) = self.controller.alive_voters(shard);
            let all = shard.replicas.iter().all(|node| self.controller.is_alive_in(shard, *node));
            is_majority(alive, voters) && all && !shard.is_settled()
        };
        self.controller.shards().filter(arrives).count()
    }

    /// Applies plans until nothing is proposed; says how many commands that took.
    pub(super) fn converge(&mut self) -> usize {
        let mut commands = 0;
        for _ in 0..2_000 {
            self.now_ms += 10;
            let planned = plan(&self.controller, self.now(), &self.liveness());
            assert!(planned.len() <= PLAN_COMMANDS_MAX);
            let before = self.moving();
            if planned.is_empty() && self.unsettled() == 0 {
                return commands;
            }
            for command in &planned {
                self.check(command);
                assert!(self.apply(command), "{command:?}");
            }
            let who_lives = planned.iter().any(|one| matches!(one, ControllerCommand::SetAlive { .. }));
            assert!(who_lives || self.moving() <= before.max(SHARDS_MOVING_MAX));
            commands += planned.len();
            let before = self.unsettled();
            self.follow();
            if planned.is_empty() && self.unsettled() == before {
                return commands;
            }
        }
        panic!("plans never come to an end: {:?}", plan(&self.controller, self.now(), &self.liveness()));
    }

    /// No plan leaves a shard without a majority that is alive.
    pub(super) fn check(&self, command: &ControllerCommand) {
        let ControllerCommand::AssignReplicas { shard, replicas, .. } = command else { return };
        let record = self.controller.shard(*shard).unwrap();
        let is_order = record.brokers().collect::<BTreeSet<_>>() == replicas.iter().copied().collect();
        let (alive, voters) = self.controller.alive_voters(record);
        assert!(is_order || is_majority(alive, voters), "nothing can carry it out: {command:?}");
        let alive = |broker: &BrokerId| self.controller.broker(*broker).unwrap().alive;
        let alive = replicas.iter().filter(|broker| alive(broker)).count();
        assert!(is_order || is_majority(alive, replicas.len()), "{command:?}");
    }

    pub(super) fn counts(&self, leaders: bool) -> BTreeMap<BrokerId, usize> {
        let eligible = self.controller.eligible_brokers().map(|record| (record.broker, 0));
        let mut counts: BTreeMap<BrokerId, usize> = eligible.collect();
        for shard in self.controller.shards().filter(|shard| shard.shard != ShardId::CONTROLLER) {
            for broker in shard.brokers().take(if leaders { 1 } else { usize::MAX }) {
                counts.entry(broker).and_modify(|count| *count += 1);
            }
        }
        counts
    }

    pub(super) fn spread(&self, leaders: bool) -> usize {
        let counts = self.counts(leaders);
        counts.values().max().unwrap_or(&0) - counts.values().min().unwrap_or(&0)
    }

    pub(super) fn holds(&self, broker: u32) -> usize {
        self.controller.shards().filter(|shard| shard.brokers().any(|held| held == id(broker))).count()
    }

    pub(super) fn wait_ms(&mut self, duration_ms: u64) {
        self.now_ms += duration_ms;
    }

    pub(super) fn shards_have(&self, replicas: usize) -> bool {
        self.controller.shards().all(|shard| shard.replicas.len() == replicas && shard.is_settled())
    }
}

pub(super) fn racks(world: &World, shard: &ShardRecord) -> BTreeSet<String> {
    shard.brokers().map(|broker| domain(world, broker)).collect()
}

pub(super) fn domain(world: &World, broker: BrokerId) -> String {
    let record = world.controller.broker(broker).unwrap();
    if record.rack.is_empty() { format!("broker {broker}") } else { record.rack.clone() }
}
