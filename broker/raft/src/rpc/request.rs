//! What is asked.

use bytes::{BufMut, Bytes, BytesMut};
use openraft::raft::{AppendEntriesRequest, TransferLeaderRequest, VoteRequest};
use tidemill_protocol::{NodeId, ShardId, Timestamp};
use tidemill_shard::{Entry, Unit};

use super::{APPEND_ENTRIES_MAX, Address, Outgoing, VERSION, put_position, put_vote};
use crate::codec::{self, CodecError, Input};
use crate::peers::PeerMessage;
use crate::types::{LeaderId, LogId, RaftLogEntry, TypeConfig};

const APPEND: u8 = 0x01;
const VOTE: u8 = 0x02;
const PRE_VOTE: u8 = 0x03;
const TAKE_THE_LEAD: u8 = 0x04;
const READ_INDEX: u8 = 0x05;
const PROPOSE: u8 = 0x06;
const SNAPSHOT: u8 = 0x07;

/// What of an entry stands in an append's head.
const ENTRY_HEAD_BYTES: usize = 20;

/// A request with what it is about.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) address: Address,
    pub(crate) request: Request,
}

/// What one replica asks of another.
#[derive(Debug, Clone)]
pub(crate) enum Request {
    /// Entries, or none: a heartbeat. The bytes are those of the entries.
    Append { append: AppendEntriesRequest<TypeConfig>, bytes: usize },
    /// A vote.
    Vote(VoteRequest<TypeConfig>),
    /// Whether a vote would be granted.
    PreVote(VoteRequest<TypeConfig>),
    /// That it stands for election now.
    TakeTheLead(TransferLeaderRequest<TypeConfig>),
    /// Up to where a read must see the log.
    ReadIndex,
    /// A unit; answered by its tag.
    Propose { tag: u64, unit: Box<Unit> },
    /// The begin of a snapshot; the rest of the head is the sender's, from this byte on.
    Snapshot { rest: Bytes },
}

fn begin(address: &Address, kind: u8, more: usize) -> BytesMut {
    let mut out = BytesMut::with_capacity(20 + more);
    out.put_u8(VERSION);
    out.put_u8(kind);
    out.put_u16(address.shard.get());
    out.put_u64(address.from.get());
    out.put_u64(address.to.get());
    out
}

/// An append; the entries' bytes are those of the log. How many there are comes with it.
pub(crate) fn append(address: &Address, append: &AppendEntriesRequest<TypeConfig>) -> (Outgoing, usize) {
    let mut head = begin(address, APPEND, 80 + append.entries.len() * ENTRY_HEAD_BYTES);
    put_vote(&mut head, &append.vote);
    put_position(&mut head, append.prev_log_id.as_ref());
    put_position(&mut head, append.leader_commit.as_ref());
    head.put_u32(u32::try_from(append.entries.len()).unwrap_or(u32::MAX));
    let (mut body, mut total) = (Vec::with_capacity(append.entries.len() * 2), 0);
    for entry in &append.entries {
        let pieces = codec::encode_payload(&entry.payload);
        let bytes: usize = pieces.iter().map(Bytes::len).sum();
        codec::put_leader(&mut head, &entry.log_id.leader_id);
        // The log takes no entry of 4 GiB.
        head.put_u32(u32::try_from(bytes).unwrap_or(u32::MAX));
        total += bytes;
        body.extend(pieces);
    }
    ((head.freeze(), body), total)
}

/// A vote, or a pre-vote.
pub(crate) fn vote(address: &Address, vote: &VoteRequest<TypeConfig>, pre: bool) -> Outgoing {
    let mut head = begin(address, if pre { PRE_VOTE } else { VOTE }, 48);
    put_vote(&mut head, &vote.vote);
    put_position(&mut head, vote.last_log_id.as_ref());
    head.put_u8(u8::from(vote.leadership_transfer));
    (head.freeze(), Vec::new())
}

/// That somebody takes the lead.
pub(crate) fn take_the_lead(address: &Address, request: &TransferLeaderRequest<TypeConfig>) -> Outgoing {
    let mut head = begin(address, TAKE_THE_LEAD, 56);
    put_vote(&mut head, request.from_leader());
    head.put_u64(request.to_node_id().get());
    put_position(&mut head, request.last_log_id());
    (head.freeze(), Vec::new())
}

/// The question how far a read must see.
pub(crate) fn read_index(address: &Address) -> Outgoing {
    (begin(address, READ_INDEX, 0).freeze(), Vec::new())
}

/// A unit for the leader. Its batches are not copied.
pub(crate) fn propose(address: &Address, tag: u64, unit: Unit) -> Outgoing {
    let mut head = begin(address, PROPOSE, 8);
    head.put_u64(tag);
    // The leader stamps its own time.
    let entry = Entry { time: Timestamp::new(0), units: vec![unit] };
    (head.freeze(), entry.encode())
}

/// The begin of a snapshot: `rest` is the sender's, and read back by its receiver.
pub(crate) fn snapshot(address: &Address, rest: &[u8]) -> Outgoing {
    let mut head = begin(address, SNAPSHOT, rest.len());
    head.put_slice(rest);
    (head.freeze(), Vec::new())
}

