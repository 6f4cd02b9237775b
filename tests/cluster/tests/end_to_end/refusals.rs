//! Limits, and whoever goes beyond them: the code says which.

use tidemill_client::messages::{
    CommitOffsetsRequest, CommittedOffset, ListDeploymentsRequest, ListGroupsRequest, ListPluginsRequest,
    MetadataRequest, TopicConfig, reply, request,
};
use tidemill_client::{
    BatchBuilder, BuilderOptions, Client, ClientConfig, Commit, Compression, ConnectError, ErrorCode,
    NewDeployment, NewTopic, Offset, PartitionId, Record, RecordBatch, Timestamp,
};
use tidemill_cluster_tests::reading::{count, read_all};
use tidemill_cluster_tests::{BrokerOptions, Outcome, TestBroker, plugins};
use tidemill_net::DevCa;

use crate::kit::{broker, broker_with, code, create, not_stored, partition_of, refused};
use crate::raw::{ALPN, RawPeer};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_and_uses_have_their_own_codes() -> Outcome<()> {
    let (_broker, client) = broker().await?;
    create(&client, "t", 1).await?;
    plugins::upload(&client, "json-filter").await?;
    let component = plugins::component("json-filter")?;
    let upload = async |name: &str, version: &str| {
        refused(client.plugins().upload(name, version, component.clone()).await)
    };
    assert_eq!(upload("a/b", "1").await, ErrorCode::InvalidName);
    assert_eq!(upload("a", "1/2").await, ErrorCode::InvalidName);
    assert_eq!(refused(client.plugins().delete("a b", "1").await), ErrorCode::InvalidName);
    let deployments = client.deployments();
    let filter = |name: &str, topic: &str| {
        NewDeployment::produce_filter(name, "json-filter", topic).set("where", "x == 1")
    };
    let deploy = async |name: &str, topic: &str| refused(deployments.create(filter(name, topic)).await);
    assert_eq!(deploy("", "t").await, ErrorCode::InvalidName);
    assert_eq!(deploy("f", "no/topic").await, ErrorCode::InvalidTopic);
    assert_eq!(refused(deployments.pause("what ever").await), ErrorCode::InvalidName);
    assert_eq!(refused(deployments.delete("..").await), ErrorCode::InvalidName);
    assert_eq!(refused(client.topics().delete("a/b").await), ErrorCode::InvalidTopic);

    deployments.create(filter("f", "t")).await?;
    let error = client.topics().delete("t").await.expect_err("it is in use");
    assert_eq!(error.code().and_then(ErrorCode::from_code), Some(ErrorCode::TopicInUse));
    assert!(error.to_string().contains("deployment 'f'"), "{error}");
    assert_eq!(refused(client.plugins().delete("json-filter", "1").await), ErrorCode::PluginInUse);
    deployments.delete("f").await?;
    client.topics().delete("t").await?;
    Ok(())
}

