//! How many instances there may be at one time, and how much memory they may come to together.
//!
//! ```text
//! |<------------------- instances_max, instances_memory_bytes_max ------------------>|
//! | producers' partitioners and filters                                              |
//! | tasks, subscriptions' filters, describe, validate_config      |  not for them    |
//!                                                                 |<- 1/8, reserved >|
//! ```
//!
//! Everything that starts an instance takes a seat first and holds it for as long as the instance lives, so that the engine's own pools
//! never run out: a component with several memories takes as many seats as it takes of the pools. Instances that only wait for a next
//! call are given up when somebody needs their seats.

use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::config::{EngineConfig, TABLES_PER_COMPONENT_MEAN};
use crate::error::CallError;

/// This part of all is kept for what a producer waits for.
const RESERVED_PART: usize = 8;

/// On whose behalf an instance runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// A producer waits for it: also where nobody else finds room any more.
    Produce,
    /// Anybody else.
    Common,
}

/// Instances that wait for a call and can be given up at any time.
pub(crate) trait Idle: Send + Sync {
    /// Gives up those with a seat of this claim.
    fn give_up(&self, claim: Claim);
}

/// What an instance takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Need {
    pub(crate) seats: usize,
    /// The cap of its memory, used or not.
    pub(crate) memory_bytes: usize,
}

impl Need {
    /// Seats of a component whose instances have as many memories and tables.
    pub(crate) fn seats(memories: u32, tables: u32) -> usize {
        memories.max(tables.div_ceil(TABLES_PER_COMPONENT_MEAN)).max(1) as usize
    }
}

pub(crate) struct Capacity {
    most: Need,
    used: Mutex<Used>,
    idle: Mutex<Vec<Weak<dyn Idle>>>,
}

#[derive(Default)]
struct Used {
    produce: Need,
    common: Need,
}

/// Room for one instance; given back when dropped, which must be after the instance.
pub(crate) struct Seat {
    capacity: Arc<Capacity>,
    claim: Claim,
    need: Need,
}

impl Capacity {
    pub(crate) fn new(config: &EngineConfig) -> Self {
        let most =
            Need { seats: config.instances_max as usize, memory_bytes: config.instances_memory_bytes_max };
        Self { most, used: Mutex::default(), idle: Mutex::default() }
    }

    /// Takes room; of instances that wait for a call, if there is no other.
    pub(crate) fn take(self: &Arc<Self>, claim: Claim, need: Need) -> Result<Seat, CallError> {
        let mut refused = match self.try_take(claim, need) {
            Ok(seat) => return Ok(seat),
            Err(refused) => refused,
        };
        for of in [Claim::Common, Claim::Produce] {
            if claim == Claim::Common && of == Claim::Produce && !self.produce_is_beyond_its_reserve() {
                break;
            }
            self.give_up_idle(of);
            match self.try_take(claim, need) {
                Ok(seat) => return Ok(seat),
                Err(again) => refused = again,
            }
        }
        Err(CallError::NoCapacity(refused))
    }

    /// Instances that wait in this pool can be given up from now on, until the pool is gone.
    pub(crate) fn register(&self, pool: Weak<dyn Idle>) {
        let mut idle = self.idle.lock();
        if idle.len() == idle.capacity() {
            idle.retain(|pool| pool.strong_count() > 0);
        }
        idle.push(pool);
    }

    fn try_take(self: &Arc<Self>, claim: Claim, need: Need) -> Result<Seat, String> {
        let mut used = self.used.lock();
        let all = used.produce.plus(used.common);
        let most = match claim {
            Claim::Produce => self.most,
            // What producers have of their reserve already need not be kept a second time.
            Claim::Common => self.most.minus(self.reserved().minus(used.produce)),
        };
        let after = all.plus(need);
        if after.seats > most.seats {
            return Err(format!(
                "{} of {} instances are in use; stop deployments, or subscriptions with filters",
                all.seats, most.seats
            ));
        }
        if after.memory_bytes > most.memory_bytes {
            return Err(format!(
                "the memory caps of {} instances add up to {} bytes, and {} more would be above {}; deploy with less --memory, or \
                 stop deployments",
                all.seats, all.memory_bytes, need.memory_bytes, most.memory_bytes
            ));
        }
        let sum = used.of(claim);
        *sum = sum.plus(need);
        Ok(Seat { capacity: Arc::clone(self), claim, need })
    }

