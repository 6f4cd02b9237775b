//! Messages there and back.

use std::sync::Arc;

use bytes::Bytes;
use openraft::raft::{AppendEntriesRequest, TransferLeaderRequest, VoteRequest, VoteResponse};
use openraft::vote::RaftVote;
use proptest::collection::vec;
use proptest::prelude::*;
use tidemill_protocol::{BrokerId, LogIndex, PartitionId, Timestamp, TopicId, TopicPartition};
use tidemill_shard::{Entry, Unit, UnitResult};

use super::*;
use crate::error::{ProposeError, ReadError};
use crate::peers::PeerMessage;
use crate::types::{Command, LeaderId, Membership, Payload, RaftLogEntry, TypeConfig};

fn message((head, body): Outgoing) -> PeerMessage {
    PeerMessage { head, body: body.concat().into() }
}

fn leaders() -> impl Strategy<Value = LeaderId> {
    (0..NUMBER_MAX, any::<u64>()).prop_map(|(term, node)| LeaderId { term, node_id: NodeId::from_raw(node) })
}

fn votes() -> impl Strategy<Value = Vote> {
    (leaders(), any::<bool>()).prop_map(|(leader, committed)| Vote::from_leader_id(leader, committed))
}

fn positions() -> impl Strategy<Value = LogId> {
    (leaders(), 0..NUMBER_MAX).prop_map(|(leader, index)| LogId::new(leader, index))
}

fn addresses() -> impl Strategy<Value = Address> {
    (any::<u16>(), any::<u64>(), any::<u64>()).prop_map(|(shard, from, to)| Address {
        shard: ShardId::new(shard),
        from: NodeId::from_raw(from),
        to: NodeId::from_raw(to),
    })
}

fn unit(bytes: Vec<u8>) -> Unit {
    let topic = TopicId::from_slice(&[3; 16]).unwrap();
    let partition = TopicPartition::new(topic, PartitionId::new(5));
    Unit::Append { partition, batch: bytes.into(), leader_epoch: None }
}

fn payloads() -> impl Strategy<Value = Payload> {
    let entry = vec(vec(any::<u8>(), 0..60), 0..4).prop_map(|batches| Entry {
        time: Timestamp::new(7),
        units: batches.into_iter().map(unit).collect(),
    });
    prop_oneof![
        Just(Payload::Blank),
        entry.prop_map(|entry| Payload::Normal(Command::new(entry))),
        Just(Payload::Membership(Membership::new_with_defaults(
            vec![[NodeId::from_raw(4)].into()],
            [NodeId::from_raw(9)]
        ))),
    ]
}

/// An append as a leader sends it: its entries follow each other, and their terms rise up to its own.
fn appends() -> impl Strategy<Value = AppendEntriesRequest<TypeConfig>> {
    let previous = proptest::option::of((0..1000u64, 0..9u64));
    let commit = proptest::option::of(positions());
    (previous, vec((payloads(), 0..3u64), 0..6), commit, any::<u64>()).prop_map(
        |(previous, payloads, leader_commit, node)| {
            let leader = |term| LeaderId { term, node_id: NodeId::from_raw(node) };
            let prev_log_id = previous.map(|(index, term)| LogId::new(leader(term), index));
            let (mut term, mut index) = previous.map_or((0, 0), |(index, term)| (term, index + 1));
            let mut entries = Vec::new();
            for (payload, later) in payloads {
                term += later;
                entries.push(RaftLogEntry { log_id: LogId::new(leader(term), index), payload });
                index += 1;
            }
            let vote = Vote::from_leader_id(leader(term), true);
            AppendEntriesRequest { vote, prev_log_id, entries, leader_commit }
        },
    )
}

fn same(a: &AppendEntriesRequest<TypeConfig>, b: &AppendEntriesRequest<TypeConfig>) -> bool {
    let bytes = |entry: &RaftLogEntry| (entry.log_id, crate::codec::encode_payload(&entry.payload).concat());
    (a.vote, a.prev_log_id, a.leader_commit) == (b.vote, b.prev_log_id, b.leader_commit)
        && a.entries.iter().map(bytes).eq(b.entries.iter().map(bytes))
}

