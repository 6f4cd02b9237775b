//! What hosted consumers must have done, by replaying the log.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::findings::{Findings, ViolationKind};
use super::history::RecordId;

/// Checks one task of `count-by-field` without a window: `source` is what it counts, in the order of its partition; `outputs` are
/// the (value, count) that it emitted, in the order in which they lie in its target; `state` its totals.
///
/// The plugin emits, for each batch, the new total of each value in it. How the broker cuts batches is its own business, and a crash
/// changes it; so the outputs are right if there is a way to cut the source into batches that gives exactly them. An output stands
/// for the last record of its value in its batch. So there is a cut between it and the next record of that value, and for a record
/// without output there is none between it and the next: an output missing or doubled contradicts that.
pub fn check_counts(
    task: &str,
    source: &[u32],
    outputs: &[(u32, u64)],
    state: &BTreeMap<u32, u64>,
    findings: &mut Findings,
) {
    let mut places: HashMap<u32, Vec<usize>> = HashMap::new();
    for (place, value) in source.iter().enumerate() {
        places.entry(*value).or_default().push(place);
    }
    let totals: BTreeMap<u32, u64> =
        places.iter().map(|(value, places)| (*value, places.len() as u64)).collect();
    for (value, total) in &totals {
        let kept = state.get(value);
        findings.check(kept == Some(total), ViolationKind::State, || {
            format!("{task}: the state says {kept:?} of {value}, the log {total}")
        });
    }
    for (value, kept) in state.iter().filter(|(value, _)| !totals.contains_key(value)) {
        findings.check(false, ViolationKind::State, || {
            format!("{task}: the state says {kept} of {value}, the log nothing")
        });
    }
    let emitted = emitted_places(task, &places, outputs, findings);
    check_cuts(task, source, &places, &emitted, findings);
}

/// The places in the source that outputs stand for.
fn emitted_places(
    task: &str,
    places: &HashMap<u32, Vec<usize>>,
    outputs: &[(u32, u64)],
    findings: &mut Findings,
) -> HashSet<usize> {
    let mut emitted = HashSet::new();
    let mut last: HashMap<u32, u64> = HashMap::new();
    for (value, count) in outputs {
        let of_value = places.get(value).map_or(&[][..], Vec::as_slice);
        let place = count.checked_sub(1).and_then(|nth| of_value.get(usize::try_from(nth).ok()?));
        let Some(place) = place else {
            let total = of_value.len();
            findings.check(false, ViolationKind::OutputForeign, || {
                format!("{task} emitted {count} for {value}, which is {total} times in the log")
            });
            continue;
        };
        let is_new = emitted.insert(*place);
        findings.check(is_new, ViolationKind::OutputDoubled, || {
            format!("{task} emitted {count} for {value} twice")
        });
        if is_new {
            let before = last.insert(*value, *count).unwrap_or(0);
            findings.check(before < *count, ViolationKind::OutputReordered, || {
                format!("{task} emitted {count} for {value} behind {before}")
            });
        }
    }
    emitted
}

/// Whether there are cuts that give exactly these outputs.
fn check_cuts(
    task: &str,
    source: &[u32],
    places: &HashMap<u32, Vec<usize>>,
    emitted: &HashSet<usize>,
    findings: &mut Findings,
) {
    // A cut at i lies before source[i]. `forbidden` counts, as differences, who forbids a cut there.
    let mut forbidden = vec![0i64; source.len() + 1];
    let mut required = Vec::new();
    for (value, places) in places {
        for (nth, place) in places.iter().enumerate() {
            match (places.get(nth + 1), emitted.contains(place)) {
                (Some(next), true) => required.push((*place, *next)),
                (Some(next), false) => {
                    forbidden[place + 1] += 1;
                    forbidden[next + 1] -= 1;
                }
                (None, is_emitted) => findings.check(is_emitted, ViolationKind::OutputMissing, || {
                    format!("{task}: the last total of {value}, {}, was never emitted", nth + 1)
                }),
            }
        }
    }
    // allowed[i]: how many cuts are allowed before place i.
    let mut allowed = vec![0u64; source.len() + 1];
    let mut forbidding = 0;
    for cut in 1..=source.len() {
        forbidding += forbidden[cut];
        allowed[cut] = allowed[cut - 1] + u64::from(forbidding == 0);
    }
    for (place, next) in required {
        findings.check(allowed[next] > allowed[place], ViolationKind::OutputMissing, || {
            format!(
                "{task}: the output for {} at place {place} ends a batch before place {next}, and no batch can end there: \
                 an output of another value is missing",
                source[place]
            )
        });
    }
}