/// In words that a client can show, instead of a failed handshake.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_shows_no_certificate_is_told_so() -> Outcome<()> {
    let directory = tempfile::tempdir()?;
    let authority = DevCa::open_or_create(directory.path().join("clients"))?;
    let alice = authority.client("alice")?;
    let options = BrokerOptions::default().set("client_ca", authority.authority().display());
    let broker = TestBroker::start(options).await?;
    let peer = RawPeer::connect(&broker, ALPN).await?;
    assert_eq!(peer.close_code().await?, ErrorCode::Unauthenticated);

    let config = || ClientConfig::new([broker.address().to_string()]).trust_file(broker.authority());
    match Client::connect(config()).await {
        Err(ConnectError::Refused { error, .. }) => {
            assert!(error.is(ErrorCode::Unauthenticated), "{error}");
            assert!(error.message.contains("--certificate-key"), "{error}");
        }
        other => return Err(format!("a stranger was let in, or not told why: {other:?}").into()),
    }
    let client = Client::connect(config().identity(&alice.certificate, &alice.key)).await?;
    create(&client, "t", 1).await?;
    // One that nobody known has signed does not get through the handshake.
    let stranger = DevCa::open_or_create(directory.path().join("others"))?.client("alice")?;
    let error = Client::connect(config().identity(&stranger.certificate, &stranger.key)).await;
    assert!(matches!(error, Err(ConnectError::Handshake { .. })), "{error:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_too_many_is_refused_and_the_others_go_on() -> Outcome<()> {
    let options = BrokerOptions::default().set("limits.streams_max", 6);
    let (broker, client) = broker_with(options).await?;
    create(&client, "t", 12).await?;
    let partition = partition_of(&client, "t", 0).await?;
    let (peer, _control) = RawPeer::greeted(&broker).await?;
    let mut open = Vec::new();
    for _ in 0..5 {
        open.push(peer.producing(partition).await?);
    }
    for _ in 0..40 {
        // More than QUIC itself would let be open at once, if they stayed.
        let stream = peer.open(b"\0\0\0\x04\0\0\0\0").await?;
        assert_eq!(stream.reset_code().await?, ErrorCode::TooManyStreams);
    }
    let batch = crate::kit::batch_of(&["a record"]);
    for stream in &mut open {
        assert_eq!(stream.produce(0, batch.bytes()).await?.error, None);
    }
    let mut first = open.remove(0);
    first.send.finish()?;
    assert!(first.message::<tidemill_client::messages::ProduceAcks>().await.is_err(), "it ended");
    peer.producing(partition).await?;
    // A client that wants more than it may have comes to its end all the same: requests are sent again, producers take turns.
    let producer = client.producer("t").delivery_timeout(std::time::Duration::from_secs(5)).build().await?;
    let sent =
        producer.send(Record::new("one stream is enough").partition(PartitionId::new(3))).await?.await?;
    assert_eq!(sent.offset().map(|offset| offset.get()), Some(0));
    let described = futures_of(&client, 20).await;
    assert_eq!(described, 20);
    Ok(())
}

/// So many requests at once; how many were answered.
async fn futures_of(client: &Client, count: usize) -> usize {
    let mut asking = tokio::task::JoinSet::new();
    for _ in 0..count {
        let client = client.clone();
        asking.spawn(async move { client.topics().describe("t").await.is_ok() });
    }
    asking.join_all().await.into_iter().filter(|answered| *answered).count()
}

const LARGEST: usize = 16 << 20;

/// A batch of exactly so many bytes.
fn batch_of_bytes(bytes: usize) -> Outcome<RecordBatch> {
    let make = |last: usize| -> Outcome<RecordBatch> {
        let mut builder = BatchBuilder::new(BuilderOptions {
            compression: Compression::None,
            batch_bytes_max: usize::MAX,
            ..BuilderOptions::default()
        });
        for value in [vec![b'a'; 6 << 20], vec![b'b'; 6 << 20], vec![b'c'; last]] {
            builder.append(Timestamp::new(1_000), None, Some(&value), [])?;
        }
        Ok(builder.build_batch()?)
    };
    let without = make(3 << 20)?.bytes().len() - (3 << 20);
    let batch = make(bytes - without)?;
    assert_eq!(batch.bytes().len(), bytes);
    Ok(batch)
}

