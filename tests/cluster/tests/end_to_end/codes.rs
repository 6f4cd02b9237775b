//! Codes that nothing else provokes, limits that nothing else meets, and the walk over all codes that finds those.

use std::path::Path;
use std::time::Duration;

use tidemill_client::messages::{
    CommitOffsetsRequest, Error, Request, RoutedOpened, SubscribeAdd, SubscribeControl, SubscribeEvent,
    SubscribeRemove, UploadPluginRequest, request, stream_open, subscribe_control, subscribe_event,
};
use tidemill_client::{Commit, ErrorCode, Offset};
use tidemill_cluster_tests::{BrokerOptions, Outcome};

use crate::kit::{PATIENCE, batch_of, broker, broker_with, code, create, numbered, partition_of, refused};
use crate::raw::{RawPeer, frame, opening};

/// Codes that no test of a whole broker provokes, and what shows them instead.
const NOT_PROVOKED: [(&str, &str); 2] = [
    (
        "INTERNAL",
        "sent where the broker has a defect, such as a task of its own that panics: no client may have a way to it",
    ),
    ("JOIN_REFUSED", "said to brokers that join: several_brokers/strangers.rs and members.rs read the words"),
];

fn sources(dir: &Path, found: &mut String) {
    for entry in std::fs::read_dir(dir).expect("the tests' sources") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.file_name().is_some_and(|name| name != "codes.rs") {
            found.push_str(&std::fs::read_to_string(&path).expect("text"));
        }
    }
}

/// `docs/errors.md` has every code, and each of them is one that a test here meets, or has its reason above.
#[test]
fn every_code_is_met_by_a_test() {
    let mut text = String::new();
    for tests in ["tests/end_to_end", "tests/several_brokers"] {
        sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join(tests), &mut text);
    }
    // Of this file only what stands below.
    text.push_str(include_str!("codes.rs").split_once("/// Here begins").expect("the mark").1);
    for code in ErrorCode::ALL {
        let is_met =
            [format!("ErrorCode::{code:?}"), format!("\"{}\"", code.name()), format!(" {} ", code.name())]
                .iter()
                .any(|words| text.contains(words));
        let excused = NOT_PROVOKED.iter().any(|(name, _)| *name == code.name());
        assert!(is_met != excused, "{code}: met by a test: {is_met}; said not to be: {excused}");
    }
}

/// Here begins what provokes codes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gap_in_a_producers_numbers_is_refused() -> Outcome<()> {
    let (broker, client) = broker().await?;
    create(&client, "t", 1).await?;
    let partition = partition_of(&client, "t", 0).await?;
    let (peer, _control) = RawPeer::greeted(&broker).await?;
    let id = peer.producer_id().await?;
    let mut stream = peer.producing_as(partition, id).await?;
    assert_eq!(stream.produce(0, numbered(id, 0).bytes()).await?.base_offset, 0);
    let gap = stream.produce(1, numbered(id, 5).bytes()).await?;
    assert_eq!(code(gap.error), Some(ErrorCode::OutOfOrderSequence));
    assert_eq!(stream.produce(2, numbered(id, 1).bytes()).await?.base_offset, 1, "what fits is stored");
    Ok(())
}

