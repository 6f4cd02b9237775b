//! The lives of brokers: how they begin, end, and are begun again.

use std::sync::Arc;
use std::time::Duration;

use rand::RngExt;
use tidemill_protocol::BrokerId;
use tidemill_raft::Begin;

use super::SHARDS;
use super::controller::is_settled;
use super::director::{DOWN_MS, Director, LOOK_AGAIN, Machine, Undo};
use super::disks::Wrong;
use super::machine::{Beginning, Life, Started};
use super::world::Running;
use crate::ledger::Violation;

/// As the `server` room has replicas look whether they are in the state of the others.
const COMPARE_INTERVAL: Duration = Duration::from_secs(1);

impl Director {
    pub(super) fn start(&mut self, broker: BrokerId) {
        if self.must_wait(broker) {
            return self.later(LOOK_AGAIN, Undo::Start(broker));
        }
        let salt_seed = self.rng.random();
        self.numbers += 1;
        let life = self.numbers;
        let Some(machine) = self.machines.get_mut(&broker).filter(|machine| machine.life.is_none()) else {
            return;
        };
        self.trace.note(format_args!(
            "{broker} starts as {:?}",
            machine.places.values().map(|place| place.node).collect::<Vec<_>>()
        ));
        let beginning = Beginning {
            broker,
            life,
            salt_seed,
            disk: machine.disk.clone(),
            network: self.network.clone(),
            trace: self.trace.clone(),
            places: machine.places.clone(),
            clock_wrong_ms: Arc::clone(&machine.clock_wrong_ms),
            bug: self.bug,
        };
        let tell = self.started.0.clone();
        machine.life = Some(Life::begin(beginning, move |started| drop(tell.send((broker, life, started)))));
        self.lives.insert(broker, life);
    }

    pub(crate) fn kill(&mut self, broker: BrokerId) {
        let Some(machine) = self.machines.get_mut(&broker) else { return };
        let Some(life) = machine.life.take() else { return };
        self.trace.note(format_args!("{broker} ends"));
        // What the others know of it: whoever has begun must find that again.
        if let Some(running) = self.world.at(broker) {
            for (shard, place) in &mut machine.places {
                if running.wal.flushed(*shard).is_some() {
                    place.begin = Begin::Existing;
                }
            }
        }
        self.network.remove(broker);
        if let Some(wrong) = machine.wrong {
            machine.may_have_lost = true;
            if wrong == Wrong::Flushes {
                // What it never synced must not lie about as if it would be yet.
                machine.disk.lose_power();
            }
        }
        machine.disk = machine.disk.next_life();
        life.kill();
        self.world.ended(broker);
    }

    pub(super) fn started(&mut self, broker: BrokerId, life: u64, started: Started) {
        if self.lives.get(&broker) != Some(&life) {
            return;
        }
        let Some(machine) = self.machines.get_mut(&broker).filter(|machine| machine.life.is_some()) else {
            return;
        };
        match started {
            Ok((running, votes)) => {
                self.trace.note(format_args!("{broker} runs"));
                for (shard, vote) in votes {
                    if let Some(place) = machine.places.get_mut(&shard) {
                        (place.retired, place.old_vote) = (false, vote);
                    }
                }
                tokio::spawn(compare_states(running.clone()));
                self.world.runs(running);
            }
            // The power goes first.
            Err(_) if machine.disk.has_lost_power() => {}
            Err(error) => {
                self.trace.note(format_args!("{broker} does not start: {error}"));
                if machine.disk.has_failed() {
                    let down = Duration::from_millis(self.rng.random_range(DOWN_MS));
                    return self.end_for(broker, down);
                }
                if !machine.may_have_lost {
                    return self.world.broken(Violation::NoStart { reason: error.to_string() });
                }
                self.kill(broker);
                match error.loss() {
                    Some(shard) => self.renew(broker, shard),
                    None => self.lose_disk(broker),
                }
                self.start(broker);
            }
        }
    }

    /// Whether every shard is kept by those that should, and all of them are well.
    pub(super) fn is_whole(&mut self) -> bool {
        self.replace_lost();
        let is_well = |machine: &Machine| {
            let runs = self.world.at(machine.broker).is_some_and(|running| !running.has_stopped());
            runs && machine.wrong.is_none() && !machine.disk.is_in_trouble()
        };
        let running = self.machines.values().all(is_well);
        let whole = running && SHARDS.iter().all(|shard| is_settled(&self.world, *shard));
        if whole {
            self.machines.values_mut().for_each(|machine| machine.may_have_lost = false);
        }
        whole
    }
}

/// Each replica takes its part as long as the broker runs; one whose state is not that of the others stops.
async fn compare_states(running: Running) {
    let compare = async {
        loop {
            tokio::time::sleep(COMPARE_INTERVAL).await;
            for replica in running.replicas.values() {
                replica.compare_states().await;
            }
        }
    };
    let _ended: Option<()> = running.until_it_ends(compare).await;
}