/// The limits of frames, topics, units and the log agree: what a topic may allow is taken, one byte more is refused by name.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_largest_batch_that_a_topic_may_allow_is_taken() -> Outcome<()> {
    let broker = TestBroker::start(BrokerOptions::as_shipped()).await?;
    let client = broker.client().await?;
    let config =
        |bytes: usize| TopicConfig { batch_bytes_max: u32::try_from(bytes).ok(), ..TopicConfig::default() };
    client.topics().create(NewTopic::new("t", 1).config(config(LARGEST))).await?;
    assert_eq!(
        refused(client.topics().create(NewTopic::new("more", 1).config(config(LARGEST + 1))).await),
        ErrorCode::InvalidTopic
    );
    let partition = partition_of(&client, "t", 0).await?;
    let (peer, _control) = RawPeer::greeted(&broker).await?;
    let (largest, too_large) = (batch_of_bytes(LARGEST)?, batch_of_bytes(LARGEST + 1)?);
    let mut stream = peer.producing(partition).await?;
    assert_eq!(stream.produce(0, largest.bytes()).await?.error, None);
    assert_eq!(code(stream.produce(1, too_large.bytes()).await?.error), Some(ErrorCode::BatchTooLarge));
    let (mut stream, told) = peer.routing(partition.topic, 9).await?;
    for (sequence, batch, expected) in [(0, &largest, None), (1, &too_large, Some(ErrorCode::BatchTooLarge))]
    {
        stream.route(sequence, sequence, &told, batch.bytes()).await?;
        assert_eq!(code(stream.routed_acks().await?.remove(0).error), expected);
    }
    let read = read_all(&client, "t").await?;
    assert_eq!(count(&read), 6);
    let bytes: usize = read[&0].iter().filter_map(|record| Some(record.value.as_ref()?.len())).sum();
    assert!(bytes > 2 * (LARGEST - 200), "{bytes}");
    Ok(())
}

/// A log of small segments has room for small batches only: the broker says so where a topic is made, and to its clients.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_small_log_takes_small_batches() -> Outcome<()> {
    let options = BrokerOptions::default().set("wal.segment_bytes", 4 << 20).set("wal.bytes_max", 32 << 20);
    let (_broker, client) = broker_with(options).await?;
    let config = |bytes: u32| TopicConfig { batch_bytes_max: Some(bytes), ..TopicConfig::default() };
    let error =
        client.topics().create(NewTopic::new("t", 1).config(config(4 << 20))).await.expect_err("too much");
    assert!(error.to_string().contains("wal.segment_bytes"), "{error}");
    // The default of topics is more; the broker's own limit counts.
    create(&client, "t", 1).await?;
    let producer = client.producer("t").batch_bytes(8 << 20).build().await?;
    let value = vec![b'x'; 1 << 20];
    for _ in 0..12 {
        producer.send_and_forget(Record::new(&value)).await?;
    }
    producer.flush().await?;
    let large = vec![b'x'; 3 << 20];
    assert!(producer.send(Record::new(&large)).await.is_err(), "the client knows the limit");
    let mut builder = BatchBuilder::new(BuilderOptions::default());
    builder.append(Timestamp::new(1_000), None, Some(&large), [])?;
    let sent = producer.send_batch(PartitionId::new(0), builder.build_batch()?).await;
    match sent {
        Ok(delivery) => assert_eq!(not_stored(delivery.await), ErrorCode::BatchTooLarge),
        Err(error) => assert!(error.to_string().contains("limit"), "{error}"),
    }
    assert_eq!(count(&read_all(&client, "t").await?), 12);
    Ok(())
}

/// However many there are: an answer has a bound, and says that there are more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plugins_and_deployments_are_listed_in_pages() -> Outcome<()> {
    let (broker, client) = broker().await?;
    for (name, version) in [("a", "1"), ("a", "2"), ("b", "1"), ("b", "10"), ("b", "2")] {
        client.plugins().upload(name, version, tidemill_hostile::keep_all()).await?;
    }
    for name in ["z", "y", "x"] {
        client.deployments().create(NewDeployment::subscription_filter(name, "a")).await?;
    }
    let all: Vec<_> =
        client.plugins().list().await?.into_iter().map(|plugin| (plugin.name, plugin.version)).collect();
    assert_eq!(all.len(), 5);
    assert!(all.is_sorted());
    let (peer, _control) = RawPeer::greeted(&broker).await?;
    let mut paged = Vec::new();
    for expected_more in [true, true, false] {
        let (after_name, after_version) = paged.last().cloned().unwrap_or_default();
        let body = request::Body::ListPlugins(ListPluginsRequest { after_name, after_version, limit: 2 });
        let Some(reply::Body::ListPlugins(page)) = peer.ask(body).await? else {
            return Err("no list".into());
        };
        assert_eq!(page.more, expected_more);
        paged.extend(page.versions.into_iter().map(|plugin| (plugin.name, plugin.version)));
    }
    assert_eq!(paged, all);
    assert_eq!(client.deployments().list().await?.len(), 3);
    let (mut names, mut from_id) = (Vec::new(), 0);
    for expected_more in [true, true, false] {
        let body = request::Body::ListDeployments(ListDeploymentsRequest { from_id, limit: 1 });
        let Some(reply::Body::ListDeployments(page)) = peer.ask(body).await? else {
            return Err("no list".into());
        };
        assert_eq!((page.more, page.deployments.len()), (expected_more, 1));
        from_id = page.deployments[0].deployment_id + 1;
        names.push(page.deployments[0].name.clone());
    }
    assert_eq!(names, ["z", "y", "x"], "in the order of their ids");
    Ok(())
}

