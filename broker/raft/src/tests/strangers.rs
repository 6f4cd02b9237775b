//! What peers send that is wrong, too much, or for somebody else.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use openraft::raft::{AppendEntriesRequest, VoteRequest};
use openraft::vote::RaftVote;
use tidemill_protocol::{NodeId, ShardId, Timestamp};
use tidemill_shard::Entry;

use super::cluster::{Cluster, node, nodes, wait_until};
use super::fixture::{PATIENCE, SHARD, bulk};
use crate::config::{Begin, ReplicaLimits};
use crate::peers::PeerStream;
use crate::rpc::{APPEND_BYTES_MAX, Address, Answer, Outgoing, request};
use crate::types::{Command, LeaderId, LogId, Payload, RaftLogEntry, TypeConfig, Vote};

const IN_FLIGHT_BYTES_MAX: usize = 1 << 20;

async fn send(stream: &mut PeerStream, (head, body): Outgoing) {
    stream.sender.send(head, &body).await.unwrap();
}

async fn answer(stream: &mut PeerStream) -> Answer {
    let message = tokio::time::timeout(PATIENCE, stream.receiver.next()).await.expect("an answer in time");
    Answer::decode(&message.unwrap().expect("an answer")).unwrap()
}

fn led_by(leader: NodeId, term: u64) -> LeaderId {
    LeaderId { term, node_id: leader }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_for_this_replica_is_refused_with_a_reason() {
    let cluster = Cluster::of_three(21).await;
    drop(cluster.leader().await);
    let right = Address { shard: SHARD, from: node(1), to: node(2) };
    let before = NodeId::new(tidemill_protocol::BrokerId::new(2), 0);
    let asks = |leader: NodeId| VoteRequest::new(Vote::from_leader_id(led_by(leader, 50), false), None);
    let vote = |address: Address| request::vote(&address, &asks(address.from), false);
    let cases: [(Outgoing, &str); 7] = [
        (vote(Address { to: before, ..right }), "it is for node 2.0, and this is node 2.1"),
        (vote(Address { shard: ShardId::new(7), ..right }), "it is for shard 7"),
        (
            vote(Address { from: node(3), ..right }),
            "it says that it is from node 3.1, and came from node 1.1",
        ),
        (request::vote(&right, &asks(node(3)), false), "it says that it is from node 3.1"),
        ((Bytes::from_static(b"\x02\x01"), vec![]), "format 0x02"),
        ((Bytes::new(), vec![]), "ends too early"),
        ((Bytes::from(vec![1; 300]), vec![Bytes::from(vec![7; 5000])]), "an"),
    ];
    for (message, reason) in cases {
        let mut stream = cluster.network.open(node(1), node(2)).unwrap();
        send(&mut stream, message).await;
        match answer(&mut stream).await {
            Answer::Refused(said) => assert!(said.contains(reason), "{said}, not {reason}"),
            other => panic!("{other:?}"),
        }
        assert!(stream.receiver.next().await.unwrap().is_none(), "and the stream ends");
    }
    // Nobody was impressed.
    let leader = cluster.commit("group", 0..5).await;
    cluster.agree(&leader).await;
    assert!(leader.status().term.get() < 50);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_for_one_purpose_takes_nothing_else() {
    let cluster = Cluster::of_three(22).await;
    let leader = cluster.leader().await;
    let from = nodes([1, 2, 3]).into_iter().find(|node| *node != leader.node()).unwrap();
    let address = Address { shard: SHARD, from, to: leader.node() };
    let mut stream = cluster.network.open(from, leader.node()).unwrap();
    send(&mut stream, request::propose(&address, 5, bulk(10))).await;
    assert!(matches!(answer(&mut stream).await, Answer::Proposed { tag: 5, outcome: Ok(_) }));
    send(&mut stream, request::read_index(&address)).await;
    assert!(matches!(answer(&mut stream).await, Answer::Refused(_)));

    let mut stream = cluster.network.open(from, leader.node()).unwrap();
    send(&mut stream, request::snapshot(&address, b"?")).await;
    let said = tokio::time::timeout(PATIENCE, stream.receiver.next()).await.expect("an answer in time");
    let said = said.unwrap().expect("an answer").head;
    let words = String::from_utf8_lossy(&said);
    assert!(words.contains("a message about a snapshot"), "{words:?}");
    cluster.commit("group", 0..5).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_does_not_answer_gets_only_so_much_ahead() {
    let mut cluster = Cluster::new(23);
    cluster.limits = |limits| ReplicaLimits { append_in_flight_bytes_max: IN_FLIGHT_BYTES_MAX, ..limits };
    let taken = cluster.network.swallow(node(3));
    for broker in 1..=2 {
        cluster.start(node(broker), Begin::Form(nodes([1, 2, 3]))).await;
    }
    for _ in 0..60 {
        cluster.propose(bulk(100 << 10)).await;
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    let taken = usize::try_from(taken.load(Ordering::Relaxed)).unwrap();
    assert!(taken <= IN_FLIGHT_BYTES_MAX + APPEND_BYTES_MAX, "{taken} bytes were sent ahead");
    assert_eq!(cluster.leader().await.followers()[&node(3)].matched, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_follower_takes_only_so_much_ahead_whatever_its_leader_sends() {
    const BODY_BYTES: usize = 100 << 10;
    let mut cluster = Cluster::new(24);
    cluster.limits = |limits| ReplicaLimits { append_in_flight_bytes_max: IN_FLIGHT_BYTES_MAX, ..limits };
    let follower = cluster.start(node(2), Begin::Join).await;
    let address = Address { shard: SHARD, from: node(1), to: node(2) };
    let leader = led_by(node(1), 1);
    let append = |index: u64| {
        let entry = Entry { time: Timestamp::new(1), units: vec![bulk(BODY_BYTES)] };
        let payload = Payload::Normal(Command::new(entry));
        let entries = vec![RaftLogEntry { log_id: LogId::new(leader, index), payload }];
        let prev_log_id = index.checked_sub(1).map(|index| LogId::new(leader, index));
        let vote = Vote::from_leader_id(leader, true);
        let append = AppendEntriesRequest::<TypeConfig> { vote, prev_log_id, entries, leader_commit: None };
        request::append(&address, &append).0
    };
    let mut stream = cluster.network.open(node(1), node(2)).unwrap();
    send(&mut stream, append(0)).await;
    assert!(matches!(answer(&mut stream).await, Answer::Appended(Some(_))));

    // Its log's writer is held up, as if the disk took its time.
    let (release, held) = std::sync::mpsc::channel::<()>();
    cluster.wal(node(2)).flush(Box::new(move |_| {
        let _released = held.recv();
    }));
    let mut sent = 1;
    while sent < 200 {
        let (head, body) = append(sent);
        let sending = stream.sender.send(head, &body);
        if tokio::time::timeout(Duration::from_millis(500), sending).await.is_err() {
            break;
        }
        sent += 1;
    }
    // What its network holds, and one message in hand, come on top.
    let most = u64::try_from(IN_FLIGHT_BYTES_MAX / BODY_BYTES + super::network::WINDOW_MESSAGES + 3).unwrap();
    assert!(sent <= most, "{sent} appends were taken");
    drop(release);
    for _ in 1..sent {
        assert!(matches!(answer(&mut stream).await, Answer::Appended(Some(_))));
    }
    wait_until("all is in its log", || {
        follower.status().last_entry.is_some_and(|last| last.index.get() >= sent - 1)
    })
    .await;
}
