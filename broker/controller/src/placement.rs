//! Where replicas begin, and how a load is evened out between brokers.
//!
//! Evening out follows paths: where one broker has two more than another, and what it has can only go to a third, that
//! one's can go on. Every such path takes one from the fuller and gives one to the emptier end, so the sum of the
//! squares falls, and where no path is left no distribution is more even (Harvey, Ladner, Lovász, Tamir, "Semi-matchings
//! for bipartite graphs and load balancing", 2003).

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use tidemill_protocol::{BrokerId, NodeId, ShardId};

use crate::brokers::FIRST_INCARNATION;
use crate::state::Bounds;

/// So many paths at most are followed in one call: with more brokers than anybody has, the rest comes next time.
const PATHS_MAX: usize = 10_000;

/// The first replicas of every shard of a new cluster, the controller's shard 0 first, then `data_shards` more. The first
/// replica of each is its preferred leader.
///
/// The same wherever it is asked: brokers know by it which groups to form before any controller could tell them. Replicas
/// and leaders are even, to within one; the controller's shard has the brokers with the lowest ids. With as many brokers
/// as `replicas`, or fewer, each has every shard.
#[must_use]
pub fn initial_placement(brokers: &[BrokerId], data_shards: u16, replicas: u8) -> Vec<Vec<NodeId>> {
    let brokers: Vec<BrokerId> = brokers.iter().copied().collect::<BTreeSet<_>>().into_iter().collect();
    let held = usize::from(replicas).clamp(1, Bounds::REPLICAS_MAX).min(brokers.len());
    // Dealt out like cards.
    let mut cards = brokers.iter().copied().cycle();
    let deal = |shard| (ShardId::new(shard), cards.by_ref().take(held).collect::<Vec<_>>());
    let mut sets: BTreeMap<ShardId, Vec<BrokerId>> = (1..=data_shards).map(deal).collect();
    for (shard, leader) in even_leaders(&sets) {
        sets.entry(shard).and_modify(|set| put_first(set, leader));
    }
    sets.insert(ShardId::CONTROLLER, brokers.iter().copied().take(held).collect());
    let nodes = |set: Vec<BrokerId>| -> Vec<NodeId> {
        set.into_iter().map(|broker| NodeId::new(broker, FIRST_INCARNATION)).collect()
    };
    sets.into_values().map(nodes).collect()
}

/// Moves a broker to the front; the others stay in their order.
pub(crate) fn put_first(set: &mut [BrokerId], leader: BrokerId) {
    if let Some(place) = set.iter().position(|broker| *broker == leader) {
        set[..=place].rotate_right(1);
    }
}

/// Who is to lead each shard, of its candidates: as even as can be, and as now where that is even enough. The first
/// candidate is who leads now. Shards without candidates are left out.
pub(crate) fn even_leaders(candidates: &BTreeMap<ShardId, Vec<BrokerId>>) -> BTreeMap<ShardId, BrokerId> {
    let mut counts: BTreeMap<BrokerId, usize> = candidates.values().flatten().map(|id| (*id, 0)).collect();
    let mut leaders = BTreeMap::new();
    for (shard, candidates) in candidates {
        if let Some(leader) = candidates.first() {
            leaders.insert(*shard, *leader);
            *counts.entry(*leader).or_default() += 1;
        }
    }
    for _ in 0..PATHS_MAX {
        let edge = |from: BrokerId, to: BrokerId| {
            let mut led = leaders.iter().filter(|(_, leader)| **leader == from);
            led.find(|(shard, _)| candidates[*shard].contains(&to)).map(|(shard, _)| *shard)
        };
        let Some(path) = any_path(&counts, edge) else { break };
        for step in &path {
            leaders.insert(step.shard, step.to);
        }
        follow(&mut counts, &path);
    }
    leaders
}

/// One thing of a shard, the lead or a replica, that goes from a broker to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) shard: ShardId,
    pub(crate) from: BrokerId,
    pub(crate) to: BrokerId,
}

/// Counts after a path was followed: only its ends change.
pub(crate) fn follow(counts: &mut BTreeMap<BrokerId, usize>, path: &[Step]) {
    for step in path {
        counts.entry(step.from).and_modify(|count| *count = count.saturating_sub(1));
        *counts.entry(step.to).or_default() += 1;
    }
}

