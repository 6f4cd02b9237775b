//! The proposer alone, over a sink that answers when the test says so.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use parking_lot::Mutex;
use tidemill_protocol::{ShardId, Timestamp};
use tidemill_shard::{Unit, UnitResult};
use tokio::time::Instant;

use crate::config::ReplicaLimits;
use crate::error::ProposeError;
use crate::flight::Flight;
use crate::pending::Pending;
use crate::proposer::{EntrySink, Proposer};
use crate::telemetry::Telemetry;
use crate::types::Command;

#[derive(Clone, Default)]
struct Held(Arc<Mutex<Vec<(Command, Flight)>>>);

impl EntrySink for Held {
    fn propose(&self, command: Command, flight: Flight) {
        self.0.lock().push((command, flight));
    }
}

impl Held {
    /// Unit counts of the entries in flight.
    fn sizes(&self) -> Vec<usize> {
        self.0.lock().iter().map(|(command, _)| command.entry().units.len()).collect()
    }

    fn take(&self) -> (Command, Flight) {
        self.0.lock().remove(0)
    }

    fn commit(&self) {
        let (command, flight) = self.take();
        flight.committed(vec![UnitResult::Done; command.entry().units.len()]);
    }
}

fn limits() -> ReplicaLimits {
    ReplicaLimits {
        unit_bytes_max: 1000,
        entry_bytes_max: 1000,
        entry_units_max: 10,
        eager_entries: 2,
        gather_bytes: 500,
        in_flight_entries_max: 4,
        in_flight_bytes_max: 3000,
        pending_bytes_max: 64 << 10,
        reserve_deadline: Duration::from_millis(20),
        proposal_deadline: Duration::from_secs(60),
        ..ReplicaLimits::default()
    }
}

fn proposer(limits: ReplicaLimits) -> (Arc<Proposer>, Held) {
    let held = Held::default();
    let telemetry = Telemetry::new(ShardId::new(1));
    let clock = Arc::new(|| Timestamp::new(7));
    let elsewhere = Arc::new(AtomicUsize::new(usize::MAX));
    (Proposer::new(limits, elsewhere, clock, telemetry, Box::new(held.clone())), held)
}

async fn submit(proposer: &Arc<Proposer>, bytes: usize) -> Pending {
    proposer.reserve(bytes).await.unwrap().submit(Unit::Tick)
}

#[tokio::test]
async fn a_lone_unit_goes_out_at_once_and_the_rest_gathers() {
    let (proposer, held) = proposer(limits());
    let first = submit(&proposer, 10).await;
    assert_eq!(held.sizes(), [1]);
    let mut others = Vec::new();
    for _ in 0..5 {
        others.push(submit(&proposer, 10).await);
    }
    assert_eq!(held.sizes(), [1, 1], "a second entry waits behind the first, the others gather");
    held.commit();
    assert_eq!(first.await, Ok(UnitResult::Done));
    assert_eq!(held.sizes(), [1, 4]);
    held.commit();
    held.commit();
    for other in others {
        assert_eq!(other.await, Ok(UnitResult::Done));
    }
}

#[tokio::test]
async fn large_units_keep_several_entries_in_flight_within_bounds() {
    let (proposer, held) = proposer(limits());
    let mut waiting = Vec::new();
    for _ in 0..6 {
        waiting.push(submit(&proposer, 900).await);
    }
    assert_eq!(held.sizes(), [1, 1, 1], "a fourth would exceed the bytes in flight");
    held.commit();
    assert_eq!(held.sizes(), [1, 1, 1]);
    (0..5).for_each(|_| held.commit());
    for unit in waiting {
        assert_eq!(unit.await, Ok(UnitResult::Done));
    }
}

#[tokio::test]
async fn entries_keep_to_their_limits_and_carry_the_leaders_time() {
    let (proposer, held) = proposer(ReplicaLimits { gather_bytes: 900, ..limits() });
    let mut waiting = Vec::new();
    for _ in 0..2 {
        waiting.push(submit(&proposer, 10).await);
    }
    for bytes in [300, 100, 50, 40] {
        waiting.push(submit(&proposer, bytes).await);
    }
    held.commit();
    assert_eq!(held.sizes(), [1, 4]);
    for _ in 0..25 {
        waiting.push(submit(&proposer, 1).await);
    }
    assert_eq!(held.sizes(), [1, 4, 10, 10], "as many units as an entry may have are not kept waiting");
    while !held.sizes().is_empty() {
        assert_eq!(held.0.lock()[0].0.entry().time, Timestamp::new(7));
        held.commit();
    }
    for unit in waiting {
        assert_eq!(unit.await, Ok(UnitResult::Done));
    }
}

#[tokio::test]
async fn without_room_a_reservation_fails_in_time_and_dropped_permits_give_it_back() {
    let (proposer, held) = proposer(ReplicaLimits { pending_bytes_max: 3000, ..limits() });
    let permit = proposer.reserve(1000).await.unwrap();
    let unit = submit(&proposer, 900).await;
    assert_eq!(proposer.reserve(1000).await.unwrap_err(), ProposeError::Overloaded);
    drop(permit);
    drop(proposer.reserve(1000).await.unwrap());
    held.commit();
    unit.await.unwrap();
    let larger = proposer.reserve(10).await.unwrap().submit(super::fixture::bulk(2000));
    assert!(matches!(larger.await, Err(ProposeError::TooLarge { .. })), "whatever was reserved");
    let too_large = ProposeError::TooLarge { bytes: 1001, bytes_max: 1000 };
    assert_eq!(proposer.reserve(1001).await.unwrap_err(), too_large);
}

