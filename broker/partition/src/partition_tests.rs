//! The partition against the sentences of its documentation, and against a model.

use proptest::collection::vec;
use proptest::prelude::*;
use tidemill_protocol::{ProducerEpoch, Sequence};

use super::*;

const RULES: SegmentRules = SegmentRules { segment_bytes: 1000, segment_ms: 60_000 };
const EPOCH: LeaderEpoch = LeaderEpoch::new(1);

fn at(ms: i64) -> Timestamp {
    Timestamp::new(ms)
}

fn plain(count: u32, bytes: u32) -> AppendRequest {
    AppendRequest { offset_count: count, bytes, max_timestamp: at(0), producer: None }
}

fn from_producer(id: i64, epoch: i16, sequence: i32, count: u32) -> AppendRequest {
    let producer = ProducerBatch {
        id: ProducerId::new(id),
        epoch: ProducerEpoch::new(epoch),
        base_sequence: Sequence::new(sequence),
    };
    AppendRequest { producer: Some(producer), ..plain(count, 100) }
}

fn append(partition: &mut Partition, request: &AppendRequest, now: i64) -> Appended {
    assert_eq!(partition.check_append(request, at(now)), Ok(AppendCheck::New));
    partition.append(request, EPOCH, at(now), &RULES)
}

fn bases(partition: &Partition) -> Vec<i64> {
    partition.header().segments.iter().map(|segment| segment.base.get()).collect()
}

#[test]
fn segments_roll_by_bytes_and_by_age() {
    let mut partition = Partition::new();
    assert!(append(&mut partition, &plain(1, 5000), 0).starts_segment, "the first, however large");
    assert!(append(&mut partition, &plain(1, 900), 0).starts_segment);
    assert!(!append(&mut partition, &plain(1, 100), 59_999).starts_segment, "exactly full");
    assert!(append(&mut partition, &plain(1, 1), 59_999).starts_segment);
    assert!(append(&mut partition, &plain(1, 1), 119_999).starts_segment, "too old");
    assert_eq!(bases(&partition), [0, 1, 3, 4]);
    assert_eq!(partition.bytes(), 6002);
}

#[test]
fn a_later_log_start_drops_whole_segments_only() {
    let mut partition = Partition::new();
    for _ in 0..4 {
        append(&mut partition, &plain(10, 900), 0);
    }
    assert_eq!(partition.advance_log_start(Offset::new(19)), Ok(Offset::new(19)));
    assert_eq!(bases(&partition), [10, 20, 30]);
    assert_eq!(partition.advance_log_start(Offset::new(5)), Ok(Offset::new(19)), "it never goes back");
    assert_eq!(partition.advance_log_start(Offset::new(20)), Ok(Offset::new(20)));
    assert_eq!(bases(&partition), [20, 30]);
    let beyond = LogStartError { wanted: Offset::new(41), log_end: Offset::new(40) };
    assert_eq!(partition.advance_log_start(Offset::new(41)), Err(beyond));
    assert_eq!(partition.advance_log_start(Offset::new(40)), Ok(Offset::new(40)));
    assert_eq!(bases(&partition), [0; 0]);
    let next = append(&mut partition, &plain(1, 1), 0);
    assert_eq!(next, Appended { base_offset: Offset::new(40), starts_segment: true });
}

#[test]
fn a_retry_gets_its_first_answer() {
    let mut partition = Partition::new();
    append(&mut partition, &from_producer(7, 0, 0, 5), 10);
    append(&mut partition, &from_producer(7, 0, 5, 5), 20);
    let again = partition.check_append(&from_producer(7, 0, 0, 5), at(30));
    let first = AppendCheck::Duplicate { base_offset: Some(Offset::ZERO), answered_at: at(10) };
    assert_eq!(again, Ok(first));
}