/// Every shorter and every longer form is refused, and so is one of another version.
fn is_exact<T: std::fmt::Debug>(
    message: &PeerMessage,
    decode: impl Fn(&PeerMessage) -> Result<T, CodecError>,
) {
    let (head, body) = (&message.head, &message.body);
    for end in 0..head.len() {
        decode(&PeerMessage { head: head.slice(..end), body: body.clone() }).unwrap_err();
    }
    for end in 0..body.len() {
        decode(&PeerMessage { head: head.clone(), body: body.slice(..end) }).unwrap_err();
    }
    let longer = |bytes: &Bytes| Bytes::from([bytes, &[0][..]].concat());
    decode(&PeerMessage { head: longer(head), body: body.clone() }).unwrap_err();
    decode(&PeerMessage { head: head.clone(), body: longer(body) }).unwrap_err();
    let mut newer = head.to_vec();
    newer[0] = VERSION + 1;
    let newer = decode(&PeerMessage { head: newer.into(), body: body.clone() });
    assert!(matches!(newer, Err(CodecError::UnknownFormat { found: 2, .. })), "{newer:?}");
}

fn propose_errors() -> impl Strategy<Value = ProposeError> {
    prop_oneof![
        proptest::option::of(any::<u64>())
            .prop_map(|leader| ProposeError::NotLeader { leader: leader.map(NodeId::from_raw) }),
        Just(ProposeError::NoQuorum),
        Just(ProposeError::Overloaded),
        any::<u32>().prop_map(|broker| ProposeError::DiskFull { broker: BrokerId::new(broker) }),
        any::<(u32, u32)>().prop_map(|(bytes, max)| ProposeError::TooLarge {
            bytes: bytes as usize,
            bytes_max: max as usize
        }),
        Just(ProposeError::OutcomeUnknown),
        (".{0,30}", any::<bool>()).prop_map(|(reason, others_vote)| {
            ProposeError::Stopped { reason: Arc::from(reason), others_vote }
        }),
    ]
}

fn answers() -> impl Strategy<Value = Answer> {
    let transfer = prop_oneof![
        Just(Ok(())),
        votes().prop_map(|vote| Err(TransferRefused::OtherVote(vote))),
        proptest::option::of(positions()).prop_map(|last| Err(TransferRefused::NotThatFar(last))),
    ];
    let read = prop_oneof![
        (0..NUMBER_MAX).prop_map(|index| Ok(LogIndex::new(index))),
        Just(Err(ReadError::NotLeader { leader: Some(NodeId::from_raw(3)) })),
        Just(Err(ReadError::NoQuorum)),
        ".{0,30}".prop_map(|reason| Err(ReadError::Stopped { reason: Arc::from(reason) })),
    ];
    let outcome = prop_oneof![
        Just(Ok(UnitResult::Done)),
        any::<u64>().prop_map(|version| Ok(UnitResult::Stale { version })),
        propose_errors().prop_map(Err),
    ];
    prop_oneof![
        proptest::option::of(positions()).prop_map(Answer::Appended),
        positions().prop_map(Answer::Conflict),
        votes().prop_map(Answer::HigherVote),
        (votes(), proptest::option::of(positions()), any::<bool>())
            .prop_map(|(vote, last, granted)| Answer::Voted(VoteResponse::new(vote, last, granted))),
        transfer.prop_map(Answer::TakeTheLead),
        read.prop_map(Answer::ReadIndex),
        (any::<u64>(), outcome).prop_map(|(tag, outcome)| Answer::Proposed { tag, outcome }),
        ".{0,300}".prop_map(Answer::Refused),
    ]
}

