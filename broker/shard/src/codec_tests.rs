//! Entries there and back.

use proptest::collection::vec;
use proptest::prelude::*;
use tidemill_controller::{ControllerCommand, TopicConfig};
use tidemill_coordinator::{GroupCommand, PositionCommit};
use tidemill_protocol::{
    DeploymentId, LeaderEpoch, LogIndex, Offset, PartitionId, ProducerEpoch, ProducerId, Sequence, TopicId,
    TopicPartition,
};
use uuid::Uuid;

use super::*;
use crate::unit::*;

fn bytes(max: usize) -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..max).prop_map(Bytes::from)
}

fn topic_id() -> impl Strategy<Value = TopicId> {
    any::<u128>().prop_map(|id| TopicId::new(Uuid::from_u128(id)))
}

fn partition() -> impl Strategy<Value = TopicPartition> {
    (topic_id(), any::<u32>())
        .prop_map(|(topic, number)| TopicPartition::new(topic, PartitionId::new(number)))
}

fn stream() -> impl Strategy<Value = OutboxStream> {
    (any::<u64>(), any::<u64>(), any::<u32>(), partition()).prop_map(
        |(deployment, incarnation, source, target)| OutboxStream {
            deployment: DeploymentId::new(deployment),
            incarnation,
            source: PartitionId::new(source),
            target,
        },
    )
}

fn time() -> impl Strategy<Value = Timestamp> {
    any::<i64>().prop_map(Timestamp::new)
}

fn progress() -> impl Strategy<Value = Unit> {
    let positions = vec((partition(), any::<i64>(), any::<i64>()), 0..3).prop_map(|steps| {
        let step = |(source, expected, next)| PositionStep {
            source,
            expected: Offset::new(expected),
            next: Offset::new(next),
        };
        steps.into_iter().map(step).collect::<Vec<_>>()
    });
    let state = vec((bytes(20), proptest::option::of(bytes(50)), proptest::option::of(time())), 0..4)
        .prop_map(|writes| {
            writes
                .into_iter()
                .map(|(key, value, expires_at)| StateWrite { key, value, expires_at })
                .collect::<Vec<_>>()
        });
    let timers = vec((bytes(20), proptest::option::of(time())), 0..3)
        .prop_map(|writes| writes.into_iter().map(|(key, at)| TimerWrite { key, at }).collect::<Vec<_>>());
    let outputs = vec((partition(), bytes(100)), 0..3).prop_map(|all| {
        all.into_iter().map(|(target, batch)| TaskOutput { target, batch }).collect::<Vec<_>>()
    });
    (
        any::<u64>(),
        any::<u32>(),
        any::<u32>(),
        positions,
        state,
        timers,
        vec((bytes(9), time()), 0..3),
        outputs,
    )
        .prop_map(|(deployment, epoch, partition, positions, state, timers, fired, outputs)| {
            Unit::Progress(Progress {
                deployment: DeploymentId::new(deployment),
                epoch,
                partition: PartitionId::new(partition),
                positions,
                state,
                timers,
                fired,
                outputs,
            })
        })
}

fn adoption() -> impl Strategy<Value = Unit> {
    let start = prop_oneof![
        any::<i64>().prop_map(|offset| StartAt::Offset(Offset::new(offset))),
        Just(StartAt::Earliest),
        Just(StartAt::Latest)
    ];
    let task = (any::<u32>(), vec((partition(), start), 0..3))
        .prop_map(|(number, sources)| TaskAssignment { partition: PartitionId::new(number), sources });
    prop_oneof![
        (topic_id(), any::<u64>(), ".{0,20}", vec(any::<u32>(), 0..9), any::<bool>()).prop_map(
            |(topic, version, name, partitions, deleted)| Unit::AdoptTopic(AdoptTopic {
                topic,
                version,
                name,
                config: TopicConfig::default(),
                partitions: partitions.into_iter().map(PartitionId::new).collect(),
                deleted,
            })
        ),
        (any::<u64>(), any::<u64>(), any::<u32>(), vec(task, 0..3), any::<u64>()).prop_map(
            |(deployment, version, epoch, tasks, limit)| Unit::AdoptDeployment(AdoptDeployment {
                deployment: DeploymentId::new(deployment),
                version,
                epoch,
                status: AdoptedStatus::Paused,
                tasks,
                state_bytes_max: limit,
                outbox_bytes_max: limit,
            })
        ),
    ]
}