/// A partition of a target topic.
pub type RouteTarget = (String, u32);

/// Checks a task that sends each record on, as it is, to one place: `source` by partition, each record with where it must go;
/// `outputs` by target, in the order in which they lie there.
///
/// Every record is in its target once, and those of one source partition are in the order of the source.
pub fn check_routes(
    task: &str,
    source: &[Vec<(RecordId, RouteTarget)>],
    outputs: &BTreeMap<RouteTarget, Vec<RecordId>>,
    findings: &mut Findings,
) {
    let mut wanted: HashMap<RecordId, (usize, usize, &RouteTarget)> = HashMap::new();
    for (partition, records) in source.iter().enumerate() {
        for (place, (id, target)) in records.iter().enumerate() {
            wanted.insert(*id, (partition, place, target));
        }
    }
    let mut arrived: HashSet<RecordId> = HashSet::new();
    for (target, records) in outputs {
        let mut last: HashMap<usize, usize> = HashMap::new();
        for id in records {
            let Some((partition, place, expected)) = wanted.get(id) else {
                findings.check(false, ViolationKind::OutputForeign, || {
                    format!("{task}: {id} is in {}-{} and not in the source", target.0, target.1)
                });
                continue;
            };
            findings.check(*expected == target, ViolationKind::OutputForeign, || {
                format!(
                    "{task}: {id} is in {}-{} and belongs into {}-{}",
                    target.0, target.1, expected.0, expected.1
                )
            });
            let is_new = arrived.insert(*id);
            findings.check(is_new, ViolationKind::OutputDoubled, || {
                format!("{task}: {id} is in {}-{} again", target.0, target.1)
            });
            if is_new {
                let before = last.insert(*partition, *place);
                findings.check(
                    before.is_none_or(|before| before < *place),
                    ViolationKind::OutputReordered,
                    || {
                        format!(
                            "{task}: {id} is in {}-{} behind what follows it in the source",
                            target.0, target.1
                        )
                    },
                );
            }
        }
    }
    for (id, (_, _, target)) in &wanted {
        findings.check(arrived.contains(id), ViolationKind::OutputMissing, || {
            format!("{task}: {id} never arrived in {}-{}", target.0, target.1)
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::Random;

    fn counts(source: &[u32], outputs: &[(u32, u64)], state: &[(u32, u64)]) -> Vec<ViolationKind> {
        let mut findings = Findings::default();
        check_counts("t", source, outputs, &state.iter().copied().collect(), &mut findings);
        findings.kinds()
    }

    /// What the plugin emits for batches of these lengths, and its state at the end.
    fn replay(source: &[u32], batches: &[usize]) -> (Vec<(u32, u64)>, BTreeMap<u32, u64>) {
        let (mut state, mut outputs, mut rest) = (BTreeMap::new(), Vec::new(), source);
        for length in batches {
            let (batch, after) = rest.split_at(*length);
            rest = after;
            let mut of_batch = BTreeMap::new();
            for value in batch {
                let total = state.entry(*value).or_insert(0);
                *total += 1;
                of_batch.insert(*value, *total);
            }
            outputs.extend(of_batch);
        }
        assert!(rest.is_empty());
        (outputs, state)
    }

    const SOURCE: [u32; 8] = [1, 2, 1, 1, 3, 2, 1, 3];

    #[test]
    fn counts_pass_however_batches_are_cut() {
        for batches in [&[8][..], &[1; 8], &[3, 5], &[2, 2, 2, 2], &[7, 1]] {
            let (outputs, state) = replay(&SOURCE, batches);
            let mut findings = Findings::default();
            check_counts("t", &SOURCE, &outputs, &state, &mut findings);
            assert_eq!(findings.violations(), [], "{batches:?}");
        }
    }

    /// Any output that is taken out, doubled, or swapped with another of its value is noticed: here for random sources and cuts.
    #[test]
    fn a_lost_or_doubled_output_is_found() {
        let mut random = Random::new(3);
        let (mut taken_out, mut noticed) = (0, 0);
        for _ in 0..200 {
            let source: Vec<u32> = (0..60).map(|_| random.skewed(8) as u32).collect();
            let mut batches = Vec::new();
            while batches.iter().sum::<usize>() < source.len() {
                let left = source.len() - batches.iter().sum::<usize>();
                batches.push((1 + random.below(9) as usize).min(left));
            }
            let (outputs, state) = replay(&source, &batches);
            let state: Vec<_> = state.into_iter().collect();
            assert_eq!(counts(&source, &outputs, &state), []);
            let victim = random.below(outputs.len() as u64) as usize;
            let mut doubled = outputs.clone();
            doubled.insert(victim, outputs[victim]);
            assert_eq!(counts(&source, &doubled, &state), [ViolationKind::OutputDoubled]);
            let mut missing = outputs.clone();
            missing.remove(victim);
            taken_out += 1;
            noticed += u32::from(!counts(&source, &missing, &state).is_empty());
        }
        // Where a batch held one value only, its output may be missing as if its batch had been joined with the next.
        assert!(noticed * 10 > taken_out * 7, "{noticed} of {taken_out} were noticed");
    }

    #[test]
    fn a_missing_batch_of_outputs_is_found() {
        let (mut outputs, state) = replay(&SOURCE, &[3, 5]);
        let state: Vec<_> = state.into_iter().collect();
        outputs.truncate(2);
        assert!(counts(&SOURCE, &outputs, &state).contains(&ViolationKind::OutputMissing));
        assert_eq!(counts(&SOURCE, &[], &state), [ViolationKind::OutputMissing]);
    }

    #[test]
    fn wrong_orders_strangers_and_states_are_found() {
        let (outputs, state) = replay(&SOURCE, &[1; 8]);
        let state: Vec<_> = state.into_iter().collect();
        let mut swapped = outputs.clone();
        swapped.swap(0, 2);
        assert_eq!(counts(&SOURCE, &swapped, &state), [ViolationKind::OutputReordered]);
        for stranger in [(1, 5), (1, 0), (9, 1)] {
            let mut more = outputs.clone();
            more.push(stranger);
            assert_eq!(counts(&SOURCE, &more, &state), [ViolationKind::OutputForeign]);
        }
        // A batch whose state was committed twice, once, or for another key.
        for (value, total) in [(1, 8), (1, 3), (4, 1)] {
            let mut wrong: BTreeMap<_, _> = state.iter().copied().collect();
            wrong.insert(value, total);
            let wrong: Vec<_> = wrong.into_iter().collect();
            assert_eq!(counts(&SOURCE, &outputs, &wrong), [ViolationKind::State]);
        }
        assert_eq!(counts(&SOURCE, &outputs, &state[1..]), [ViolationKind::State]);
    }

    fn routes(outputs: &[(u32, &[u32])]) -> Vec<ViolationKind> {
        let id = |sequence| RecordId { producer: 0, sequence };
        let target = |partition| ("to".to_owned(), partition);
        // Even records go to partition 0.
        let of = |sequences: &[u32]| sequences.iter().map(|s| (id(*s), target(s % 2))).collect();
        let source = [of(&[0, 1, 2, 4]), of(&[6, 8, 3])];
        let outputs = outputs
            .iter()
            .map(|(partition, sequences)| (target(*partition), sequences.iter().map(|s| id(*s)).collect()))
            .collect();
        let mut findings = Findings::default();
        check_routes("t", &source, &outputs, &mut findings);
        findings.kinds()
    }

    #[test]
    fn routed_records_arrive_once_and_in_their_partitions_order() {
        assert_eq!(routes(&[(0, &[0, 6, 2, 8, 4]), (1, &[3, 1])]), []);
        assert_eq!(
            routes(&[(0, &[6, 8, 0, 2, 4]), (1, &[1, 3])]),
            [],
            "between partitions there is no order"
        );
        assert_eq!(routes(&[(0, &[0, 6, 2, 8]), (1, &[3, 1])]), [ViolationKind::OutputMissing]);
        assert_eq!(routes(&[(0, &[0, 6, 2, 2, 8, 4]), (1, &[3, 1])]), [ViolationKind::OutputDoubled]);
        assert_eq!(routes(&[(0, &[2, 6, 0, 8, 4]), (1, &[3, 1])]), [ViolationKind::OutputReordered]);
        assert_eq!(routes(&[(0, &[0, 6, 2, 8, 4]), (1, &[3, 1, 5])]), [ViolationKind::OutputForeign]);
        assert_eq!(routes(&[(0, &[0, 6, 2, 8, 4, 3]), (1, &[1])]), [ViolationKind::OutputForeign]);
    }
}
