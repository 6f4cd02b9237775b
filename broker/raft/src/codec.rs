//! What Raft itself keeps in the log: votes, positions, memberships, and the kind of each entry.
//!
//! ```text
//! vote                version u8 = 1 | term u64 | node u64 | granted by a quorum u8
//! position            version u8 = 1 | index u64 | term u64 | node u64
//! entry               kind u8: 0x10 blank | 0x11 units, then the shard's encoding | 0x12 members, then membership
//! membership          configurations u16, each: voters u16, each u64 | members u16, each u64
//! stored membership   version u8 = 1 | known u8 | (index u64 | term u64 | node u64, if known) | membership
//! ```
//!
//! All numbers are big-endian. The upper half of an entry's kind is the version of its format.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use openraft::EmptyNode;
use openraft::vote::RaftVote;
use tidemill_protocol::NodeId;
use tidemill_shard::Entry;

use crate::types::{Command, LeaderId, LogId, Membership, Payload, StoredMembership, Vote};

const VERSION: u8 = 1;
const KIND_BLANK: u8 = 0x10;
const KIND_UNITS: u8 = 0x11;
const KIND_MEMBERSHIP: u8 = 0x12;

/// Bytes in the log that this release cannot read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CodecError {
    #[error("{what} ends too early")]
    Truncated { what: &'static str },
    #[error("{what} has {extra} bytes too many")]
    Trailing { what: &'static str, extra: usize },
    #[error(
        "{what} has format {found:#04x}, which this release does not know; was it written by a newer one?"
    )]
    UnknownFormat { what: &'static str, found: u8 },
    #[error("{what} is not consistent: {reason}")]
    Invalid { what: &'static str, reason: String },
}

pub(crate) fn encode_vote(vote: &Vote) -> Bytes {
    let mut out = BytesMut::with_capacity(18);
    out.put_u8(VERSION);
    put_leader(&mut out, vote.leader_id());
    out.put_u8(u8::from(vote.is_committed()));
    out.freeze()
}

pub(crate) fn decode_vote(bytes: &[u8]) -> Result<Vote, CodecError> {
    let mut input = Input::versioned("a vote", bytes)?;
    let leader = input.leader()?;
    let committed = input.flag()?;
    input.end()?;
    Ok(Vote::from_leader_id(leader, committed))
}

pub(crate) fn encode_log_id(id: &LogId) -> Bytes {
    let mut out = BytesMut::with_capacity(25);
    out.put_u8(VERSION);
    put_log_id(&mut out, id);
    out.freeze()
}

pub(crate) fn decode_log_id(bytes: &[u8]) -> Result<LogId, CodecError> {
    let mut input = Input::versioned("a committed position", bytes)?;
    let id = input.log_id()?;
    input.end()?;
    Ok(id)
}

pub(crate) fn encode_stored_membership(stored: &StoredMembership) -> Bytes {
    let mut out = BytesMut::with_capacity(64);
    out.put_u8(VERSION);
    out.put_u8(u8::from(stored.log_id().is_some()));
    if let Some(id) = stored.log_id() {
        put_log_id(&mut out, id);
    }
    put_membership(&mut out, stored.membership());
    out.freeze()
}

pub(crate) fn decode_stored_membership(bytes: &[u8]) -> Result<StoredMembership, CodecError> {
    let mut input = Input::versioned("the shard's membership", bytes)?;
    let id = if input.flag()? { Some(input.log_id()?) } else { None };
    let membership = input.membership()?;
    input.end()?;
    Ok(StoredMembership::new(id, membership))
}

/// Puts the kind before what [`Entry::encode`] gave.
pub(crate) fn normal_parts(entry: Vec<Bytes>) -> Vec<Bytes> {
    let mut parts = Vec::with_capacity(entry.len() + 1);
    parts.push(Bytes::from_static(&[KIND_UNITS]));
    parts.extend(entry);
    parts
}

/// The parts of an entry as the log writes them.
pub(crate) fn encode_payload(payload: &Payload) -> Vec<Bytes> {
    match payload {
        Payload::Blank => vec![Bytes::from_static(&[KIND_BLANK])],
        Payload::Normal(command) => command.encoded().to_vec(),
        Payload::Membership(membership) => {
            let mut out = BytesMut::with_capacity(64);
            out.put_u8(KIND_MEMBERSHIP);
            put_membership(&mut out, membership);
            vec![out.freeze()]
        }
    }
}

/// Reads an entry from the parts it was written as, or from one joined piece.
pub(crate) fn decode_payload(parts: &[Bytes]) -> Result<Payload, CodecError> {
    let what = "an entry";
    let (first, rest) = parts.split_first().ok_or(CodecError::Truncated { what })?;
    let kind = *first.first().ok_or(CodecError::Truncated { what })?;
    match kind {
        KIND_BLANK => {
            let extra = parts.iter().map(Bytes::len).sum::<usize>() - 1;
            if extra > 0 {
                return Err(CodecError::Trailing { what: "a blank entry", extra });
            }
            Ok(Payload::Blank)
        }
        KIND_UNITS => {
            let joined;
            let body = if first.len() == 1 {
                rest
            } else {
                joined = std::iter::once(first.slice(1..)).chain(rest.iter().cloned()).collect::<Vec<_>>();
                &joined
            };
            let entry = Entry::decode(body).map_err(|error| CodecError::Invalid {
                what: "an entry of units",
                reason: error.to_string(),
            })?;
            Ok(Payload::Normal(Command::with_encoded(entry, parts.to_vec())))
        }
        KIND_MEMBERSHIP => {
            let mut input = Input { what: "a membership entry", rest: first };
            input.rest.advance(1);
            let membership = input.membership()?;
            input.end()?;
            Ok(Payload::Membership(membership))
        }
        found => Err(CodecError::UnknownFormat { what, found }),
    }
}

pub(crate) fn put_leader(out: &mut BytesMut, leader: &LeaderId) {
    out.put_u64(leader.term);
    out.put_u64(leader.node_id.get());
}

pub(crate) fn put_log_id(out: &mut BytesMut, id: &LogId) {
    out.put_u64(id.index);
    put_leader(out, &id.leader_id);
}

fn put_membership(out: &mut BytesMut, membership: &Membership) {
    let count = |length: usize| u16::try_from(length).unwrap_or(u16::MAX);
    out.put_u16(count(membership.get_joint_config().len()));
    for voters in membership.get_joint_config() {
        out.put_u16(count(voters.len()));
        voters.iter().for_each(|node| out.put_u64(node.get()));
    }
    out.put_u16(count(membership.nodes().count()));
    membership.nodes().for_each(|(node, _)| out.put_u64(node.get()));
}

/// Reads fields one after the other.
pub(crate) struct Input<'a> {
    pub(crate) what: &'static str,
    pub(crate) rest: &'a [u8],
}