/// A batch that says it was placed first by a partitioner, or for a number of partitions, that the topic does not know.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_attempt_that_can_not_be_repeated_is_refused_for_good() -> Outcome<()> {
    let (broker, client) = broker().await?;
    create(&client, "t", 3).await?;
    let topic = client.topic_metadata("t").await?.id;
    let (peer, _control) = RawPeer::greeted(&broker).await?;
    let (mut stream, told) = peer.routing(topic, peer.producer_id().await?).await?;
    for (request_id, first) in [
        RoutedOpened { partitioner_epoch: told.partitioner_epoch + 7, ..told.clone() },
        RoutedOpened { partition_count: told.partition_count + 1, ..told.clone() },
    ]
    .iter()
    .enumerate()
    {
        stream.route(request_id as u64, 0, first, batch_of(&["a record"]).bytes()).await?;
        let error = stream.routed_acks().await?.remove(0).error.ok_or("it is refused")?;
        assert!(!error.retriable && error.message.contains("read back"), "{error:?}");
        assert_eq!(code(Some(error)), Some(ErrorCode::PartitionerChanged));
    }
    stream.route(2, 0, &told, batch_of(&["a record"]).bytes()).await?;
    assert_eq!(stream.routed_acks().await?.remove(0).error, None, "as it was told it is stored");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn groups_have_names_and_positions_within_the_log() -> Outcome<()> {
    let (_broker, client) = broker().await?;
    create(&client, "t", 1).await?;
    let partition = partition_of(&client, "t", 0).await?;
    let commit = async |group: &str, offset| {
        client.groups().commit(group, &[Commit::new(partition, Offset::new(offset))]).await
    };
    for name in [String::new(), "g".repeat(256)] {
        assert_eq!(refused(commit(&name, 0).await), ErrorCode::InvalidGroup, "{name}");
    }
    assert_eq!(refused(commit("g", 1).await), ErrorCode::OffsetOutOfRange, "there is no record yet");
    commit("g", 0).await?;
    Ok(())
}

/// Asks again and again, until it is refused.
async fn until_refused(peer: &RawPeer, body: request::Body) -> Outcome<Error> {
    loop {
        if let Some(error) = peer.answer(0, body.clone()).await?.error {
            return Ok(error);
        }
        tokio::task::yield_now().await;
    }
}