/// The shortest path from one of the fullest brokers to one that has at least two less.
pub(crate) fn any_path(
    counts: &BTreeMap<BrokerId, usize>,
    edge: impl Fn(BrokerId, BrokerId) -> Option<ShardId>,
) -> Option<Vec<Step>> {
    let mut fullest: Vec<(BrokerId, usize)> = counts.iter().map(|(id, count)| (*id, *count)).collect();
    fullest.sort_by_key(|(id, count)| (std::cmp::Reverse(*count), *id));
    let least = fullest.last()?.1;
    let mut sources = fullest.iter().take_while(|(_, count)| *count >= least + 2);
    sources.find_map(|(from, count)| path_from(*from, *count, &fullest, &edge))
}

fn path_from(
    from: BrokerId,
    count: usize,
    fullest: &[(BrokerId, usize)],
    edge: &impl Fn(BrokerId, BrokerId) -> Option<ShardId>,
) -> Option<Vec<Step>> {
    let mut reached: BTreeMap<BrokerId, Step> = BTreeMap::new();
    let mut queue = VecDeque::from([from]);
    while let Some(at) = queue.pop_front() {
        // The emptiest first, so that among paths of a length the best is taken.
        for (to, held) in fullest.iter().rev() {
            if *to == from || reached.contains_key(to) {
                continue;
            }
            let Some(shard) = edge(at, *to) else { continue };
            reached.insert(*to, Step { shard, from: at, to: *to });
            if held + 2 <= count {
                return Some(way_back(&reached, from, *to));
            }
            queue.push_back(*to);
        }
    }
    None
}

fn way_back(reached: &BTreeMap<BrokerId, Step>, from: BrokerId, to: BrokerId) -> Vec<Step> {
    let mut path = Vec::new();
    let mut at = to;
    while at != from {
        let step = reached[&at];
        path.push(step);
        at = step.from;
    }
    path.reverse();
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spread(items: impl Iterator<Item = BrokerId>, of: &[BrokerId]) -> usize {
        let mut counts: BTreeMap<BrokerId, usize> = of.iter().map(|id| (*id, 0)).collect();
        items.for_each(|id| *counts.entry(id).or_default() += 1);
        counts.values().max().unwrap() - counts.values().min().unwrap()
    }

    #[test]
    fn a_new_cluster_is_even_and_the_same_everywhere() {
        for count in 1..9 {
            let brokers: Vec<BrokerId> = (1..=count).map(BrokerId::new).collect();
            let mut shuffled = brokers.clone();
            shuffled.reverse();
            for data_shards in 1..40 {
                let placed = initial_placement(&brokers, data_shards, 3);
                assert_eq!(placed, initial_placement(&shuffled, data_shards, 3));
                assert_eq!(placed.len(), usize::from(data_shards) + 1);
                let held = brokers.len().min(3);
                for set in &placed {
                    let distinct: BTreeSet<BrokerId> = set.iter().map(|node| node.broker()).collect();
                    assert_eq!((set.len(), distinct.len()), (held, held));
                    assert!(set.iter().all(|node| node.incarnation() == 1));
                }
                let voters: Vec<BrokerId> = placed[0].iter().map(|node| node.broker()).collect();
                assert_eq!(voters, brokers[..held]);
                let replicas = placed[1..].iter().flatten().map(|node| node.broker());
                assert!(spread(replicas, &brokers) <= 1, "{placed:?}");
                let leaders = placed[1..].iter().map(|set| set[0].broker());
                assert!(spread(leaders, &brokers) <= 1, "{count} brokers, {placed:?}");
            }
        }
    }

    #[test]
    fn nobody_places_anything_on_no_broker() {
        assert_eq!(initial_placement(&[], 1, 3), [vec![], vec![]]);
    }

    #[test]
    fn a_lead_goes_over_a_third_where_there_is_no_straight_way() {
        let [a, b, c] = [1, 2, 3].map(BrokerId::new);
        let sets = [vec![a, b], vec![a, b], vec![b, c]];
        let candidates: BTreeMap<ShardId, Vec<BrokerId>> = (1..).map(ShardId::new).zip(sets).collect();
        let leaders = even_leaders(&candidates);
        let chosen: BTreeSet<&BrokerId> = leaders.values().collect();
        assert_eq!(chosen.len(), 3, "{leaders:?}");
    }
}