impl Asked {
    /// Reads a request. Entries and batches are slices of the body.
    pub(crate) fn decode(message: &PeerMessage) -> Result<Self, CodecError> {
        let mut input = Input::versioned("a request", &message.head)?;
        let kind = input.u8()?;
        let shard = ShardId::new(input.u16()?);
        let address = Address { shard, from: input.node()?, to: input.node()? };
        let request = match kind {
            APPEND => read_append(&mut input, &message.body)?,
            VOTE => Request::Vote(read_vote(&mut input)?),
            PRE_VOTE => Request::PreVote(read_vote(&mut input)?),
            TAKE_THE_LEAD => {
                let (vote, to) = (input.vote()?, input.node()?);
                Request::TakeTheLead(TransferLeaderRequest::new(vote, to, input.position()?))
            }
            READ_INDEX => Request::ReadIndex,
            PROPOSE => Request::Propose { tag: input.u64()?, unit: read_unit(&input, &message.body)? },
            SNAPSHOT => {
                let rest = message.head.slice(message.head.len() - input.rest.len()..);
                return Ok(Self { address, request: Request::Snapshot { rest } });
            }
            found => return Err(CodecError::UnknownFormat { what: "a request", found }),
        };
        input.end()?;
        let may_have_body = matches!(request, Request::Append { .. } | Request::Propose { .. });
        if !may_have_body && !message.body.is_empty() {
            return Err(CodecError::Trailing { what: "a request", extra: message.body.len() });
        }
        Ok(Self { address, request })
    }
}

fn read_vote(input: &mut Input<'_>) -> Result<VoteRequest<TypeConfig>, CodecError> {
    let vote = input.vote()?;
    let mut request = VoteRequest::new(vote, input.position()?);
    request.leadership_transfer = input.flag()?;
    Ok(request)
}

fn read_append(input: &mut Input<'_>, body: &Bytes) -> Result<Request, CodecError> {
    let vote = input.vote()?;
    let (prev_log_id, leader_commit) = (input.position()?, input.position()?);
    if !vote.is_committed() {
        return Err(input.invalid("only a leader appends".to_owned()));
    }
    let count = usize::try_from(input.u32()?).unwrap_or(usize::MAX);
    if count > APPEND_ENTRIES_MAX || count.saturating_mul(ENTRY_HEAD_BYTES) > input.rest.len() {
        return Err(input.invalid(format!("{count} entries are more than it has or may have")));
    }
    let mut entries = Vec::with_capacity(count);
    let (mut last, mut position) = (prev_log_id, 0usize);
    for _ in 0..count {
        let leader_id = input.leader()?;
        let bytes = usize::try_from(input.u32()?).unwrap_or(usize::MAX);
        let log_id = next_position(input, last.as_ref(), leader_id, *vote.leader_id())?;
        let end = position.checked_add(bytes).filter(|end| *end <= body.len());
        let end = end.ok_or(CodecError::Truncated { what: "an append's body" })?;
        let payload = codec::decode_payload(&[body.slice(position..end)])?;
        entries.push(RaftLogEntry { log_id, payload });
        (last, position) = (Some(log_id), end);
    }
    if position < body.len() {
        return Err(CodecError::Trailing { what: "an append's body", extra: body.len() - position });
    }
    let append = AppendEntriesRequest { vote, prev_log_id, entries, leader_commit };
    Ok(Request::Append { append, bytes: position })
}

/// Where the entry after `last` stands; a log's leaders follow each other, and none comes after the sender.
fn next_position(
    input: &Input<'_>,
    last: Option<&LogId>,
    leader_id: LeaderId,
    sender: LeaderId,
) -> Result<LogId, CodecError> {
    let index = last.map_or(0, |last| last.index + 1);
    input.sane(index)?;
    if last.is_some_and(|last| leader_id < last.leader_id) || leader_id > sender {
        return Err(input.invalid(format!("entry {index} can't be of leader {leader_id}")));
    }
    Ok(LogId::new(leader_id, index))
}

fn read_unit(input: &Input<'_>, body: &Bytes) -> Result<Box<Unit>, CodecError> {
    let entry =
        Entry::decode(std::slice::from_ref(body)).map_err(|error| input.invalid(error.to_string()))?;
    let [unit] = <[Unit; 1]>::try_from(entry.units)
        .map_err(|units| input.invalid(format!("it has {} units, not one", units.len())))?;
    Ok(Box::new(unit))
}

impl Request {
    /// Who must have sent it, as it says itself: only a candidate asks for votes for itself, only a leader appends.
    pub(crate) fn speaks_for(&self) -> Option<NodeId> {
        match self {
            Self::Append { append, .. } => Some(append.vote.leader_id().node_id),
            Self::Vote(vote) | Self::PreVote(vote) => Some(vote.vote.leader_id().node_id),
            Self::TakeTheLead(request) => Some(request.from_leader().leader_id().node_id),
            Self::ReadIndex | Self::Propose { .. } | Self::Snapshot { .. } => None,
        }
    }
}