fn unit() -> impl Strategy<Value = Unit> {
    let task_status = prop_oneof![
        Just(TaskStatus::Running),
        ".{0,20}".prop_map(|reason| TaskStatus::Paused { reason }),
        ".{0,20}".prop_map(|reason| TaskStatus::Failed { reason })
    ];
    prop_oneof![
        (partition(), bytes(200), proptest::option::of(any::<i32>())).prop_map(
            |(partition, batch, epoch)| {
                Unit::Append { partition, batch, leader_epoch: epoch.map(LeaderEpoch::new) }
            }
        ),
        (partition(), any::<i64>(), any::<i16>(), any::<i32>(), any::<u32>()).prop_map(
            |(partition, producer, epoch, sequence, record_count)| Unit::Refuse {
                partition,
                producer: ProducerId::new(producer),
                epoch: ProducerEpoch::new(epoch),
                base_sequence: Sequence::new(sequence),
                record_count,
            }
        ),
        (
            (topic_id(), any::<i64>(), any::<u64>()),
            proptest::option::of((any::<u64>(), any::<i64>())),
            vec((any::<u32>(), bytes(100)), 0..4)
        )
            .prop_map(|((topic, producer, topic_sequence), filtered, batches)| Unit::RoutedAppend(
                RoutedAppend {
                    topic,
                    producer: ProducerId::new(producer),
                    epoch: ProducerEpoch::new(0),
                    topic_sequence,
                    filtered: filtered.map(|(filter, now)| FilterPass {
                        filter: DeploymentId::new(filter),
                        now: Timestamp::new(now)
                    }),
                    batches: batches
                        .into_iter()
                        .map(|(number, batch)| (PartitionId::new(number), batch))
                        .collect(),
                }
            )),
        (".{0,20}", partition()).prop_map(|(group, partition)| {
            let position =
                PositionCommit { partition, offset: None, leader_epoch: None, note: group.clone() };
            Unit::Group(GroupCommand::Commit { group, positions: vec![position] })
        }),
        any::<u32>().prop_map(|count| Unit::Control(ControllerCommand::AllocateProducerIds { count })),
        adoption(),
        progress(),
        (stream(), any::<u64>(), bytes(100)).prop_map(|(stream, number, batch)| Unit::Deliver {
            stream,
            number,
            batch
        }),
        (stream(), any::<u64>()).prop_map(|(stream, up_to)| Unit::Delivered { stream, up_to }),
        (partition(), any::<i64>())
            .prop_map(|(partition, offset)| Unit::AdvanceLogStart { partition, offset: Offset::new(offset) }),
        (any::<u64>(), any::<u32>(), any::<u32>(), task_status).prop_map(
            |(deployment, epoch, partition, status)| {
                Unit::TaskStatus {
                    deployment: DeploymentId::new(deployment),
                    epoch,
                    partition: PartitionId::new(partition),
                    status,
                }
            }
        ),
        Just(Unit::Tick),
        Just(Unit::TakeStateHash),
        (any::<u64>(), any::<u64>(), any::<[u8; 32]>()).prop_map(|(index, node, hash)| {
            Unit::ReportStateHash(StateHash { index: LogIndex::new(index), node, hash })
        }),
    ]
}

