//! Results as bytes: what a shard's leader answers a broker that proposed from afar.
//!
//! ```text
//! format u8 (1) | postcard of the result
//! ```
//! Variants are numbered by their place in the enums: new ones come last.

use bytes::Bytes;

use crate::result::UnitResult;

const FORMAT: u8 = 1;

/// Bytes that are no result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResultError {
    /// Written by a newer release.
    #[error("the result has format {0}; this release reads format 1")]
    Format(u8),
    /// Nothing at all.
    #[error("the result is empty")]
    Empty,
    /// It does not decode.
    #[error("the result is damaged: {0}")]
    Damaged(String),
    /// More bytes than a result.
    #[error("{0} bytes are left over behind the result")]
    Long(usize),
}

impl UnitResult {
    /// The result as bytes.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        postcard::to_extend(self, vec![FORMAT]).expect("plain data always encodes into memory").into()
    }

    /// Reads a result back.
    ///
    /// # Errors
    /// [`ResultError`] where it is of another format, cut short, too long, or damaged.
    pub fn decode(bytes: &[u8]) -> Result<Self, ResultError> {
        let (format, rest) = bytes.split_first().ok_or(ResultError::Empty)?;
        if *format != FORMAT {
            return Err(ResultError::Format(*format));
        }
        let (result, left) =
            postcard::take_from_bytes(rest).map_err(|error| ResultError::Damaged(error.to_string()))?;
        match left.len() {
            0 => Ok(result),
            extra => Err(ResultError::Long(extra)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;
    use tidemill_controller::{ControllerError, ControllerReply, ProducerIdBlock};
    use tidemill_coordinator::{GroupRefusal, GroupReply};
    use tidemill_protocol::{
        LeaderEpoch, Offset, PartitionId, ProducerEpoch, ProducerId, Sequence, Timestamp, TopicId,
        TopicPartition,
    };
    use uuid::Uuid;

    use super::*;
    use crate::batch::BatchFault;
    use crate::result::{ProgressRefusal, UnitError};

    fn topic() -> impl Strategy<Value = TopicId> {
        any::<u128>().prop_map(|id| TopicId::new(Uuid::from_u128(id)))
    }

    fn partition() -> impl Strategy<Value = TopicPartition> {
        (topic(), any::<u32>())
            .prop_map(|(topic, number)| TopicPartition::new(topic, PartitionId::new(number)))
    }

    fn offset() -> impl Strategy<Value = Offset> {
        any::<i64>().prop_map(Offset::new)
    }

    fn fault() -> impl Strategy<Value = BatchFault> {
        prop_oneof![
            any::<usize>().prop_map(BatchFault::Length),
            any::<u8>().prop_map(BatchFault::Magic),
            Just(BatchFault::Offsets),
            Just(BatchFault::Producer),
            Just(BatchFault::Transactional),
            (any::<usize>(), any::<u32>()).prop_map(|(bytes, limit)| BatchFault::TooLarge { bytes, limit }),
        ]
    }

    fn refused() -> impl Strategy<Value = UnitError> {
        prop_oneof![
            topic().prop_map(UnitError::NotAdopted),
            topic().prop_map(UnitError::TopicDeleted),
            partition().prop_map(UnitError::UnknownPartition),
            (any::<i32>(), any::<i32>()).prop_map(|(named, current)| UnitError::WrongLeaderEpoch {
                named: LeaderEpoch::new(named),
                current: LeaderEpoch::new(current),
            }),
            (any::<i32>(), any::<i32>()).prop_map(|(expected, got)| UnitError::OutOfOrderSequence {
                expected: Sequence::new(expected),
                got: Sequence::new(got),
            }),
            (any::<u64>(), any::<u64>())
                .prop_map(|(expected, got)| UnitError::OutOfOrderTopicSequence { expected, got }),
            any::<i64>().prop_map(|id| UnitError::UnknownProducer(ProducerId::new(id))),
            (".{0,20}", any::<usize>())
                .prop_map(|(place, bytes)| UnitError::TooManyProducers { place, bytes }),
            (any::<i64>(), any::<i16>()).prop_map(|(id, epoch)| UnitError::ProducerFenced {
                producer: ProducerId::new(id),
                current: ProducerEpoch::new(epoch),
            }),
            fault().prop_map(UnitError::InvalidBatch),
            (offset(), offset(), offset()).prop_map(|(wanted, log_start, high_watermark)| {
                UnitError::OffsetOutOfRange { wanted, log_start, high_watermark }
            }),
            Just(UnitError::NotController),
            any::<u32>().prop_map(|current| UnitError::WrongDeploymentEpoch { current }),
            ".{0,40}".prop_map(UnitError::Invalid),
            Just(UnitError::OtherFilterPass),
        ]
    }

    fn progress() -> impl Strategy<Value = ProgressRefusal> {
        prop_oneof![
            Just(ProgressRefusal::UnknownTask),
            (partition(), offset()).prop_map(|(source_partition, expected)| ProgressRefusal::WrongPosition {
                source_partition,
                expected
            }),
            vec(any::<u8>(), 0..30).prop_map(|key| ProgressRefusal::WrongTimer { key: key.into() }),
            partition().prop_map(|target| ProgressRefusal::OutboxFull { target }),
            (any::<u64>(), any::<u64>())
                .prop_map(|(bytes, limit)| ProgressRefusal::StateFull { bytes, limit }),
        ]
    }

    fn results() -> impl Strategy<Value = UnitResult> {
        let kind =
            prop_oneof![Just("topics"), Just("partitions"), Just("plugin versions"), Just("deployments")];
        let control = prop_oneof![
            Just(Ok(ControllerReply::Done)),
            (any::<i64>(), any::<u32>()).prop_map(|(first, count)| {
                Ok(ControllerReply::ProducerIds(ProducerIdBlock { first: ProducerId::new(first), count }))
            }),
            ".{0,20}".prop_map(|name| Err(ControllerError::UnknownTopic(name))),
            (kind, any::<usize>()).prop_map(|(what, limit)| Err(ControllerError::TooMany { what, limit })),
        ];
        let group = prop_oneof![
            Just(GroupReply::Done),
            ".{0,20}".prop_map(|name| GroupReply::Refused(GroupRefusal::UnknownGroup(name))),
        ];
        prop_oneof![
            (offset(), proptest::option::of(any::<i64>()), offset(), any::<bool>()).prop_map(
                |(base_offset, time, log_start, duplicate)| UnitResult::Appended {
                    base_offset,
                    log_append_time: time.map(Timestamp::new),
                    log_start,
                    duplicate,
                }
            ),
            any::<bool>().prop_map(|duplicate| UnitResult::BatchRefused { duplicate }),
            (vec((any::<u32>(), offset(), any::<u32>()), 0..5), any::<bool>()).prop_map(
                |(placed, duplicate)| UnitResult::RoutedAppended {
                    placements: placed.into_iter().map(|(p, o, n)| (PartitionId::new(p), o, n)).collect(),
                    duplicate,
                }
            ),
            group.prop_map(UnitResult::Group),
            control.prop_map(UnitResult::Control),
            Just(UnitResult::Adopted),
            any::<u64>().prop_map(|version| UnitResult::Stale { version }),
            Just(UnitResult::Progressed),
            progress().prop_map(UnitResult::ProgressRefused),
            any::<u64>().prop_map(|last| UnitResult::Delivered { last }),
            any::<u64>().prop_map(|last| UnitResult::OutOfOrder { last }),
            offset().prop_map(|offset| UnitResult::LogStart { offset }),
            Just(UnitResult::Done),
            refused().prop_map(UnitResult::Refused),
        ]
    }

    proptest! {
        #[test]
        fn results_round_trip_and_are_exact(result in results()) {
            let bytes = result.encode();
            prop_assert_eq!(UnitResult::decode(&bytes), Ok(result));
            let longer = [&bytes[..], &[0]].concat();
            prop_assert_eq!(UnitResult::decode(&longer), Err(ResultError::Long(1)));
            for end in 0..bytes.len() {
                prop_assert!(UnitResult::decode(&bytes[..end]).is_err());
            }
        }

        #[test]
        fn garbage_is_refused_without_a_panic(bytes in vec(any::<u8>(), 0..200)) {
            drop(UnitResult::decode(&bytes));
        }
    }

    #[test]
    fn a_newer_format_says_so() {
        assert_eq!(UnitResult::decode(&[2, 0]), Err(ResultError::Format(2)));
        assert_eq!(UnitResult::decode(&[]), Err(ResultError::Empty));
    }
}