#[test]
fn a_refused_batch_takes_its_sequences_and_stays_refused() {
    let mut partition = Partition::new();
    let refused = from_producer(7, 0, 0, 5);
    partition.refuse(&refused.producer.unwrap(), 5, at(10));
    let behind = append(&mut partition, &from_producer(7, 0, 5, 5), 20);
    assert_eq!(behind.base_offset, Offset::ZERO, "it took no offset");
    assert_eq!(
        partition.check_append(&refused, at(30)),
        Ok(AppendCheck::Duplicate { base_offset: None, answered_at: at(10) })
    );
}

#[test]
fn sequences_are_gapless_and_epochs_fence() {
    let mut partition = Partition::new();
    let unknown = partition.check_append(&from_producer(7, 0, 3, 1), at(0));
    assert_eq!(unknown, Err(AppendError::UnknownProducer(ProducerId::new(7))));
    append(&mut partition, &from_producer(7, 2, 0, 5), 0);
    assert_eq!(
        partition.check_append(&from_producer(7, 2, 6, 1), at(0)),
        Err(AppendError::OutOfOrderSequence { expected: Sequence::new(5), got: Sequence::new(6) })
    );
    assert_eq!(
        partition.check_append(&from_producer(7, 1, 5, 1), at(0)),
        Err(AppendError::ProducerFenced { producer: ProducerId::new(7), current: ProducerEpoch::new(2) })
    );
    assert_eq!(
        partition.check_append(&from_producer(7, 3, 5, 1), at(0)),
        Err(AppendError::OutOfOrderSequence { expected: Sequence::new(0), got: Sequence::new(5) }),
        "a new epoch begins at 0"
    );
    append(&mut partition, &from_producer(7, 3, 0, 1), 0);
    assert!(matches!(
        partition.check_append(&from_producer(7, 2, 5, 1), at(0)),
        Err(AppendError::ProducerFenced { .. })
    ));
}

#[test]
fn sequences_wrap() {
    let mut partition = Partition::new();
    let count = u32::try_from(i32::MAX).unwrap() - 1;
    append(&mut partition, &from_producer(7, 0, 0, count), 0);
    append(&mut partition, &from_producer(7, 0, i32::MAX - 1, 4), 0);
    append(&mut partition, &from_producer(7, 0, 2, 1), 0);
}

#[test]
fn offsets_end() {
    let header = PartitionHeader { log_end: Offset::new(i64::MAX - 2), ..PartitionHeader::default() };
    let mut partition = Partition::restore(header);
    assert_eq!(partition.check_append(&plain(3, 1), at(0)), Err(AppendError::OffsetsExhausted));
    assert_eq!(partition.check_append(&plain(0, 1), at(0)), Err(AppendError::Empty));
    append(&mut partition, &plain(2, 1), 0);
    assert_eq!(partition.header().log_end, Offset::new(i64::MAX));
}

#[test]
fn changes_are_handed_out_once_and_do_not_move_afterwards() {
    let mut partition = Partition::new();
    append(&mut partition, &from_producer(1, 0, 0, 1), 0);
    let changes = partition.take_changes();
    let header = changes.header.unwrap();
    append(&mut partition, &from_producer(1, 0, 1, 1), 0);
    assert_eq!(header.log_end, Offset::new(1), "frozen");
    assert_eq!(changes.producers[0].1.as_ref().unwrap().batches.len(), 1);
    assert_eq!(partition.take_changes().header.unwrap().log_end, Offset::new(2));
    let none = partition.take_changes();
    assert!(none.header.is_none() && none.producers.is_empty());
}

