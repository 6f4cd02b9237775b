//! What replicas say to each other, as bytes: this room's own encoding of a [`PeerMessage`].
//!
//! ```text
//! head of a request   version u8 = 1 | kind u8 | shard u16 | from u64 | to u64 | what the kind has
//!   0x01 append         vote | previous position? | committed position? | entries u32, each: term u64 | node u64 | bytes u32
//!   0x02 vote           vote | last position? | by transfer u8
//!   0x03 pre-vote       the same
//!   0x04 take the lead  the leader's vote | the next leader u64 | last position?
//!   0x05 read index
//!   0x06 propose        tag u64
//!   0x07 snapshot       what the snapshot's sender has to say
//! head of an answer   version u8 = 1 | kind u8 | what the kind has
//!   0x81 appended       position? up to which the follower holds what the leader does
//!   0x82 conflict       position that the follower does not hold
//!   0x83 higher vote    vote
//!   0x84 voted          vote | granted u8 | last position?
//!   0x85 take the lead  0 done | 1 other vote: vote | 2 not that far: last position?
//!   0x86 read index     0 index u64 | else why not
//!   0x87 proposed       tag u64 | 0 done | else why not
//!   0xff refused        text
//! vote                term u64 | node u64 | granted by a quorum u8
//! position            index u64 | term u64 | node u64
//! x?                  there u8 | x, if there
//! text                bytes u16 | UTF-8
//! why not             1 not the leader: leader there u8, its id u64 if there | 5 stopped: text | 6 no quorum
//!                     of a proposal also 2 overloaded | 3 too large: bytes u64, limit u64 | 4 outcome unknown | 7 disk full: broker u32,
//!                     and behind the text of 5: others vote u8
//! ```
//! All numbers are big-endian. The body of an append is its entries, one behind the other, each as the log has it; entry n has the
//! index after entry n - 1, and the first the one after the previous position. The body of a proposal is an entry of one unit, that
//! of its answer the unit's result. No other message has a body.
//!
//! What is read here was sent by somebody else: every count and length is checked against what is there and what is allowed, and
//! indexes and terms against what no group of ours will ever reach, so that one more of them never overflows.

mod answer;
pub(crate) mod request;
#[cfg(test)]
mod tests;

use bytes::{BufMut, Bytes, BytesMut};
use openraft::vote::RaftVote;
use tidemill_protocol::{NodeId, ShardId};

use crate::codec::{CodecError, Input, put_leader, put_log_id};
use crate::types::{LogId, Vote};

pub(crate) use answer::{Answer, TransferRefused};
pub(crate) use request::{Asked, Request};

/// The version of the encoding.
const VERSION: u8 = 1;
/// The most entries in one append.
pub(crate) const APPEND_ENTRIES_MAX: usize = 4096;
/// The most bytes of entries in one append; an entry that is larger is alone in it.
pub(crate) const APPEND_BYTES_MAX: usize = 1 << 20;
/// The longest text in a message; what is longer is cut.
const TEXT_BYTES_MAX: usize = 1024;
/// No term and no index reaches this.
const NUMBER_MAX: u64 = 1 << 62;

/// A message as it is sent: the head, and the pieces of the body.
pub(crate) type Outgoing = (Bytes, Vec<Bytes>);

/// Who asks whom, on behalf of which shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) shard: ShardId,
    pub(crate) from: NodeId,
    pub(crate) to: NodeId,
}

fn put_vote(out: &mut BytesMut, vote: &Vote) {
    put_leader(out, vote.leader_id());
    out.put_u8(u8::from(vote.is_committed()));
}

fn put_position(out: &mut BytesMut, position: Option<&LogId>) {
    out.put_u8(u8::from(position.is_some()));
    if let Some(position) = position {
        put_log_id(out, position);
    }
}

fn put_text(out: &mut BytesMut, text: &str) {
    let text = &text[..text.floor_char_boundary(TEXT_BYTES_MAX)];
    out.put_u16(u16::try_from(text.len()).unwrap_or(u16::MAX));
    out.put_slice(text.as_bytes());
}

impl Input<'_> {
    fn vote(&mut self) -> Result<Vote, CodecError> {
        let leader = self.leader()?;
        self.sane(leader.term)?;
        Ok(Vote::from_leader_id(leader, self.flag()?))
    }

    fn sane_position(&mut self) -> Result<LogId, CodecError> {
        let position = self.log_id()?;
        self.sane(position.index)?;
        self.sane(position.leader_id.term)?;
        Ok(position)
    }

    fn position(&mut self) -> Result<Option<LogId>, CodecError> {
        if self.flag()? { self.sane_position().map(Some) } else { Ok(None) }
    }

    fn node(&mut self) -> Result<NodeId, CodecError> {
        self.u64().map(NodeId::from_raw)
    }

    fn text(&mut self) -> Result<String, CodecError> {
        let length = usize::from(self.u16()?);
        if length > TEXT_BYTES_MAX {
            return Err(self.invalid(format!("a text of {length} bytes is longer than {TEXT_BYTES_MAX}")));
        }
        let (text, rest) =
            self.rest.split_at_checked(length).ok_or(CodecError::Truncated { what: self.what })?;
        self.rest = rest;
        Ok(String::from_utf8_lossy(text).into_owned())
    }

    fn sane(&self, number: u64) -> Result<(), CodecError> {
        if number < NUMBER_MAX { Ok(()) } else { Err(self.invalid(format!("{number} is beyond every log"))) }
    }
}
