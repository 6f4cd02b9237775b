//! What sender and receiver of a snapshot say to each other.
//!
//! ```text
//! head      version u8 = 1 | kind u8 | what the kind says                                  body
//!
//! offer     1 | vote 18 | position of the last entry 25 | manifest bytes u32            the manifest's first piece
//! manifest  2 | position u32                                                             its next piece
//! want      3 | count u16 | count * (part | position u64 | bytes u32)
//! part      4 | part | position u64                                                      the bytes there
//! answer    5 | vote 18
//! failed    6 | why, UTF-8, to the end of the head
//! refused   7 | the part that is not what the manifest says, the last of several | why, as above
//!
//! part      0: a chunk of the state, 1: a segment, u8 | its number in the manifest u32
//! ```
//! Vote and position are as the log has them (`codec`). All numbers are big-endian. The sender says offer and manifest, then part, one for
//! each range in the order in which they were asked for; the receiver says want, and answer at the end, or refused; either may say failed.
//! Those are last words. What the stream is for, and for whom, whoever opens it says before the offer.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::PIECE_BYTES_MAX;
use crate::codec::{self, CodecError};
use crate::types::{LogId, Vote};

const VERSION: u8 = 1;
const OFFER: u8 = 1;
const MANIFEST: u8 = 2;
const WANT: u8 = 3;
const PART: u8 = 4;
const ANSWER: u8 = 5;
const FAILED: u8 = 6;
const REFUSED: u8 = 7;
const VOTE_BYTES: usize = 18;
const POSITION_BYTES: usize = 25;
const RANGE_BYTES: usize = 17;
/// The most ranges in one message.
pub(super) const RANGES_MAX: usize = 64;
/// The largest manifest that is taken: about a million segments.
pub(super) const MANIFEST_BYTES_MAX: usize = 64 << 20;
/// The longest reason that is sent.
const REASON_BYTES_MAX: usize = 1024;
const WHAT: &str = "a message about a snapshot";

/// A part of a snapshot, by its number in the manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// Of the state.
    Chunk(u32),
    /// A partition's.
    Segment(u32),
}

/// Bytes of a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) part: Part,
    pub(crate) position: u64,
    /// At most [`PIECE_BYTES_MAX`].
    pub(crate) bytes: u32,
}

/// The head of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Message {
    Offer { vote: Vote, last: LogId, manifest_bytes: u32 },
    Manifest { position: u32 },
    Want(Vec<Range>),
    Part { part: Part, position: u64 },
    Answer(Vote),
    Failed(String),
    Refused { part: Part, reason: String },
}

impl Message {
    pub(crate) fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(64);
        out.put_u8(VERSION);
        match self {
            Self::Offer { vote, last, manifest_bytes } => {
                out.put_u8(OFFER);
                out.put_slice(&codec::encode_vote(vote));
                out.put_slice(&codec::encode_log_id(last));
                out.put_u32(*manifest_bytes);
            }
            Self::Manifest { position } => {
                out.put_u8(MANIFEST);
                out.put_u32(*position);
            }
            Self::Want(ranges) => {
                debug_assert!(ranges.len() <= RANGES_MAX, "more ranges than one message holds");
                out.put_u8(WANT);
                out.put_u16(u16::try_from(ranges.len()).unwrap_or(u16::MAX));
                for range in ranges {
                    put_part(&mut out, range.part);
                    out.put_u64(range.position);
                    out.put_u32(range.bytes);
                }
            }
            Self::Part { part, position } => {
                out.put_u8(PART);
                put_part(&mut out, *part);
                out.put_u64(*position);
            }
            Self::Answer(vote) => {
                out.put_u8(ANSWER);
                out.put_slice(&codec::encode_vote(vote));
            }
            Self::Failed(reason) => {
                out.put_u8(FAILED);
                put_reason(&mut out, reason);
            }
            Self::Refused { part, reason } => {
                out.put_u8(REFUSED);
                put_part(&mut out, *part);
                put_reason(&mut out, reason);
            }
        }
        out.freeze()
    }

    pub(crate) fn decode(head: &[u8]) -> Result<Self, CodecError> {
        let mut input = Input(head);
        match input.u8()? {
            VERSION => {}
            found => return Err(CodecError::UnknownFormat { what: WHAT, found }),
        }
        let message = match input.u8()? {
            OFFER => {
                let vote = codec::decode_vote(input.take(VOTE_BYTES)?)?;
                let last = codec::decode_log_id(input.take(POSITION_BYTES)?)?;
                let manifest_bytes = input.u32()?;
                if manifest_bytes as usize > MANIFEST_BYTES_MAX {
                    return Err(invalid(format!("a manifest of {manifest_bytes} bytes is too large")));
                }
                Self::Offer { vote, last, manifest_bytes }
            }
            MANIFEST => Self::Manifest { position: input.u32()? },
            WANT => Self::Want(input.ranges()?),
            PART => Self::Part { part: input.part()?, position: input.u64()? },
            ANSWER => Self::Answer(codec::decode_vote(input.take(VOTE_BYTES)?)?),
            FAILED => Self::Failed(input.reason()?),
            REFUSED => Self::Refused { part: input.part()?, reason: input.reason()? },
            found => return Err(CodecError::UnknownFormat { what: WHAT, found }),
        };
        match input.0.len() {
            0 => Ok(message),
            extra => Err(CodecError::Trailing { what: WHAT, extra }),
        }
    }
}

fn put_reason(out: &mut BytesMut, reason: &str) {
    out.put_slice(&reason.as_bytes()[..reason.floor_char_boundary(REASON_BYTES_MAX)]);
}