fn entry() -> impl Strategy<Value = Entry> {
    (time(), vec(unit(), 0..6)).prop_map(|(time, units)| Entry { time, units })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn an_entry_reads_back_however_it_is_cut(entry in entry(), cuts in vec(any::<prop::sample::Index>(), 0..6)) {
        let parts = entry.encode();
        prop_assert_eq!(Entry::decode(&parts), Ok(entry.clone()));
        let whole = Bytes::from(parts.concat());
        prop_assert_eq!(Entry::decode(std::slice::from_ref(&whole)), Ok(entry.clone()));
        let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(whole.len() + 1)).collect();
        cuts.extend([0, whole.len()]);
        cuts.sort_unstable();
        let pieces: Vec<_> = cuts.windows(2).map(|pair| whole.slice(pair[0]..pair[1])).collect();
        prop_assert_eq!(Entry::decode(&pieces), Ok(entry));
    }

    #[test]
    fn what_is_cut_short_or_padded_is_refused(entry in entry(), cut in any::<prop::sample::Index>()) {
        let mut whole = entry.encode().concat();
        let short = Bytes::copy_from_slice(&whole[..cut.index(whole.len())]);
        prop_assert!(Entry::decode(&[short]).is_err());
        whole.push(0);
        prop_assert!(Entry::decode(&[Bytes::from(whole)]).is_err());
    }

    #[test]
    fn a_flipped_bit_never_panics(entry in entry(), bit in any::<prop::sample::Index>()) {
        let mut whole = entry.encode().concat();
        let bit = bit.index(whole.len() * 8);
        whole[bit / 8] ^= 1 << (bit % 8);
        let _ = Entry::decode(&[Bytes::from(whole)]);
    }

    #[test]
    fn garbage_never_panics(garbage in vec(any::<u8>(), 0..300)) {
        let _ = Entry::decode(&[Bytes::from(garbage)]);
    }
}

#[test]
fn batches_are_neither_copied_in_nor_out() {
    let batch = Bytes::from(vec![7; 100_000]);
    let partition = TopicPartition::new(TopicId::new(Uuid::nil()), PartitionId::new(0));
    let unit = Unit::Append { partition, batch: batch.clone(), leader_epoch: None };
    let parts = Entry { time: Timestamp::new(1), units: vec![unit] }.encode();
    assert_eq!(parts.len(), 2);
    assert_eq!(parts[1].as_ptr(), batch.as_ptr());
    let whole = Bytes::from(parts.concat());
    let decoded = Entry::decode(std::slice::from_ref(&whole)).unwrap();
    let Unit::Append { batch, .. } = &decoded.units[0] else { panic!("{decoded:?}") };
    assert_eq!(batch.as_ptr(), whole[parts[0].len()..].as_ptr());
}

#[test]
fn a_newer_format_is_named() {
    let mut whole = Entry::default().encode().concat();
    whole[0] = 9;
    assert_eq!(Entry::decode(&[Bytes::from(whole)]), Err(EntryError::Format(9)));
}

/// Logs of older releases hold units by these numbers: a new kind goes behind the last, and none is ever moved.
#[test]
fn the_numbers_of_units_stay() {
    let partition = TopicPartition::new(TopicId::new(Uuid::from_u128(7)), PartitionId::new(1));
    let deployment = DeploymentId::new(3);
    let stream = OutboxStream { deployment, incarnation: 1, source: PartitionId::new(0), target: partition };
    let units = [
        (
            1,
            Unit::Refuse {
                partition,
                producer: ProducerId::new(5),
                epoch: ProducerEpoch::new(0),
                base_sequence: Sequence::new(0),
                record_count: 1,
            },
        ),
        (3, Unit::Group(GroupCommand::Delete { group: "g".to_owned() })),
        (4, Unit::Control(ControllerCommand::AllocateProducerIds { count: 1 })),
        (9, Unit::Delivered { stream, up_to: 1 }),
        (10, Unit::AdvanceLogStart { partition, offset: Offset::new(1) }),
        (12, Unit::Tick),
        (13, Unit::TakeStateHash),
        (14, Unit::ReportStateHash(StateHash { index: LogIndex::new(1), node: 2, hash: [3; 32] })),
    ];
    for (number, unit) in units {
        let bytes =
            postcard::to_extend(&unit, Vec::<u8>::new()).expect("plain data always encodes into memory");
        assert_eq!(bytes.first(), Some(&number), "{unit:?}");
    }
}
