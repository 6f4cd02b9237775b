//! Metadata that a broker pushes to who has named topics: nobody asks for them.

use tidemill_client::ErrorCode;
use tidemill_client::messages::{Metadata, MetadataRequest, TopicConfig, TopicInfo, reply, request};
use tidemill_cluster_tests::Outcome;
use tidemill_cluster_tests::waiting::eventually;

use crate::kit::{PATIENCE, broker, code, create};
use crate::raw::RawPeer;

/// What is pushed of a topic that was named. Of others nothing ever is.
fn info<'a>(metadata: &'a Metadata, name: &str) -> &'a TopicInfo {
    let names: Vec<&str> = metadata.topics.iter().map(|topic| topic.name.as_str()).collect();
    assert_eq!(names, ["later", "plays"], "those that were named, and no others");
    metadata.topics.iter().find(|topic| topic.name == name).expect("it was looked for above")
}

/// How many partitions a topic has; none where it is not there, which is said by a code.
fn partitions(metadata: &Metadata, name: &str) -> usize {
    let info = info(metadata, name);
    let expected = info.partitions.is_empty().then_some(ErrorCode::UnknownTopic);
    assert_eq!(code(info.error.clone()), expected, "{info:?}");
    info.partitions.len()
}

/// Made, altered and deleted by somebody else; the one that listens never opens another stream than its first. A client of ours learns by the
/// same way: what it knows it does not ask for again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_names_topics_is_told_what_becomes_of_them_and_of_no_others() -> Outcome<()> {
    const BATCH_BYTES_MAX: u32 = 100_000;
    let (broker, client) = broker().await?;
    create(&client, "plays", 1).await?;
    let listening = broker.client().await?;
    let known = listening.topic_metadata("plays").await?;
    assert_ne!(known.config.batch_bytes_max, Some(BATCH_BYTES_MAX));

    let (_peer, mut control) = RawPeer::greeted_without_ids(&broker).await?;
    control.listen_for(&["plays", "later"]).await?;
    let first = control.pushed(|now| partitions(now, "plays") == 1).await?;
    assert_eq!(partitions(&first, "later"), 0);

    create(&client, "unnamed", 2).await?;
    create(&client, "later", 3).await?;
    let made = control.pushed(|now| partitions(now, "later") == 3).await?;
    assert!(made.version > first.version && partitions(&made, "plays") == 1, "{made:?}");

    let config = TopicConfig { batch_bytes_max: Some(BATCH_BYTES_MAX), ..TopicConfig::default() };
    client.topics().alter("plays", config).await?;
    let allows = |now: &Metadata| info(now, "plays").config.and_then(|config| config.batch_bytes_max);
    control.pushed(|now| allows(now) == Some(BATCH_BYTES_MAX)).await?;
    eventually("a client hears of it too", PATIENCE, async || {
        let known = listening.topic_metadata("plays").await.ok()?;
        (known.config.batch_bytes_max == Some(BATCH_BYTES_MAX)).then_some(())
    })
    .await?;

    client.topics().delete("later").await?;
    control.pushed(|now| partitions(now, "later") == 0).await?;
    Ok(())
}

/// Kept and repeated with every change, long ones would cost the broker memory: they are refused, and the rest of the list stands.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_no_topic_can_have_is_refused_once_and_not_kept() -> Outcome<()> {
    let (broker, client) = broker().await?;
    create(&client, "plays", 1).await?;
    let (peer, mut control) = RawPeer::greeted_without_ids(&broker).await?;
    let (endless, cut) = ("x".repeat(1 << 20), "x".repeat(255));
    let told = |metadata: Metadata| -> Vec<(String, Option<ErrorCode>)> {
        metadata.topics.into_iter().map(|topic| (topic.name, code(topic.error))).collect()
    };
    let plays = ("plays".to_owned(), None);
    let refused = |name: &str| (name.to_owned(), Some(ErrorCode::InvalidTopic));

    control.listen_for(&["a/b", endless.as_str(), "plays"]).await?;
    let first = told(control.pushed(|_| true).await?);
    assert_eq!(first, [plays.clone(), refused("a/b"), refused(&cut)]);
    create(&client, "another", 1).await?;
    assert_eq!(told(control.pushed(|_| true).await?), std::slice::from_ref(&plays), "told once is enough");
    let (_other, mut control) = RawPeer::greeted_without_ids(&broker).await?;
    control.listen_for(&[endless.as_str()]).await?;
    assert_eq!(told(control.pushed(|_| true).await?), [refused(&cut)], "nothing else was named");

    let asking = |topics: Vec<String>| request::Body::Metadata(MetadataRequest { topics, all: false });
    match peer.ask(asking(vec!["plays".to_owned(), "a/b".to_owned()])).await? {
        Some(reply::Body::Metadata(metadata)) => assert_eq!(told(metadata), [refused("a/b"), plays]),
        other => panic!("metadata was asked for: {other:?}"),
    }
    let too_long = peer.answer(0, asking(vec![endless])).await?.error;
    assert_eq!(code(too_long), Some(ErrorCode::BadMessage));
    Ok(())
}
