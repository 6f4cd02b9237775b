//! Topics that were deleted, and such as one broker has not heard of: who reads or writes them is told the one, and not bothered
//! with the other. And such as nobody uses any more, of which no broker has to tell for ever.

mod fake;

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use fake::{FakeCluster, PATIENCE, TOPIC, topic_id, unknown_topic, value, within};
use tidemill_client::messages::Metadata;
use tidemill_client::{
    Client, ConsumeError, Consumer, Delivery, ErrorCode, Offset, PartitionId, Position, Producer, Record,
    TopicId, TopicPartition,
};

fn partition(number: u32) -> TopicPartition {
    TopicPartition::new(TopicId::from_slice(&topic_id()).expect("an id"), PartitionId::new(number))
}

async fn send(producer: &Producer, partition: Option<u32>, number: usize) -> Delivery {
    let value = value(number);
    let record = Record::new(&value);
    let record = match partition {
        Some(partition) => record.partition(PartitionId::new(partition)),
        None => record,
    };
    producer.send(record).await.expect("taken")
}

/// Puts so many records into every partition, and reads them.
async fn fill_and_read(cluster: &FakeCluster, client: &Client, consumer: &mut Consumer, count: usize) {
    let producer = client.producer(TOPIC).build().await.expect("a producer");
    let partitions = cluster.model.logs.len();
    for number in 0..count {
        for partition in 0..partitions {
            drop(send(&producer, Some(partition as u32), number).await);
        }
    }
    within(producer.close()).await.expect("stored");
    for _ in 0..count * partitions {
        within(consumer.next()).await.expect("more").expect("a record");
    }
}

async fn reader(client: &Client) -> Consumer {
    client.consumer().topic(TOPIC).from(Position::Earliest).build().await.expect("a consumer")
}

/// Each of these partitions ends with what says that its topic is gone, and nothing else comes.
async fn ends(consumer: &mut Consumer, mut partitions: Vec<u32>) {
    while let Some(next) = within(consumer.next()).await {
        let ended = next.expect_err("no more records");
        let ConsumeError::Partition { partition, error } = ended else { panic!("{ended}") };
        assert!(error.is(ErrorCode::UnknownTopic) && !error.retriable, "{error}");
        partitions.retain(|left| *left != partition.partition.get());
    }
    assert!(partitions.is_empty(), "{partitions:?} ended without a word");
}

/// From now on these brokers tell of a topic of the same name that is another.
fn make_anew(cluster: &FakeCluster, brokers: &[u32]) {
    let mut anew = cluster.model.metadata();
    anew.version += 1;
    anew.topics[0].topic_id = Bytes::from_static(&[10; 16]);
    for id in brokers {
        *cluster.node(*id).stale.lock().expect("no panic") = Some(anew.clone());
    }
    cluster.model.version.send_modify(|version| *version += 1);
}

/// Its broker would have refused it. Nobody else is asked for what nobody has any more.
#[tokio::test]
async fn readers_of_a_topic_that_was_deleted_while_its_broker_was_gone_end_with_that() {
    let cluster = FakeCluster::start(&["a", "b", "c"], 2).await;
    let client = cluster.client().await;
    let mut consumer = reader(&client).await;
    fill_and_read(&cluster, &client, &mut consumer, 10).await;
    cluster.kill(1);
    cluster.model.delete();
    ends(&mut consumer, vec![0, 1]).await;
    // As often as it is tried again.
    consumer.seek(partition(1), Position::Earliest);
    ends(&mut consumer, vec![1]).await;
}