    fn reserved(&self) -> Need {
        Need { seats: self.most.seats / RESERVED_PART, memory_bytes: self.most.memory_bytes / RESERVED_PART }
    }

    fn produce_is_beyond_its_reserve(&self) -> bool {
        let (produce, reserved) = (self.used.lock().produce, self.reserved());
        produce.seats > reserved.seats || produce.memory_bytes > reserved.memory_bytes
    }

    fn give_up_idle(&self, claim: Claim) {
        // Outside of the lock: each gives its memory back to the system, and its seat to us.
        let pools: Vec<_> = self.idle.lock().iter().filter_map(Weak::upgrade).collect();
        pools.iter().for_each(|pool| pool.give_up(claim));
    }
}

impl Used {
    fn of(&mut self, claim: Claim) -> &mut Need {
        match claim {
            Claim::Produce => &mut self.produce,
            Claim::Common => &mut self.common,
        }
    }
}

impl Need {
    fn plus(self, other: Self) -> Self {
        Self {
            seats: self.seats.saturating_add(other.seats),
            memory_bytes: self.memory_bytes.saturating_add(other.memory_bytes),
        }
    }

    fn minus(self, other: Self) -> Self {
        Self {
            seats: self.seats.saturating_sub(other.seats),
            memory_bytes: self.memory_bytes.saturating_sub(other.memory_bytes),
        }
    }
}

impl Seat {
    pub(crate) fn claim(&self) -> Claim {
        self.claim
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut used = self.capacity.used.lock();
        let sum = used.of(self.claim);
        *sum = sum.minus(self.need);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn capacity(instances_max: u32, instances_memory_bytes_max: usize) -> Arc<Capacity> {
        let config = EngineConfig { instances_max, instances_memory_bytes_max, ..EngineConfig::default() };
        Arc::new(Capacity::new(&config))
    }

    const ONE: Need = Need { seats: 1, memory_bytes: 100 };

    fn fill(capacity: &Arc<Capacity>, claim: Claim) -> Vec<Seat> {
        std::iter::from_fn(|| capacity.take(claim, ONE).ok()).collect()
    }

    #[test]
    fn a_reserve_is_left_for_producers() {
        let capacity = capacity(16, usize::MAX);
        let common = fill(&capacity, Claim::Common);
        assert_eq!(common.len(), 14);
        assert_eq!(fill(&capacity, Claim::Produce).len(), 2);
        drop(common);
        let produce = fill(&capacity, Claim::Produce);
        assert_eq!(produce.len(), 16);
        assert!(capacity.take(Claim::Common, ONE).is_err());
        drop(produce);
        assert_eq!(fill(&capacity, Claim::Common).len(), 14, "all was given back");
    }

    #[test]
    fn a_reserve_in_use_is_not_kept_twice() {
        let capacity = capacity(16, usize::MAX);
        let _produce = (capacity.take(Claim::Produce, ONE), capacity.take(Claim::Produce, ONE));
        assert_eq!(fill(&capacity, Claim::Common).len(), 14);
    }

    #[test]
    fn caps_of_memory_add_up() {
        let capacity = capacity(100, 1600);
        let common = fill(&capacity, Claim::Common);
        assert_eq!(common.len(), 14);
        let error = capacity.take(Claim::Common, ONE).err().unwrap().to_string();
        assert!(error.contains("1400 bytes, and 100 more would be above 1400; deploy with less"), "{error}");
        assert_eq!(fill(&capacity, Claim::Produce).len(), 2);
    }

    #[test]
    fn large_components_take_more() {
        assert_eq!(Need::seats(0, 0), 1);
        assert_eq!(Need::seats(4, 1), 4);
        assert_eq!(Need::seats(1, 3 * TABLES_PER_COMPONENT_MEAN), 3);
    }
}