fn put_part(out: &mut BytesMut, part: Part) {
    let (kind, number) = match part {
        Part::Chunk(number) => (0, number),
        Part::Segment(number) => (1, number),
    };
    out.put_u8(kind);
    out.put_u32(number);
}

fn invalid(reason: String) -> CodecError {
    CodecError::Invalid { what: WHAT, reason }
}

struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], CodecError> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(CodecError::Truncated { what: WHAT })?;
        self.0 = rest;
        Ok(taken)
    }

    fn u8(&mut self) -> Result<u8, CodecError> {
        self.take(1).map(|mut bytes| bytes.get_u8())
    }

    fn u32(&mut self) -> Result<u32, CodecError> {
        self.take(4).map(|mut bytes| bytes.get_u32())
    }

    fn u64(&mut self) -> Result<u64, CodecError> {
        self.take(8).map(|mut bytes| bytes.get_u64())
    }

    fn reason(&mut self) -> Result<String, CodecError> {
        let reason = self.take(self.0.len().min(REASON_BYTES_MAX))?;
        Ok(String::from_utf8_lossy(reason).into_owned())
    }

    fn part(&mut self) -> Result<Part, CodecError> {
        match self.u8()? {
            0 => Ok(Part::Chunk(self.u32()?)),
            1 => Ok(Part::Segment(self.u32()?)),
            other => Err(invalid(format!("{other} is no kind of part"))),
        }
    }

    fn ranges(&mut self) -> Result<Vec<Range>, CodecError> {
        let count = usize::from(self.take(2)?.get_u16());
        if count > RANGES_MAX {
            return Err(invalid(format!("{count} ranges are too many")));
        }
        if self.0.len() < count * RANGE_BYTES {
            return Err(CodecError::Truncated { what: WHAT });
        }
        let ranges = (0..count).map(|_| {
            let range = Range { part: self.part()?, position: self.u64()?, bytes: self.u32()? };
            let fits = range.bytes as usize <= PIECE_BYTES_MAX;
            if fits { Ok(range) } else { Err(invalid(format!("{} bytes at once are too many", range.bytes))) }
        });
        ranges.collect()
    }
}

#[cfg(test)]
mod tests {
    use openraft::vote::RaftVote;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use tidemill_protocol::NodeId;

    use super::*;
    use crate::types::LeaderId;

    fn leaders() -> impl Strategy<Value = LeaderId> {
        (any::<u64>(), any::<u64>())
            .prop_map(|(term, node)| LeaderId { term, node_id: NodeId::from_raw(node) })
    }

    fn votes() -> impl Strategy<Value = Vote> {
        (leaders(), any::<bool>()).prop_map(|(leader, committed)| Vote::from_leader_id(leader, committed))
    }

    fn parts() -> impl Strategy<Value = Part> {
        (any::<bool>(), any::<u32>())
            .prop_map(|(chunk, number)| if chunk { Part::Chunk(number) } else { Part::Segment(number) })
    }

    fn messages() -> impl Strategy<Value = Message> {
        let range = (parts(), any::<u64>(), 0..=PIECE_BYTES_MAX as u32)
            .prop_map(|(part, position, bytes)| Range { part, position, bytes });
        prop_oneof![
            (votes(), leaders(), any::<u64>(), 0..=MANIFEST_BYTES_MAX as u32).prop_map(
                |(vote, leader, index, manifest_bytes)| Message::Offer {
                    vote,
                    last: LogId::new(leader, index),
                    manifest_bytes
                }
            ),
            any::<u32>().prop_map(|position| Message::Manifest { position }),
            vec(range, 0..=RANGES_MAX).prop_map(Message::Want),
            (parts(), any::<u64>()).prop_map(|(part, position)| Message::Part { part, position }),
            votes().prop_map(Message::Answer),
            "[a-zä ]{0,300}".prop_map(Message::Failed),
            (parts(), "[a-zä ]{0,300}").prop_map(|(part, reason)| Message::Refused { part, reason }),
        ]
    }

    proptest! {
        #[test]
        fn messages_round_trip(message in messages()) {
            let head = message.encode();
            prop_assert_eq!(Message::decode(&head), Ok(message.clone()));
            if !matches!(message, Message::Failed(_) | Message::Refused { .. }) {
                for end in 0..head.len() {
                    prop_assert!(Message::decode(&head[..end]).is_err());
                }
                prop_assert!(Message::decode(&[&head[..], &[0]].concat()).is_err());
            }
            let mut newer = head.to_vec();
            newer[0] = 2;
            let refused = matches!(Message::decode(&newer), Err(CodecError::UnknownFormat { found: 2, .. }));
            prop_assert!(refused);
        }

        #[test]
        fn garbage_is_refused_without_a_panic(kind in 0_u8..8, bytes in vec(any::<u8>(), 0..200)) {
            drop(Message::decode(&bytes));
            drop(Message::decode(&[&[VERSION, kind], &bytes[..]].concat()));
        }
    }

    #[test]
    fn what_is_too_much_is_refused() {
        let many = [&[VERSION, WANT], &65_u16.to_be_bytes()[..], &[0; 65 * RANGE_BYTES]].concat();
        assert!(matches!(Message::decode(&many), Err(CodecError::Invalid { .. })));
        let large = Range { part: Part::Chunk(0), position: 0, bytes: PIECE_BYTES_MAX as u32 + 1 };
        let large = Message::Want(vec![large]).encode();
        assert!(matches!(Message::decode(&large), Err(CodecError::Invalid { .. })));
        let long = Message::Failed("ä".repeat(2000)).encode();
        assert!(long.len() <= REASON_BYTES_MAX + 3 && Message::decode(&long).is_ok());
    }
}