#[tokio::test]
async fn a_topic_that_one_broker_has_not_heard_of_is_read_on_until_others_say_that_it_is_gone() {
    let cluster = FakeCluster::start(&["a", "b", "c"], 1).await;
    let client = cluster.client().await;
    let mut consumer = reader(&client).await;
    fill_and_read(&cluster, &client, &mut consumer, 10).await;
    // What comes in one message with the other: of this topic only that broker tells.
    let mut sign = cluster.model.metadata().topics.remove(0);
    (sign.name, sign.topic_id) = ("sign".to_owned(), Bytes::from_static(&[8; 16]));
    *cluster.node(2).stale.lock().expect("no panic") =
        Some(Metadata { version: 0, topics: vec![unknown_topic(), sign], ..cluster.model.metadata() });
    let heard = async {
        while client.topic_metadata("sign").await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    within(heard).await;
    fill_and_read(&cluster, &client, &mut consumer, 10).await;

    cluster.model.delete();
    ends(&mut consumer, vec![0]).await;
}

#[tokio::test]
async fn readers_of_a_topic_that_was_made_anew_do_not_go_on_in_another() {
    let cluster = FakeCluster::start(&["a", "b", "c"], 1).await;
    let client = cluster.client().await;
    let mut consumer = reader(&client).await;
    fill_and_read(&cluster, &client, &mut consumer, 10).await;
    cluster.kill(1);
    make_anew(&cluster, &[2, 3]);
    ends(&mut consumer, vec![0]).await;
}

/// Both are partition 0 of a topic of this name.
#[tokio::test]
async fn a_reader_that_has_a_topic_and_the_one_made_anew_under_its_name_does_not_take_one_for_the_other() {
    const RECORDS: i64 = 10;
    let cluster = FakeCluster::start(&["a"], 1).await;
    let client = cluster.client().await;
    // In one batch, so that the reader has more in hand than it has handed out.
    let producer = client.producer(TOPIC).linger(PATIENCE).eager(false).build().await.expect("a producer");
    for number in 0..RECORDS as usize {
        drop(send(&producer, Some(0), number).await);
    }
    within(producer.flush()).await.expect("stored");
    let mut consumer = reader(&client).await;
    for _ in 0..RECORDS {
        within(consumer.next()).await.expect("more").expect("a record");
    }
    make_anew(&cluster, &[1]);
    ends(&mut consumer, vec![0]).await;

    let (old, number) = (partition(0), PartitionId::new(0));
    let new = within(consumer.add(TOPIC, number, Position::Earliest)).await.expect("added");
    assert!(old < new, "whoever goes by name and number finds the old one first");
    for offset in 0..3 {
        let record = within(consumer.next()).await.expect("more").expect("a record");
        assert_eq!(record.offset, Offset::new(offset));
    }
    let positions = consumer.positions();
    assert_eq!(positions[&old].next, Some(Offset::new(RECORDS)));
    assert_eq!(positions[&new].next, Some(Offset::new(3)));

    consumer.remove(old);
    assert_eq!(consumer.positions()[&new].next, Some(Offset::new(3)), "what is committed now");
    for offset in 3..RECORDS {
        let record = within(consumer.next()).await.expect("more").expect("a record");
        assert_eq!(record.offset, Offset::new(offset));
    }
    assert_eq!(consumer.positions()[&new].next, Some(Offset::new(RECORDS)));
}

#[tokio::test]
async fn what_is_sent_to_a_topic_that_was_deleted_while_its_broker_was_gone_fails() {
    for partition in [Some(0), None] {
        let cluster = FakeCluster::start(&["a", "b", "c"], 1).await;
        let client = cluster.client().await;
        let builder = client.producer(TOPIC);
        let builder = if partition.is_some() { builder } else { builder.routed() };
        let producer = builder.build().await.expect("a producer");
        within(send(&producer, partition, 0).await).await.expect("stored");
        // The leader, or whoever has the routed stream.
        let busy = (1..=3).find(|id| cluster.node(*id).routed.load(Ordering::Relaxed) > 0);
        cluster.kill(busy.unwrap_or(1));
        cluster.model.delete();
        let delivery = send(&producer, partition, 1).await;
        let refused = within(delivery).await.expect_err("there is no such topic");
        assert!(refused.is(ErrorCode::UnknownTopic), "{partition:?}: {refused}");
    }
}

/// Names this many topics that are not there, one after the other.
async fn name_others(client: &Client, count: usize) {
    for number in 0..count {
        let refused = within(client.topic_metadata(&format!("other-{number}"))).await;
        assert!(refused.expect_err("there is none").is(ErrorCode::UnknownTopic));
    }
}

/// Waits until the brokers are to tell of so many topics, and of this one or not.
async fn are_listed(cluster: &FakeCluster, count: usize, is_among_them: bool) {
    let listed = async {
        loop {
            let listed = cluster.node(1).listed.lock().expect("no panic").clone();
            if listed.len() == count && listed.iter().any(|name| name == TOPIC) == is_among_them {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    within(listed).await;
}

#[tokio::test]
async fn brokers_tell_of_the_topics_in_use_and_of_a_few_others() {
    /// As the client has it.
    const UNUSED_MAX: usize = 256;
    let cluster = FakeCluster::start(&["a"], 1).await;
    let client = cluster.client().await;
    let mut consumer = reader(&client).await;
    let producer = client.producer(TOPIC).build().await.expect("a producer");
    name_others(&client, UNUSED_MAX + 20).await;
    are_listed(&cluster, UNUSED_MAX + 1, true).await;
    drop(producer);
    name_others(&client, UNUSED_MAX + 20).await;
    are_listed(&cluster, UNUSED_MAX + 1, true).await;
    fill_and_read(&cluster, &client, &mut consumer, 10).await;

    // Nobody uses it, and many others were named since.
    consumer.remove(partition(0));
    name_others(&client, 2 * UNUSED_MAX).await;
    are_listed(&cluster, UNUSED_MAX, false).await;
    // What is known of it by now is no longer pushed: it is asked for.
    cluster.model.elect(0, 0);
    assert_eq!(client.topic_metadata(TOPIC).await.expect("known").partitions[0].leader, None);
    are_listed(&cluster, UNUSED_MAX, true).await;

    // One that nobody uses is forgotten when it goes.
    cluster.model.delete();
    are_listed(&cluster, UNUSED_MAX - 1, false).await;
}
