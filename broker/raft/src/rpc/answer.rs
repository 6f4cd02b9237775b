//! What is answered.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use openraft::raft::VoteResponse;
use tidemill_protocol::{BrokerId, LogIndex, NodeId};
use tidemill_shard::UnitResult;

use super::{Outgoing, VERSION, put_position, put_text, put_vote};
use crate::codec::{CodecError, Input, put_log_id};
use crate::error::{ProposeError, ReadError};
use crate::peers::PeerMessage;
use crate::types::{LogId, TypeConfig, Vote};

const APPENDED: u8 = 0x81;
const CONFLICT: u8 = 0x82;
const HIGHER_VOTE: u8 = 0x83;
const VOTED: u8 = 0x84;
const TAKE_THE_LEAD: u8 = 0x85;
const READ_INDEX: u8 = 0x86;
const PROPOSED: u8 = 0x87;
const REFUSED: u8 = 0xff;

/// What a replica answers another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It holds the leader's log up to there.
    Appended(Option<LogId>),
    /// It does not hold this entry.
    Conflict(LogId),
    /// It knows a higher vote.
    HigherVote(Vote),
    /// A vote or pre-vote.
    Voted(VoteResponse<TypeConfig>),
    /// Whether it stands for election.
    TakeTheLead(Result<(), TransferRefused>),
    /// How far a read must see.
    ReadIndex(Result<LogIndex, ReadError>),
    /// A unit's outcome.
    Proposed { tag: u64, outcome: Result<UnitResult, ProposeError> },
    /// The request is not for this replica, or can't be read.
    Refused(String),
}

/// Why it does not take the lead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TransferRefused {
    OtherVote(Vote),
    NotThatFar(Option<LogId>),
}

const DONE: u8 = 0;
const NOT_LEADER: u8 = 1;
const OVERLOADED: u8 = 2;
const TOO_LARGE: u8 = 3;
const OUTCOME_UNKNOWN: u8 = 4;
const STOPPED: u8 = 5;
const NO_QUORUM: u8 = 6;
const DISK_FULL: u8 = 7;

impl Answer {
    pub(crate) fn encode(&self) -> Outgoing {
        let mut out = BytesMut::with_capacity(64);
        out.put_u8(VERSION);
        let mut body = Vec::new();
        match self {
            Self::Appended(position) => {
                out.put_u8(APPENDED);
                put_position(&mut out, position.as_ref());
            }
            Self::Conflict(position) => {
                out.put_u8(CONFLICT);
                put_log_id(&mut out, position);
            }
            Self::HigherVote(vote) => {
                out.put_u8(HIGHER_VOTE);
                put_vote(&mut out, vote);
            }
            Self::Voted(response) => {
                out.put_u8(VOTED);
                put_vote(&mut out, &response.vote);
                out.put_u8(u8::from(response.vote_granted));
                put_position(&mut out, response.last_log_id.as_ref());
            }
            Self::TakeTheLead(done) => {
                out.put_u8(TAKE_THE_LEAD);
                match done {
                    Ok(()) => out.put_u8(0),
                    Err(TransferRefused::OtherVote(vote)) => {
                        out.put_u8(1);
                        put_vote(&mut out, vote);
                    }
                    Err(TransferRefused::NotThatFar(last)) => {
                        out.put_u8(2);
                        put_position(&mut out, last.as_ref());
                    }
                }
            }
            Self::ReadIndex(read) => {
                out.put_u8(READ_INDEX);
                put_read(&mut out, read);
            }
            Self::Proposed { tag, outcome } => {
                out.put_u8(PROPOSED);
                out.put_u64(*tag);
                match outcome {
                    Ok(result) => {
                        out.put_u8(DONE);
                        body.push(result.encode());
                    }
                    Err(error) => put_propose_error(&mut out, error),
                }
            }
            Self::Refused(reason) => {
                out.put_u8(REFUSED);
                put_text(&mut out, reason);
            }
        }
        (out.freeze(), body)
    }

