//! Stored form of a partition's objects.
//!
//! ```text
//! header:    format u8 (1) | postcard of PartitionHeader
//! producer:  format u8 (1) | postcard of ProducerState
//! ```

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::partition::PartitionHeader;
use crate::producers::{BATCHES_REMEMBERED, ProducerState};

const FORMAT: u8 = 1;

/// Stored state that can't be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// Written by another release.
    #[error("a stored {what} has format {format}; this release reads format 1")]
    Format {
        /// What was read.
        what: &'static str,
        /// Its first byte.
        format: u8,
    },
    /// Cut short or damaged.
    #[error("a stored {what} is damaged: {reason}")]
    Damaged {
        /// What was read.
        what: &'static str,
        /// What did not decode.
        reason: String,
    },
}

impl PartitionHeader {
    /// The stored form.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        encode(self)
    }

    /// Reads the stored form.
    ///
    /// # Errors
    /// [`CodecError`] where it is of another format, damaged, or contradicts itself.
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        const WHAT: &str = "partition";
        let header: Self = decode(WHAT, bytes)?;
        let ordered = header.log_start.get() >= 0
            && header.log_start <= header.log_end
            && header.segments.windows(2).all(|pair| pair[0].base < pair[1].base)
            && header.segments.last().is_none_or(|last| last.base < header.log_end)
            && header.epochs.windows(2).all(|pair| pair[0].start <= pair[1].start);
        if ordered { Ok(header) } else { Err(damaged(WHAT, "its offsets are out of order")) }
    }
}

impl ProducerState {
    /// The stored form.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        encode(self)
    }

    /// Reads the stored form.
    ///
    /// # Errors
    /// [`CodecError`] where it is of another format or damaged.
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        const WHAT: &str = "producer";
        let state: Self = decode(WHAT, bytes)?;
        if state.batches.is_empty() || state.batches.len() > BATCHES_REMEMBERED {
            return Err(damaged(WHAT, "it remembers an impossible number of batches"));
        }
        Ok(state)
    }
}

fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    // Writing plain data into a growing vector can't fail; an empty value would be refused when read.
    postcard::to_extend(value, vec![FORMAT]).unwrap_or_default()
}

fn decode<T: DeserializeOwned>(what: &'static str, bytes: &[u8]) -> Result<T, CodecError> {
    match bytes.split_first() {
        Some((&FORMAT, rest)) => match postcard::take_from_bytes(rest) {
            Ok((value, [])) => Ok(value),
            Ok((_, rest)) => Err(damaged(what, &format!("{} bytes are left over", rest.len()))),
            Err(error) => Err(damaged(what, &error.to_string())),
        },
        Some((&format, _)) => Err(CodecError::Format { what, format }),
        None => Err(damaged(what, "it is empty")),
    }
}

fn damaged(what: &'static str, reason: &str) -> CodecError {
    CodecError::Damaged { what, reason: reason.to_owned() }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;
    use tidemill_protocol::{LeaderEpoch, Offset, ProducerEpoch, Sequence, Timestamp};

    use super::*;
    use crate::epochs::EpochStart;
    use crate::producers::RememberedBatch;
    use crate::segments::SegmentSummary;

    fn headers() -> impl Strategy<Value = PartitionHeader> {
        let steps = vec((1_i64..1000, any::<u32>(), any::<i64>(), any::<i32>()), 0..20);
        (0_i64..1000, steps).prop_map(|(log_start, steps)| {
            let mut header =
                PartitionHeader { log_start: Offset::new(log_start), ..PartitionHeader::default() };
            let mut end = log_start;
            for (count, bytes, time, epoch) in steps {
                let base = Offset::new(end);
                let time = Timestamp::new(time);
                header.segments.push(SegmentSummary {
                    base,
                    bytes: u64::from(bytes),
                    first_append: time,
                    last_append: time,
                    max_timestamp: time,
                });
                header.epochs.push(EpochStart { epoch: LeaderEpoch::new(epoch), start: base });
                end += count;
            }
            header.log_end = Offset::new(end);
            header
        })
    }

    fn producers() -> impl Strategy<Value = ProducerState> {
        let batch = (any::<i32>(), any::<i32>(), any::<i64>(), any::<i64>()).prop_map(
            |(base, last, offset, time)| RememberedBatch {
                base_sequence: Sequence::new(base),
                last_sequence: Sequence::new(last),
                base_offset: Offset::new(offset),
                answered_at: Timestamp::new(time),
            },
        );
        (any::<i16>(), vec(batch, 1..=BATCHES_REMEMBERED)).prop_map(|(epoch, batches)| ProducerState {
            epoch: ProducerEpoch::new(epoch),
            batches: batches.into(),
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn a_header_reads_back(header in headers()) {
            prop_assert_eq!(PartitionHeader::decode(&header.encode()), Ok(header));
        }

        #[test]
        fn a_producer_reads_back(state in producers()) {
            prop_assert_eq!(ProducerState::decode(&state.encode()), Ok(state));
        }

        #[test]
        fn garbage_never_panics(bytes in vec(any::<u8>(), 0..200)) {
            let _ = PartitionHeader::decode(&bytes);
            let _ = ProducerState::decode(&bytes);
        }

        #[test]
        fn what_is_cut_or_padded_is_refused(state in producers(), cut in any::<prop::sample::Index>()) {
            let mut bytes = state.encode();
            prop_assert!(ProducerState::decode(&bytes[..cut.index(bytes.len())]).is_err());
            bytes.push(0);
            prop_assert!(ProducerState::decode(&bytes).is_err());
        }
    }

    #[test]
    fn another_format_and_contradictions_are_refused() {
        let header = PartitionHeader { log_start: Offset::new(5), ..PartitionHeader::default() };
        assert!(matches!(PartitionHeader::decode(&header.encode()), Err(CodecError::Damaged { .. })));
        let mut bytes = PartitionHeader::default().encode();
        bytes[0] = 9;
        assert_eq!(PartitionHeader::decode(&bytes), Err(CodecError::Format { what: "partition", format: 9 }));
    }
}