#[tokio::test]
async fn deadlines_say_what_is_known() {
    let (proposer, held) = proposer(limits());
    let in_flight = submit(&proposer, 10).await;
    let second = submit(&proposer, 10).await;
    let queued = submit(&proposer, 10).await;
    proposer.sweep(Instant::now() + Duration::from_secs(59));
    assert_eq!(held.sizes(), [1, 1]);
    proposer.sweep(Instant::now() + Duration::from_secs(61));
    assert_eq!(in_flight.await, Err(ProposeError::OutcomeUnknown));
    assert_eq!(second.await, Err(ProposeError::OutcomeUnknown));
    assert_eq!(queued.await, Err(ProposeError::Overloaded), "it never left the queue");
    held.commit();
    held.commit();
    let later = submit(&proposer, 10).await;
    held.commit();
    assert_eq!(later.await, Ok(UnitResult::Done), "late answers do no harm");
}

#[tokio::test]
async fn what_is_held_for_a_unit_is_let_go_when_that_has_landed_whoever_waits() {
    let (proposer, held) = proposer(limits());
    let room = Arc::new(());
    let taken = || Arc::strong_count(&room) - 1;
    let submit = async || {
        let permit = proposer.reserve(10).await.unwrap();
        drop(permit.submit_held(Unit::Tick, Box::new(Arc::clone(&room))));
    };
    for _ in 0..3 {
        submit().await;
    }
    assert_eq!((held.sizes(), taken()), (vec![1, 1], 3), "nobody waits, and they are under way all the same");
    held.commit();
    assert_eq!((held.sizes(), taken()), (vec![1, 1], 2), "the third was queued");
    proposer.sweep(Instant::now() + Duration::from_secs(61));
    assert_eq!(taken(), 2, "who is given up on may still be written");
    held.take().1.failed(&ProposeError::NotLeader { leader: None });
    assert_eq!(taken(), 1);
    drop(held.take());
    assert_eq!(taken(), 0);

    for _ in 0..3 {
        submit().await;
    }
    proposer.sweep(Instant::now() + Duration::from_secs(61));
    assert_eq!(taken(), 2, "what never left the queue never will");
    submit().await;
    proposer.cut_off();
    assert_eq!(taken(), 2);
    held.commit();
    held.commit();
    assert_eq!(taken(), 0);

    for _ in 0..3 {
        submit().await;
    }
    let permit = proposer.reserve(10).await.unwrap();
    proposer.stop(&Arc::from("the disk failed"), false);
    assert_eq!(taken(), 2);
    drop(permit.submit_held(Unit::Tick, Box::new(Arc::clone(&room))));
    assert_eq!(taken(), 2, "it was refused");
    drop((held.take(), held.take()));
    assert_eq!(taken(), 0);
}

#[tokio::test]
async fn a_refused_entry_lets_the_next_one_go() {
    let (proposer, held) = proposer(limits());
    let waiting = [submit(&proposer, 10).await, submit(&proposer, 10).await, submit(&proposer, 10).await];
    let not_leader = ProposeError::NotLeader { leader: None };
    for _ in 0..3 {
        held.take().1.failed(&not_leader);
    }
    for unit in waiting {
        assert_eq!(unit.await, Err(not_leader.clone()));
    }
}

#[tokio::test]
async fn a_dropped_entry_has_an_unknown_outcome_and_the_end_a_reason() {
    let (proposer, held) = proposer(limits());
    let dropped = submit(&proposer, 10).await;
    drop(held.take());
    assert_eq!(dropped.await, Err(ProposeError::OutcomeUnknown));

    let in_flight = [submit(&proposer, 10).await, submit(&proposer, 10).await];
    let queued = submit(&proposer, 10).await;
    let permit = proposer.reserve(10).await.unwrap();
    proposer.stop(&Arc::from("the disk failed"), true);
    for unit in in_flight {
        assert_eq!(unit.await, Err(ProposeError::OutcomeUnknown));
    }
    let stopped = ProposeError::Stopped { reason: Arc::from("the disk failed"), others_vote: true };
    assert_eq!(queued.await, Err(stopped.clone()));
    assert_eq!(permit.submit(Unit::Tick).await, Err(stopped.clone()));
    assert_eq!(proposer.reserve(10).await.unwrap_err(), stopped);
}

#[tokio::test]
async fn whoever_is_cut_off_keeps_nobody_waiting_and_takes_nothing_until_a_majority_is_back() {
    let (proposer, held) = proposer(limits());
    let in_flight = [submit(&proposer, 10).await, submit(&proposer, 10).await];
    let queued = submit(&proposer, 10).await;
    let permit = proposer.reserve(10).await.unwrap();
    proposer.cut_off();
    for unit in in_flight {
        assert_eq!(unit.await, Err(ProposeError::OutcomeUnknown));
    }
    assert_eq!(queued.await, Err(ProposeError::NoQuorum), "it was never handed over");
    assert_eq!(permit.submit(Unit::Tick).await, Err(ProposeError::NoQuorum));
    assert_eq!(proposer.reserve(10).await.unwrap_err(), ProposeError::NoQuorum);
    assert_eq!(held.sizes(), [1, 1]);
    // What was in flight is written after all.
    held.commit();
    assert!(!proposer.is_cut_off());
    let later = submit(&proposer, 10).await;
    held.commit();
    held.commit();
    assert_eq!(later.await, Ok(UnitResult::Done));
    proposer.cut_off();
    proposer.regain();
    let last = submit(&proposer, 10).await;
    held.commit();
    assert_eq!(last.await, Ok(UnitResult::Done), "all room was given back");
}