    pub(crate) fn decode(message: &PeerMessage) -> Result<Self, CodecError> {
        let mut input = Input::versioned("an answer", &message.head)?;
        let mut body = Bytes::new();
        let answer = match input.u8()? {
            APPENDED => Self::Appended(input.position()?),
            CONFLICT => Self::Conflict(input.sane_position()?),
            HIGHER_VOTE => Self::HigherVote(input.vote()?),
            VOTED => {
                let (vote, granted) = (input.vote()?, input.flag()?);
                Self::Voted(VoteResponse::new(vote, input.position()?, granted))
            }
            TAKE_THE_LEAD => Self::TakeTheLead(match input.u8()? {
                0 => Ok(()),
                1 => Err(TransferRefused::OtherVote(input.vote()?)),
                2 => Err(TransferRefused::NotThatFar(input.position()?)),
                other => return Err(unknown(other)),
            }),
            READ_INDEX => Self::ReadIndex(read_read(&mut input)?),
            PROPOSED => {
                let tag = input.u64()?;
                let outcome = match input.u8()? {
                    DONE => {
                        body = message.body.clone();
                        let result = UnitResult::decode(&body);
                        Ok(result.map_err(|error| input.invalid(error.to_string()))?)
                    }
                    why => Err(read_propose_error(&mut input, why)?),
                };
                Self::Proposed { tag, outcome }
            }
            REFUSED => Self::Refused(input.text()?),
            found => return Err(CodecError::UnknownFormat { what: "an answer", found }),
        };
        input.end()?;
        match message.body.len() - body.len() {
            0 => Ok(answer),
            extra => Err(CodecError::Trailing { what: "an answer", extra }),
        }
    }
}

fn unknown(found: u8) -> CodecError {
    CodecError::UnknownFormat { what: "an answer's outcome", found }
}

fn put_hint(out: &mut BytesMut, leader: Option<NodeId>) {
    out.put_u8(NOT_LEADER);
    out.put_u8(u8::from(leader.is_some()));
    if let Some(leader) = leader {
        out.put_u64(leader.get());
    }
}

fn read_hint(input: &mut Input<'_>) -> Result<Option<NodeId>, CodecError> {
    if input.flag()? { input.node().map(Some) } else { Ok(None) }
}

fn put_read(out: &mut BytesMut, read: &Result<LogIndex, ReadError>) {
    match read {
        Ok(index) => {
            out.put_u8(DONE);
            out.put_u64(index.get());
        }
        Err(ReadError::NotLeader { leader }) => put_hint(out, *leader),
        Err(ReadError::NoQuorum) => out.put_u8(NO_QUORUM),
        Err(ReadError::Stopped { reason }) => {
            out.put_u8(STOPPED);
            put_text(out, reason);
        }
    }
}

fn read_read(input: &mut Input<'_>) -> Result<Result<LogIndex, ReadError>, CodecError> {
    Ok(match input.u8()? {
        DONE => {
            let index = input.u64()?;
            input.sane(index)?;
            Ok(LogIndex::new(index))
        }
        NOT_LEADER => Err(ReadError::NotLeader { leader: read_hint(input)? }),
        NO_QUORUM => Err(ReadError::NoQuorum),
        STOPPED => Err(ReadError::Stopped { reason: Arc::from(input.text()?) }),
        other => return Err(unknown(other)),
    })
}

fn put_propose_error(out: &mut BytesMut, error: &ProposeError) {
    match error {
        ProposeError::NotLeader { leader } => put_hint(out, *leader),
        ProposeError::NoQuorum => out.put_u8(NO_QUORUM),
        ProposeError::Overloaded => out.put_u8(OVERLOADED),
        ProposeError::DiskFull { broker } => {
            out.put_u8(DISK_FULL);
            out.put_u32(broker.get());
        }
        ProposeError::TooLarge { bytes, bytes_max } => {
            out.put_u8(TOO_LARGE);
            out.put_u64(*bytes as u64);
            out.put_u64(*bytes_max as u64);
        }
        ProposeError::OutcomeUnknown => out.put_u8(OUTCOME_UNKNOWN),
        ProposeError::Stopped { reason, others_vote } => {
            out.put_u8(STOPPED);
            put_text(out, reason);
            out.put_u8(u8::from(*others_vote));
        }
    }
}

fn read_propose_error(input: &mut Input<'_>, why: u8) -> Result<ProposeError, CodecError> {
    let length = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
    Ok(match why {
        NOT_LEADER => ProposeError::NotLeader { leader: read_hint(input)? },
        NO_QUORUM => ProposeError::NoQuorum,
        OVERLOADED => ProposeError::Overloaded,
        DISK_FULL => ProposeError::DiskFull { broker: BrokerId::new(input.u32()?) },
        TOO_LARGE => ProposeError::TooLarge { bytes: length(input.u64()?), bytes_max: length(input.u64()?) },
        OUTCOME_UNKNOWN => ProposeError::OutcomeUnknown,
        STOPPED => ProposeError::Stopped { reason: Arc::from(input.text()?), others_vote: input.flag()? },
        other => return Err(unknown(other)),
    })
}