proptest! {
    #[test]
    fn appends_round_trip(address in addresses(), append in appends()) {
        let (outgoing, bytes) = request::append(&address, &append);
        let sent = message(outgoing);
        prop_assert_eq!(bytes, sent.body.len());
        let asked = Asked::decode(&sent).unwrap();
        prop_assert_eq!(asked.address, address);
        match asked.request {
            Request::Append { append: read, bytes: read_bytes } => {
                prop_assert!(same(&read, &append));
                prop_assert_eq!(read_bytes, bytes);
            }
            other => prop_assert!(false, "{other:?}"),
        }
        is_exact(&sent, Asked::decode);
    }

    #[test]
    fn votes_round_trip(address in addresses(), vote in votes(), last in proptest::option::of(positions()), pre: bool, transfer: bool) {
        let mut asks = VoteRequest::new(vote, last);
        asks.leadership_transfer = transfer;
        let sent = message(request::vote(&address, &asks, pre));
        match Asked::decode(&sent).unwrap().request {
            Request::Vote(read) if !pre => prop_assert_eq!(read, asks),
            Request::PreVote(read) if pre => prop_assert_eq!(read, asks),
            other => prop_assert!(false, "{other:?}"),
        }
        is_exact(&sent, Asked::decode);
    }

    #[test]
    fn other_requests_round_trip(address in addresses(), vote in votes(), last in proptest::option::of(positions()), tag: u64, batch in vec(any::<u8>(), 0..90)) {
        let asks = TransferLeaderRequest::new(vote, address.to, last);
        let sent = message(request::take_the_lead(&address, &asks));
        match Asked::decode(&sent).unwrap().request {
            Request::TakeTheLead(read) => prop_assert_eq!(read, asks),
            other => prop_assert!(false, "{other:?}"),
        }
        is_exact(&sent, Asked::decode);

        let sent = message(request::read_index(&address));
        prop_assert!(matches!(Asked::decode(&sent).unwrap().request, Request::ReadIndex));
        is_exact(&sent, Asked::decode);

        let proposed = unit(batch.clone());
        let sent = message(request::propose(&address, tag, proposed.clone()));
        match Asked::decode(&sent).unwrap().request {
            Request::Propose { tag: read, unit } => prop_assert_eq!((read, *unit), (tag, proposed)),
            other => prop_assert!(false, "{other:?}"),
        }
        is_exact(&sent, Asked::decode);

        let sent = message(request::snapshot(&address, &batch));
        match Asked::decode(&sent).unwrap().request {
            Request::Snapshot { rest } => prop_assert_eq!(&rest[..], &batch[..]),
            other => prop_assert!(false, "{other:?}"),
        }
    }

    #[test]
    fn answers_round_trip(answer in answers()) {
        let sent = message(answer.encode());
        prop_assert_eq!(Answer::decode(&sent), Ok(answer));
        is_exact(&sent, Answer::decode);
    }

    #[test]
    fn garbage_is_refused_without_a_panic(head in vec(any::<u8>(), 0..200), body in vec(any::<u8>(), 0..100), kind in 0..9u8, known: bool) {
        let mut head = head;
        if known && head.len() > 1 {
            (head[0], head[1]) = (VERSION, kind);
        }
        let mut answered = head.clone();
        if known && head.len() > 1 {
            answered[1] = 0x80 | kind;
        }
        let body = Bytes::from(body);
        drop(Asked::decode(&PeerMessage { head: head.into(), body: body.clone() }));
        drop(Answer::decode(&PeerMessage { head: answered.into(), body }));
    }
}

#[test]
fn an_append_that_no_leader_sends_is_refused() {
    let leader = |term| LeaderId { term, node_id: NodeId::from_raw(1) };
    let entry =
        |term, index| RaftLogEntry { log_id: LogId::new(leader(term), index), payload: Payload::Blank };
    let address = Address { shard: ShardId::new(1), from: NodeId::from_raw(1), to: NodeId::from_raw(2) };
    let decode = |term: u64, committed: bool, entries: Vec<RaftLogEntry>| {
        let vote = Vote::from_leader_id(leader(term), committed);
        let prev_log_id = Some(LogId::new(leader(3), 7));
        let append = AppendEntriesRequest { vote, prev_log_id, entries, leader_commit: None };
        Asked::decode(&message(request::append(&address, &append).0))
    };
    assert!(decode(5, true, vec![entry(3, 8), entry(5, 9)]).is_ok());
    assert!(decode(5, false, vec![]).is_err(), "by a candidate");
    assert!(decode(5, true, vec![entry(2, 8)]).is_err(), "of a leader before the last");
    assert!(decode(5, true, vec![entry(6, 8)]).is_err(), "of a leader after itself");
    assert!(decode(NUMBER_MAX, true, vec![]).is_err(), "of a term that leaves none above");
}

#[test]
fn entries_are_slices_of_the_body() {
    let entry = Entry { time: Timestamp::new(1), units: vec![unit(vec![9; 5000])] };
    let log_id = LogId::new(LeaderId { term: 1, node_id: NodeId::from_raw(1) }, 0);
    let entries = vec![RaftLogEntry { log_id, payload: Payload::Normal(Command::new(entry)) }];
    let vote = Vote::from_leader_id(log_id.leader_id, true);
    let append = AppendEntriesRequest { vote, prev_log_id: None, entries, leader_commit: None };
    let address = Address { shard: ShardId::new(1), from: NodeId::from_raw(1), to: NodeId::from_raw(2) };
    let sent = message(request::append(&address, &append).0);
    let Request::Append { append, .. } = Asked::decode(&sent).unwrap().request else { panic!() };
    let Payload::Normal(command) = &append.entries[0].payload else { panic!() };
    let Unit::Append { batch, .. } = &command.entry().units[0] else { panic!() };
    assert!(sent.body.as_ptr_range().contains(&batch.as_ptr()), "not copied");
}

#[test]
fn long_texts_are_cut_where_a_letter_ends() {
    let answer = Answer::Refused("ä".repeat(TEXT_BYTES_MAX));
    let Ok(Answer::Refused(reason)) = Answer::decode(&message(answer.encode())) else { panic!() };
    assert_eq!(reason, "ä".repeat(TEXT_BYTES_MAX / 2));
}