impl<'a> Input<'a> {
    pub(crate) fn versioned(what: &'static str, bytes: &'a [u8]) -> Result<Self, CodecError> {
        let mut input = Self { what, rest: bytes };
        match input.u8()? {
            VERSION => Ok(input),
            found => Err(CodecError::UnknownFormat { what, found }),
        }
    }

    fn need(&self, count: usize) -> Result<(), CodecError> {
        if self.rest.len() < count { Err(CodecError::Truncated { what: self.what }) } else { Ok(()) }
    }

    pub(crate) fn u8(&mut self) -> Result<u8, CodecError> {
        self.need(1)?;
        Ok(self.rest.get_u8())
    }

    pub(crate) fn u16(&mut self) -> Result<u16, CodecError> {
        self.need(2)?;
        Ok(self.rest.get_u16())
    }

    pub(crate) fn u32(&mut self) -> Result<u32, CodecError> {
        self.need(4)?;
        Ok(self.rest.get_u32())
    }

    pub(crate) fn u64(&mut self) -> Result<u64, CodecError> {
        self.need(8)?;
        Ok(self.rest.get_u64())
    }

    pub(crate) fn flag(&mut self) -> Result<bool, CodecError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(self.invalid(format!("{other} is neither yes nor no"))),
        }
    }

    pub(crate) fn leader(&mut self) -> Result<LeaderId, CodecError> {
        Ok(LeaderId { term: self.u64()?, node_id: NodeId::from_raw(self.u64()?) })
    }

    pub(crate) fn log_id(&mut self) -> Result<LogId, CodecError> {
        let index = self.u64()?;
        Ok(LogId::new(self.leader()?, index))
    }

    fn nodes(&mut self) -> Result<BTreeSet<NodeId>, CodecError> {
        let count = self.u16()?;
        self.need(usize::from(count) * 8)?;
        (0..count).map(|_| self.u64().map(NodeId::from_raw)).collect()
    }

    fn membership(&mut self) -> Result<Membership, CodecError> {
        let configurations = self.u16()?;
        let voters = (0..configurations)
            .map(|_| self.nodes())
            .collect::<Result<Vec<BTreeSet<NodeId>>, CodecError>>()?;
        let members: BTreeMap<NodeId, EmptyNode> =
            self.nodes()?.into_iter().map(|node| (node, EmptyNode::new())).collect();
        if let Some(stranger) = voters.iter().flatten().find(|node| !members.contains_key(*node)) {
            return Err(self.invalid(format!("voter {stranger} is not a member")));
        }
        if voters.is_empty() && members.is_empty() {
            return Ok(Membership::default());
        }
        Membership::new(voters, members).map_err(|error| self.invalid(error.to_string()))
    }

    pub(crate) fn end(&self) -> Result<(), CodecError> {
        match self.rest.len() {
            0 => Ok(()),
            extra => Err(CodecError::Trailing { what: self.what, extra }),
        }
    }

    pub(crate) fn invalid(&self, reason: String) -> CodecError {
        CodecError::Invalid { what: self.what, reason }
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::{btree_set, vec};
    use proptest::prelude::*;
    use tidemill_protocol::Timestamp;
    use tidemill_shard::Unit;

    use super::*;

    fn leaders() -> impl Strategy<Value = LeaderId> {
        (any::<u64>(), any::<u64>())
            .prop_map(|(term, node)| LeaderId { term, node_id: NodeId::from_raw(node) })
    }

    fn log_ids() -> impl Strategy<Value = LogId> {
        (leaders(), any::<u64>()).prop_map(|(leader, index)| LogId::new(leader, index))
    }

    fn memberships() -> impl Strategy<Value = Membership> {
        let voters = vec(btree_set(any::<u64>().prop_map(NodeId::from_raw), 1..5), 1..3);
        (voters, btree_set(any::<u64>().prop_map(NodeId::from_raw), 0..4))
            .prop_map(|(voters, learners)| Membership::new_with_defaults(voters, learners))
    }

    /// Every shorter and every longer form is refused.
    fn is_exact<T: std::fmt::Debug>(bytes: &[u8], decode: impl Fn(&[u8]) -> Result<T, CodecError>) {
        for end in 0..bytes.len() {
            decode(&bytes[..end]).unwrap_err();
        }
        let longer = [bytes, &[0]].concat();
        assert!(matches!(decode(&longer), Err(CodecError::Trailing { extra: 1, .. })));
        let mut newer = bytes.to_vec();
        newer[0] = 0x7f;
        assert!(matches!(decode(&newer), Err(CodecError::UnknownFormat { found: 0x7f, .. })));
    }

    proptest! {
        #[test]
        fn votes_round_trip(leader in leaders(), committed: bool) {
            let vote = Vote::from_leader_id(leader, committed);
            let bytes = encode_vote(&vote);
            prop_assert_eq!(decode_vote(&bytes), Ok(vote));
            is_exact(&bytes, decode_vote);
        }

        #[test]
        fn positions_round_trip(id in log_ids()) {
            let bytes = encode_log_id(&id);
            prop_assert_eq!(decode_log_id(&bytes), Ok(id));
            is_exact(&bytes, decode_log_id);
        }

        #[test]
        fn stored_memberships_round_trip(id in proptest::option::of(log_ids()), membership in memberships()) {
            let stored = StoredMembership::new(id, membership);
            let bytes = encode_stored_membership(&stored);
            prop_assert_eq!(decode_stored_membership(&bytes), Ok(stored));
            is_exact(&bytes, decode_stored_membership);
        }

        #[test]
        fn membership_entries_round_trip(membership in memberships()) {
            let parts = encode_payload(&Payload::Membership(membership.clone()));
            match decode_payload(&parts) {
                Ok(Payload::Membership(decoded)) => prop_assert_eq!(decoded, membership),
                other => prop_assert!(false, "{other:?}"),
            }
        }

        #[test]
        fn garbage_is_refused_without_a_panic(bytes in vec(any::<u8>(), 0..200)) {
            drop(decode_vote(&bytes));
            drop(decode_stored_membership(&bytes));
            drop(decode_payload(&[Bytes::from(bytes)]));
        }
    }

    #[test]
    fn entries_of_units_read_back_from_their_parts_and_from_one_piece() {
        let entry = Entry { time: Timestamp::new(5), units: vec![Unit::Tick, Unit::Tick] };
        let parts = encode_payload(&Payload::Normal(Command::new(entry.clone())));
        let joined = Bytes::from(parts.concat());
        for form in [parts, vec![joined]] {
            match decode_payload(&form) {
                Ok(Payload::Normal(command)) => assert_eq!(*command.entry(), entry),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn blank_entries_are_one_byte() {
        assert!(matches!(decode_payload(&[Bytes::from_static(&[0x10])]), Ok(Payload::Blank)));
        let trailing = decode_payload(&[Bytes::from_static(&[0x10, 0])]);
        assert!(matches!(trailing, Err(CodecError::Trailing { extra: 1, .. })));
        assert!(matches!(decode_payload(&[]), Err(CodecError::Truncated { .. })));
        assert!(matches!(decode_payload(&[Bytes::new()]), Err(CodecError::Truncated { .. })));
    }

    #[test]
    fn a_voter_who_is_no_member_is_refused() {
        let mut out = BytesMut::new();
        out.put_slice(&[VERSION, 0]);
        out.put_u16(1);
        out.put_u16(1);
        out.put_u64(7);
        out.put_u16(0);
        assert!(matches!(decode_stored_membership(&out), Err(CodecError::Invalid { .. })));
    }
}