/// What is answered is a thousand times what asking takes: a name counts once, however often it is said.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_is_named_very_often_is_told_of_once() -> Outcome<()> {
    let (broker, client) = broker().await?;
    create(&client, "wide", 1_000).await?;
    let (peer, _control) = RawPeer::greeted(&broker).await?;
    let ask = async |topics: Vec<String>| {
        peer.ask(request::Body::Metadata(MetadataRequest { topics, all: false })).await
    };
    match ask(vec!["wide".to_owned(); 5_000]).await? {
        Some(reply::Body::Metadata(metadata)) => {
            assert_eq!(metadata.topics.len(), 1);
            assert_eq!(metadata.topics[0].partitions.len(), 1_000);
        }
        other => return Err(format!("it should be metadata: {other:?}").into()),
    }
    let many = (0..10_001).map(|number| format!("t-{number}")).collect();
    assert!(ask(many).await?.is_none(), "refused");
    Ok(())
}

/// However many groups there are, and however much their readers note.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn groups_are_listed_in_pages_and_their_notes_are_weighed() -> Outcome<()> {
    let (broker, client) = broker().await?;
    create(&client, "t", 1_000).await?;
    let partition = partition_of(&client, "t", 0).await?;
    for number in 0..5 {
        client.groups().commit(&format!("g-{number}"), &[Commit::new(partition, Offset::new(0))]).await?;
    }
    let (peer, _control) = RawPeer::greeted(&broker).await?;
    let mut seen = Vec::new();
    loop {
        let after = seen.last().cloned().unwrap_or_default();
        let listed = peer.ask(request::Body::ListGroups(ListGroupsRequest { after, limit: 2 })).await?;
        let Some(reply::Body::ListGroups(listed)) = listed else { return Err("groups".into()) };
        assert!(listed.groups.len() <= 2);
        seen.extend(listed.groups);
        if !listed.more {
            break;
        }
    }
    assert_eq!(seen, ["g-0", "g-1", "g-2", "g-3", "g-4"]);
    assert_eq!(client.groups().list().await?, seen);
    // 1,025 notes of 4 KiB are more than a group may have.
    let noted = |from: u32, to: u32| CommitOffsetsRequest {
        group: "noted".to_owned(),
        offsets: (from..to)
            .map(|number| CommittedOffset {
                partition: Some(
                    tidemill_client::TopicPartition::new(partition.topic, PartitionId::new(number)).into(),
                ),
                offset: 0,
                leader_epoch: -1,
                note: "n".repeat(4 << 10),
                ..CommittedOffset::default()
            })
            .collect(),
    };
    let commit = async |from, to| peer.ask(request::Body::CommitOffsets(noted(from, to))).await;
    assert!(commit(0, 500).await?.is_some() && commit(500, 1_000).await?.is_some());
    assert!(commit(0, 100).await?.is_none(), "refused");
    assert_eq!(client.groups().positions("noted").await?.len(), 1_000);
    Ok(())
}
