//! Brokers come, go, die and come back at random; then everything must come to rest, and be even.

use std::collections::BTreeSet;

use proptest::prelude::*;
use tidemill_protocol::{BrokerId, ShardId};

use super::world::{World, domain, racks};
use crate::brokers::BrokerState;
use crate::command::ControllerCommand;
use crate::planner::liveness::DEAD_AFTER_MS;
use crate::planner::plan;
use crate::settings::ClusterSettings;
use crate::shards::{ShardRecord, is_majority};
use crate::testing::*;

#[derive(Debug, Clone)]
enum Event {
    Join(u32, usize),
    Kill(u32),
    Restart(u32),
    Drain(u32),
    Undrain(u32),
    Remove(u32),
    Settings(u8),
    Retire(u16, u32),
    /// Plans and their follow-up for so many rounds only.
    Some(usize),
    All,
    LongTime,
}

fn any_event() -> impl Strategy<Value = Event> {
    let broker = || 1u32..9;
    prop_oneof![
        3 => (broker(), 0usize..3).prop_map(|(broker, rack)| Event::Join(broker, rack)),
        3 => broker().prop_map(Event::Kill),
        3 => broker().prop_map(Event::Restart),
        1 => broker().prop_map(Event::Drain),
        1 => broker().prop_map(Event::Undrain),
        1 => broker().prop_map(Event::Remove),
        1 => prop_oneof![Just(1), Just(3)].prop_map(Event::Settings),
        1 => (0u16..9, broker()).prop_map(|(shard, broker)| Event::Retire(shard, broker)),
        3 => (1usize..4).prop_map(Event::Some),
        2 => Just(Event::All),
        1 => Just(Event::LongTime),
    ]
}

impl World {
    fn play(&mut self, event: &Event, racks: &[&str]) {
        match event {
            Event::Join(broker, rack) => {
                // A living one that is told to begin anew is another matter.
                if !self.up.contains(&id(*broker)) {
                    self.join(*broker, racks[rack % racks.len()]);
                }
            }
            Event::Kill(broker) => {
                self.up.remove(&id(*broker));
                self.wait_ms(DEAD_AFTER_MS + 1);
            }
            Event::Restart(broker) => self.restart(*broker),
            Event::Drain(broker) => drop(self.apply(&ControllerCommand::Drain { broker: id(*broker) })),
            Event::Undrain(broker) => drop(self.apply(&ControllerCommand::Undrain { broker: id(*broker) })),
            Event::Remove(broker) => {
                if self.apply(&ControllerCommand::Remove { broker: id(*broker) }) {
                    self.up.remove(&id(*broker));
                }
            }
            Event::Settings(most) => {
                let settings =
                    ClusterSettings { replication_factor_max: *most, ..ClusterSettings::default() };
                assert!(self.apply(&ControllerCommand::SetSettings(settings)));
            }
            Event::Retire(shard, broker) => {
                let shard = ShardId::new(*shard);
                let node = self.controller.shard(shard).and_then(|record| record.node_of(id(*broker)));
                if let Some(old) = node {
                    self.apply(&ControllerCommand::ReplaceReplica { shard, old });
                }
            }
            Event::Some(rounds) => {
                for _ in 0..*rounds {
                    for command in plan(&self.controller, self.now(), &self.liveness()) {
                        self.check(&command);
                        assert!(self.apply(&command), "{command:?}");
                    }
                }
                self.follow();
            }
            Event::All => drop(self.converge()),
            Event::LongTime => self.wait_ms(self.controller.settings().rebuild_delay_ms),
        }
    }

    /// What must hold when everything has come to rest.
    fn check_rest(&self) -> Result<(), TestCaseError> {
        let most = usize::from(self.controller.settings().replication_factor_max);
        let eligible: Vec<BrokerId> = self.controller.eligible_brokers().map(|b| b.broker).collect();
        let is_lost = |shard: &ShardRecord| {
            let (alive, voters) = self.controller.alive_voters(shard);
            !is_majority(alive, voters)
        };
        if eligible.len() < most
            || self.controller.shards().any(|shard| is_lost(shard) || !shard.is_settled())
        {
            return Ok(());
        }
        let domains: BTreeSet<String> = eligible.iter().map(|broker| domain(self, *broker)).collect();
        for shard in self.controller.shards() {
            prop_assert_eq!(shard.replicas.len(), most, "{:?}", shard);
            prop_assert!(shard.brokers().all(|broker| eligible.contains(&broker)), "{:?}", shard);
            prop_assert!(racks(self, shard).len() >= domains.len().min(most), "{:?}", shard);
        }
        let rooms: BTreeSet<usize> = domains
            .iter()
            .map(|name| eligible.iter().filter(|broker| domain(self, **broker) == *name).count())
            .collect();
        if rooms.len() == 1 && domains.len() >= most {
            prop_assert!(self.spread(false) <= 1, "{:?}", self.counts(false));
        }
        if eligible.len() == most || rooms == [1].into() {
            prop_assert!(self.spread(true) <= 1, "{:?}", self.counts(true));
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn plans_come_to_an_end_where_everything_is_even(
        (brokers, data_shards, racks) in (1usize..7, 1u16..9, prop_oneof![
            Just(vec![""]), Just(vec!["a", "b", "c"]), Just(vec!["a", "b"]), Just(vec!["", "a", "b"]),
        ]),
        events in proptest::collection::vec(any_event(), 0..30),
    ) {
        let of: Vec<&str> = racks.iter().copied().cycle().take(brokers).collect();
        let mut world = World::new(&of, data_shards);
        for event in &events {
            world.play(event, &racks);
        }
        // Whoever is still down is dead for good now.
        world.wait_ms(DEAD_AFTER_MS + 1);
        world.converge();
        world.wait_ms(world.controller.settings().rebuild_delay_ms);
        world.converge();
        world.check_rest()?;
        prop_assert_eq!(world.converge(), 0, "at rest it stays at rest");
        // And a cluster that is whole again is even again.
        for broker in 1..9 {
            if !world.up.contains(&id(broker)) {
                world.restart(broker);
            }
            world.apply(&ControllerCommand::Undrain { broker: id(broker) });
        }
        world.converge();
        world.check_rest()?;
        prop_assert!(world.controller.brokers().all(|b| b.state != BrokerState::Draining));
    }
}