#[derive(Debug, Clone)]
enum Step {
    Append { producer: i64, epoch: i16, sequence: i32, count: u32 },
    Plain { count: u32, bytes: u32 },
    Refuse { producer: i64, count: u32 },
    Start(prop::sample::Index),
    Wait(i64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0..3_i64, 0..2_i16, 0..12_i32, 1..4_u32).prop_map(|(producer, epoch, sequence, count)| {
            Step::Append { producer, epoch, sequence, count }
        }),
        3 => (1..4_u32, 1..400_u32).prop_map(|(count, bytes)| Step::Plain { count, bytes }),
        1 => (0..3_i64, 1..4_u32).prop_map(|(producer, count)| Step::Refuse { producer, count }),
        1 => any::<prop::sample::Index>().prop_map(Step::Start),
        1 => (0..40_000_i64).prop_map(Step::Wait),
    ];
    vec(step, 1..200)
}

/// Stores what changed and reads it back, as a checkpoint and a restart would.
fn reload(
    stored: &mut (Vec<u8>, std::collections::BTreeMap<ProducerId, Vec<u8>>),
    from: &mut Partition,
) -> Partition {
    let changes = from.take_changes();
    if let Some(header) = changes.header {
        stored.0 = header.encode();
    }
    for (id, state) in changes.producers {
        match state {
            Some(state) => stored.1.insert(id, state.encode()),
            None => stored.1.remove(&id),
        };
    }
    let mut restored = Partition::restore(PartitionHeader::decode(&stored.0).unwrap());
    for (id, state) in &stored.1 {
        restored.restore_producer(*id, ProducerState::decode(state).unwrap());
    }
    restored
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn invariants_hold_and_a_restart_changes_nothing(steps in steps(), reload_every in 1_usize..20) {
        let mut partition = Partition::new();
        let mut twin = Partition::new();
        let mut stored = (Vec::new(), std::collections::BTreeMap::new());
        let mut now = 0;
        for (number, step) in steps.iter().enumerate() {
            let request = match step {
                Step::Append { producer, epoch, sequence, count } => {
                    from_producer(*producer, *epoch, *sequence, *count)
                }
                Step::Plain { count, bytes } => plain(*count, *bytes),
                Step::Refuse { producer, count } => {
                    let request = from_producer(*producer, 1, 0, *count);
                    for p in [&mut partition, &mut twin] {
                        if p.check_append(&request, at(now)) == Ok(AppendCheck::New) {
                            p.refuse(&request.producer.unwrap(), *count, at(now));
                        }
                    }
                    continue;
                }
                Step::Start(index) => {
                    let header = partition.header();
                    let range = usize::try_from(header.log_end.since(header.log_start)).unwrap() + 1;
                    let to = header.log_start.plus(index.index(range) as u64);
                    prop_assert_eq!(partition.advance_log_start(to), Ok(to));
                    prop_assert_eq!(twin.advance_log_start(to), Ok(to));
                    continue;
                }
                Step::Wait(ms) => {
                    now += ms;
                    continue;
                }
            };
            let check = partition.check_append(&request, at(now));
            prop_assert_eq!(check, twin.check_append(&request, at(now)));
            if check == Ok(AppendCheck::New) {
                let end = partition.header().log_end;
                let appended = partition.append(&request, EPOCH, at(now), &RULES);
                prop_assert_eq!(appended, twin.append(&request, EPOCH, at(now), &RULES));
                prop_assert_eq!(appended.base_offset, end);
                prop_assert_eq!(partition.header().log_end, end.plus(u64::from(request.offset_count)));
                if request.producer.is_some() {
                    let again = partition.check_append(&request, at(now));
                    let base_offset = Some(end);
                    prop_assert_eq!(again, Ok(AppendCheck::Duplicate { base_offset, answered_at: at(now) }));
                }
            }
            let header = partition.header();
            prop_assert!(header.log_start <= header.log_end);
            let first = header.segments.first().map(|segment| segment.base);
            prop_assert!(first.is_none_or(|first| first <= header.log_start));
            prop_assert_eq!(header.segments.is_empty(), header.log_start == header.log_end);
            if number % reload_every == 0 {
                partition = reload(&mut stored, &mut partition);
            }
        }
        prop_assert_eq!(partition.header(), twin.header());
        prop_assert!(partition.producers().eq(twin.producers()));
    }
}