/// An upload whose bytes never come.
fn half_an_upload() -> request::Body {
    request::Body::UploadPlugin(UploadPluginRequest {
        name: "p".to_owned(),
        size: 1_000,
        ..Default::default()
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_stops_takes_nothing_new() -> Outcome<()> {
    let (mut broker, _client) = broker_with(BrokerOptions::default().set("shutdown_grace_ms", 5_000)).await?;
    let (peer, _control) = RawPeer::greeted(&broker).await?;
    let commit =
        || request::Body::CommitOffsets(CommitOffsetsRequest { group: "g".to_owned(), ..Default::default() });
    assert_eq!(peer.answer(0, commit()).await?.error, None);
    // What is under way gets its time: until then the broker is there, and says why it takes nothing.
    let asking =
        opening(stream_open::Kind::Request(Request { deadline_ms: 0, body: Some(half_an_upload()) }));
    let _held = peer.open(&frame(&asking, &[])).await?;
    let (stopped, refused) = tokio::join!(broker.stop(), until_refused(&peer, commit()));
    assert!(stopped?.success());
    let refused = refused?;
    assert!(refused.retriable, "{refused:?}");
    assert_eq!(code(Some(refused)), Some(ErrorCode::ShuttingDown));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscription_has_as_many_partitions_and_as_much_credit_as_the_settings_say() -> Outcome<()> {
    const CREDIT_MAX: usize = 20_000;
    const BATCH_BYTES: usize = 5_000;
    let options = BrokerOptions::default()
        .set("limits.subscription_partitions_max", 2)
        .set("limits.subscription_credit_bytes_max", CREDIT_MAX);
    let (broker, client) = broker_with(options).await?;
    create(&client, "t", 3).await?;
    let (peer, _control) = RawPeer::greeted(&broker).await?;
    let mut stream = peer.subscribing().await?;
    for number in 0..3 {
        let partition = partition_of(&client, "t", number).await?;
        let add = SubscribeAdd { id: number, partition: Some(partition.into()), ..Default::default() };
        match (number, stream.subscribe_to(add).await?) {
            (0 | 1, subscribe_event::Kind::Started(started)) => assert_eq!(started.id, number),
            (2, subscribe_event::Kind::Failed(failed)) => {
                assert_eq!((failed.id, code(failed.error)), (2, Some(ErrorCode::Overloaded)));
            }
            (_, other) => panic!("partition {number}: {other:?}"),
        }
    }

    let partition = partition_of(&client, "t", 0).await?;
    let mut producing = peer.producing(partition).await?;
    let batch = batch_of(&[&"x".repeat(BATCH_BYTES)]);
    for number in 0..20 {
        producing.produce(number, batch.bytes()).await?;
    }
    // Whatever a client offers, no more than the limit is on its way, and what one batch is beyond it.
    let mut stream = peer.subscribing().await?;
    let offered = SubscribeAdd {
        id: 1,
        partition: Some(partition.into()),
        credit_bytes: 1 << 40,
        ..Default::default()
    };
    assert!(matches!(stream.subscribe_to(offered).await?, subscribe_event::Kind::Started(_)));
    let mut received = 0;
    while let Ok(event) =
        tokio::time::timeout(Duration::from_secs(2), stream.message::<SubscribeEvent>()).await
    {
        if let Some(subscribe_event::Kind::Data(data)) = event?.kind {
            received = data.next_offset;
        }
    }
    let most = (CREDIT_MAX / BATCH_BYTES + 1) as i64;
    assert!((1..=most).contains(&received), "{received} batches of {BATCH_BYTES} bytes for {CREDIT_MAX}");
    Ok(())
}

/// However many streams a client opens, and though it is the same partition again and again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_subscriptions_of_a_connection_have_so_many_partitions_together() -> Outcome<()> {
    let (broker, client) =
        broker_with(BrokerOptions::default().set("limits.connection_partitions_max", 2)).await?;
    create(&client, "t", 1).await?;
    let partition = partition_of(&client, "t", 0).await?;
    let add = |id| SubscribeAdd { id, partition: Some(partition.into()), ..Default::default() };
    // What becomes of an added partition: the code that it fails with, or that it has begun.
    let outcome = |event: subscribe_event::Kind| match event {
        subscribe_event::Kind::Started(_) => None,
        subscribe_event::Kind::Failed(failed) => code(failed.error),
        other => panic!("it begins, or fails: {other:?}"),
    };
    let (peer, _control) = RawPeer::greeted(&broker).await?;
    let (mut first, mut second) = (peer.subscribing().await?, peer.subscribing().await?);
    assert_eq!(outcome(first.subscribe_to(add(1)).await?), None);
    assert_eq!(outcome(second.subscribe_to(add(1)).await?), None);
    for stream in [&mut first, &mut second] {
        assert_eq!(outcome(stream.subscribe_to(add(2)).await?), Some(ErrorCode::Overloaded));
    }
    let (other, _control) = RawPeer::greeted(&broker).await?;
    assert_eq!(outcome(other.subscribing().await?.subscribe_to(add(1)).await?), None, "another connection");

    let remove = SubscribeControl { kind: Some(subscribe_control::Kind::Remove(SubscribeRemove { id: 1 })) };
    first.send.write_all(&frame(&remove, &[])).await?;
    assert_eq!(outcome(first.subscribe_to(add(3)).await?), None, "one that is removed makes room");
    assert_eq!(outcome(second.subscribe_to(add(3)).await?), Some(ErrorCode::Overloaded));
    first.send.finish()?;
    tokio::time::timeout(PATIENCE, first.receive.read_to_end(1 << 16)).await??;
    assert_eq!(outcome(second.subscribe_to(add(4)).await?), None, "and so does a subscription's end");
    Ok(())
}

/// A request that names no deadline has the settings'.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_without_a_deadline_gets_the_settings() -> Outcome<()> {
    let (broker, _client) =
        broker_with(BrokerOptions::default().set("limits.request_deadline_ms", 300)).await?;
    let (peer, _control) = RawPeer::greeted(&broker).await?;
    for (deadline_ms, expected) in [(0, "300 ms"), (700, "700 ms")] {
        let error = peer.answer(deadline_ms, half_an_upload()).await?.error.ok_or("its bytes never come")?;
        assert!(error.message.contains(expected), "{error:?}");
        assert_eq!(code(Some(error)), Some(ErrorCode::Deadline));
    }
    Ok(())
}
