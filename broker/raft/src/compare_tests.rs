//! What reports come to.

use tidemill_protocol::BrokerId;

use super::*;

const SHARD: ShardId = ShardId::new(3);

fn node(broker: u32) -> NodeId {
    NodeId::new(BrokerId::new(broker), 1)
}

fn voters(count: u32) -> BTreeSet<NodeId> {
    (1..=count).map(node).collect()
}

fn reports(hashes: &[(u32, u8)]) -> Reports {
    hashes.iter().map(|(broker, hash)| (node(*broker), [*hash; 32])).collect()
}

#[test]
fn who_differs_from_a_majority_is_astray() {
    let judged = |own, count, hashes: &[(u32, u8)]| judge(node(own), &voters(count), &reports(hashes));
    let astray = Verdict::Astray { own: [9; 32], majority: [1; 32] };
    assert_eq!(judged(1, 3, &[]), Verdict::Open);
    assert_eq!(judged(1, 3, &[(1, 1)]), Verdict::Open);
    assert_eq!(judged(1, 3, &[(1, 1), (2, 1)]), Verdict::Agreed);
    assert_eq!(judged(3, 3, &[(1, 1), (2, 1)]), Verdict::Open, "its own report is to come");
    assert_eq!(judged(3, 3, &[(1, 1), (3, 9)]), Verdict::Open, "either may be wrong");
    assert_eq!(judged(3, 3, &[(1, 1), (2, 1), (3, 9)]), astray);
    assert_eq!(judged(1, 3, &[(1, 1), (2, 1), (3, 9)]), Verdict::Agreed);
    // Who has no vote counts for nothing, and is judged all the same.
    assert_eq!(judged(4, 3, &[(1, 1), (2, 1), (4, 9)]), astray);
    assert_eq!(judged(1, 3, &[(1, 1), (4, 1), (5, 1)]), Verdict::Open);
    assert_eq!(judged(1, 1, &[(1, 1)]), Verdict::Agreed);
}

#[test]
fn without_a_majority_nobody_is_right() {
    let judged = |own, count, hashes: &[(u32, u8)]| judge(node(own), &voters(count), &reports(hashes));
    assert_eq!(judged(1, 2, &[(1, 1), (2, 2)]), Verdict::Undecided);
    assert_eq!(judged(1, 3, &[(1, 1), (2, 2)]), Verdict::Open, "the third decides");
    assert_eq!(judged(1, 3, &[(1, 1), (2, 2), (3, 3)]), Verdict::Undecided);
    assert_eq!(judged(1, 4, &[(1, 1), (2, 2), (3, 1)]), Verdict::Open);
    assert_eq!(judged(1, 4, &[(1, 1), (2, 2), (3, 1), (4, 2)]), Verdict::Undecided);
}

fn comparison(own: u32) -> Comparison {
    let comparison = Comparison::new(&ReplicaLimits::default());
    comparison.begin(node(own));
    comparison
}

fn say(to: &Comparison, count: u32, index: u64, (broker, hash): (u32, u8)) -> Option<Alarm> {
    let report = StateHash { index: LogIndex::new(index), node: node(broker).get(), hash: [hash; 32] };
    to.report(SHARD, &report, node(1), &voters(count))
}

#[test]
fn the_one_that_differs_stops_and_the_others_say_so_once() {
    let all = [(1, 1), (3, 9), (2, 1)];
    let tell = |own| {
        let comparison = comparison(own);
        let alarms: Vec<_> = all.into_iter().filter_map(|report| say(&comparison, 3, 70, report)).collect();
        (comparison, alarms)
    };
    let (_, alarms) = tell(3);
    assert!(
        matches!(&alarms[..], [Alarm::Stops(why)] if why.contains("shard 3") && why.contains("entry 70"))
    );
    let (first, alarms) = tell(1);
    assert!(matches!(&alarms[..], [Alarm::Told(_)]), "{alarms:?}");
    assert_eq!(say(&first, 3, 70, (3, 9)), None, "it is said once");
    assert_eq!(say(&first, 3, 80, (1, 1)), None);
    assert_eq!(say(&first, 3, 80, (2, 1)), None, "all is well in the next");
}

#[test]
fn one_that_is_slow_is_compared_although_the_others_are_at_the_next_round() {
    let slow = comparison(3);
    for index in [70, 80, 90] {
        assert_eq!(say(&slow, 3, index, (1, 1)), None);
        assert_eq!(say(&slow, 3, index, (2, 1)), None);
    }
    assert!(matches!(say(&slow, 3, 70, (3, 9)), Some(Alarm::Stops(why)) if why.contains("entry 70")));
    // But not for ever.
    let slower = comparison(3);
    for index in [70, 80, 90, 100, 110] {
        assert_eq!(say(&slower, 3, index, (1, 1)), None);
        assert_eq!(say(&slower, 3, index, (2, 1)), None);
    }
    assert_eq!(say(&slower, 3, 70, (3, 9)), None);
    assert_eq!(slower.known.lock().rounds.len(), ROUNDS_MAX);
}

#[test]
fn of_two_that_differ_the_follower_stops() {
    for (own, stops) in [(1, false), (2, true)] {
        let comparison = comparison(own);
        assert_eq!(say(&comparison, 2, 5, (1, 1)), None);
        let alarm = say(&comparison, 2, 5, (2, 2));
        assert!(matches!((alarm, stops), (Some(Alarm::Stops(_)), true) | (Some(Alarm::Told(_)), false)));
    }
    let three = comparison(2);
    let last = [(1, 1), (2, 2), (3, 3)].into_iter().filter_map(|report| say(&three, 3, 5, report)).last();
    assert!(matches!(last, Some(Alarm::Told(_))), "of three nobody stops: two would be left that differ");
}

#[test]
fn a_round_is_due_after_enough_bytes_and_time() {
    let limits = ReplicaLimits::default();
    let comparison = Comparison::new(&limits);
    let (soon, then) = (Duration::from_secs(1), limits.state_hash_interval);
    let later = then * QUIET_INTERVALS;
    assert!(!comparison.applied(usize::try_from(limits.state_hash_bytes).unwrap(), &[]));
    assert!(!comparison.is_due(soon));
    assert!(comparison.is_due(then));
    assert!(!comparison.applied(100, &[Unit::TakeStateHash]), "the log brings it again at a start");
    assert!(!comparison.is_due(then));
    comparison.begin(node(1));
    assert!(comparison.applied(100, &[Unit::Tick, Unit::TakeStateHash]));
    comparison.applied(1000, &[]);
    assert!(!comparison.is_due(later), "nothing happens");
    comparison.applied(usize::try_from(QUIET_BYTES).unwrap(), &[]);
    assert!(!comparison.is_due(then));
    assert!(comparison.is_due(later), "little happens, and for long");
}
