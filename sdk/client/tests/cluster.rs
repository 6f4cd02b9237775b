//! Producers and requests with several brokers, whose leaders change, die and come back.

mod fake;

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use fake::{FakeCluster, PATIENCE, TOPIC, value, within};
use tidemill_client::messages::Metadata;
use tidemill_client::{
    BatchBuilder, BrokerId, BuilderOptions, Client, Delivery, DeliveryError, PartitionId, Producer, Receipt,
    Record, Timestamp,
};

async fn three(partitions: u32) -> FakeCluster {
    FakeCluster::start(&["a", "b", "c"], partitions).await
}

/// Sends one record in a batch of its own.
async fn send(producer: &Producer, partition: Option<u32>, number: usize) -> Delivery {
    let mut batch = BatchBuilder::new(BuilderOptions::default());
    batch.append(Timestamp::new(1), None, Some(value(number).as_bytes()), []).expect("room");
    let batch = batch.build_batch().expect("a record");
    producer.send_batch(partition.map(PartitionId::new), batch).await.expect("taken")
}

/// Sends records, a batch each and a few at a time, while something happens; answers how many. All of them are stored.
async fn send_while(producer: &Producer, partition: Option<u32>, happens: impl Future<Output = ()>) -> usize {
    let mut happens = std::pin::pin!(happens);
    let mut deliveries = Vec::new();
    loop {
        for _ in 0..3 {
            deliveries.push(send(producer, partition, deliveries.len()).await);
        }
        tokio::select! {
            () = &mut happens => break,
            () = tokio::time::sleep(Duration::from_millis(1)) => {}
        }
    }
    let count = deliveries.len();
    for delivery in deliveries {
        within(delivery).await.expect("stored");
    }
    count
}

fn values(count: usize) -> Vec<String> {
    (0..count).map(value).collect()
}

async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let waiting = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("in vain: {what}"));
}

/// A producer sends while something happens to the brokers: everything is there once, in order.
async fn once_and_in_order(
    cluster: &FakeCluster,
    client: &Client,
    happens: impl Future<Output = ()>,
) -> usize {
    let producer = client.producer(TOPIC).build().await.expect("a producer");
    let count = send_while(&producer, Some(0), happens).await;
    assert_eq!(cluster.model.values(0), values(count));
    count
}

#[tokio::test]
async fn a_leader_that_dies_without_a_word_costs_no_record() {
    let cluster = three(1).await;
    let client = cluster.client().await;
    let dies = async {
        until("some are stored", || cluster.model.values(0).len() > 100).await;
        cluster.kill(1);
        tokio::time::sleep(Duration::from_millis(300)).await;
        cluster.model.elect(0, 0);
        tokio::time::sleep(Duration::from_millis(200)).await;
        let stored = cluster.model.values(0).len();
        cluster.model.elect(0, 2);
        let elected = Instant::now();
        until("the new leader stores", || cluster.model.values(0).len() > stored).await;
        eprintln!("the first record after the election: {:?}", elected.elapsed());
        assert!(elected.elapsed() < Duration::from_secs(5));
    };
    once_and_in_order(&cluster, &client, dies).await;
}

/// Nobody pushes anything: who leads has to be asked for.
#[tokio::test]
async fn a_new_leader_is_found_by_asking_round() {
    let cluster = three(1).await;
    (1..=3).for_each(|id| cluster.node(id).pushes.store(false, Ordering::Relaxed));
    let client = cluster.client().await;
    let dies = async {
        until("some are stored", || cluster.model.values(0).len() > 100).await;
        cluster.kill(1);
        cluster.model.elect(0, 3);
        let (stored, elected) = (cluster.model.values(0).len(), Instant::now());
        until("the new leader stores", || cluster.model.values(0).len() > stored).await;
        eprintln!("the first record after a silent death: {:?}", elected.elapsed());
        assert!(elected.elapsed() < Duration::from_secs(10));
    };
    once_and_in_order(&cluster, &client, dies).await;
}

#[tokio::test]
async fn leaders_change_again_and_again_under_load() {
    let cluster = three(1).await;
    let client = cluster.client().await;
    let changes = async {
        for round in 0..30 {
            let stored = cluster.model.values(0).len();
            cluster.model.elect(0, [2, 0, 3, 1][round % 4]);
            if round % 4 != 1 {
                until("the leader stores", || cluster.model.values(0).len() > stored).await;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        cluster.model.elect(0, 1);
    };
    once_and_in_order(&cluster, &client, changes).await;
    let leaders: BTreeSet<u32> =
        cluster.model.opened.lock().expect("no panic").iter().map(|(broker, ..)| *broker).collect();
    assert_eq!(leaders, BTreeSet::from([1, 2, 3]));
}

/// A broker that is cut off from this client alone: it leads as before, and others forward to it.
#[tokio::test]
async fn a_leader_out_of_reach_is_reached_by_way_of_others() {
    let cluster = three(1).await;
    (2..=3).for_each(|id| cluster.node(id).forwards.store(true, Ordering::Relaxed));
    let client = cluster.client().await;
    let cut = async {
        until("some are stored", || cluster.model.values(0).len() > 100).await;
        cluster.node(1).silent.store(true, Ordering::Relaxed);
        let stored = cluster.model.values(0).len();
        until("another forwards", || cluster.model.values(0).len() > stored + 20).await;
        cluster.node(1).silent.store(false, Ordering::Relaxed);
    };
    let mut number = once_and_in_order(&cluster, &client, cut).await;
    // Nothing but time brings the lane back: its leader is the same as before.
    let producer = client.producer(TOPIC).build().await.expect("a producer");
    let opened = || cluster.model.opened.lock().expect("no panic").last().map(|(broker, ..)| *broker);
    let returning = async {
        while opened() != Some(1) {
            within(send(&producer, Some(0), number).await).await.expect("stored");
            number += 1;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    within(returning).await;
    assert_eq!(cluster.model.values(0), values(number));
}

#[tokio::test]
async fn a_broker_that_comes_back_leads_again() {
    let cluster = three(1).await;
    let client = cluster.client().await;
    let restarts = async {
        for _ in 0..3 {
            let stored = cluster.model.values(0).len();
            cluster.kill(1);
            cluster.model.elect(0, 2);
            until("another leads", || cluster.model.values(0).len() > stored).await;
            cluster.revive(1);
            tokio::time::sleep(Duration::from_millis(100)).await;
            let stored = cluster.model.values(0).len();
            cluster.model.elect(0, 1);
            until("the first leads again", || cluster.model.values(0).len() > stored).await;
        }
    };
    once_and_in_order(&cluster, &client, restarts).await;
}

#[tokio::test]
async fn what_one_broker_has_not_heard_of_takes_nothing_back() {
    let cluster = three(1).await;
    // Broker 3 remembers another leader, and broker 2 has never heard of the topic; both think themselves ahead of the others.
    let mut old = cluster.model.metadata();
    old.version = 1_000;
    *cluster.node(3).stale.lock().expect("no panic") = Some(old);
    let client = cluster.client().await;
    client.topic_metadata(TOPIC).await.expect("known");
    *cluster.node(2).stale.lock().expect("no panic") =
        Some(Metadata { version: 0, topics: vec![fake::unknown_topic()], ..cluster.model.metadata() });
    let changes = async {
        until("some are stored", || cluster.model.values(0).len() > 100).await;
        cluster.model.elect(0, 2);
        cluster.model.opened.lock().expect("no panic").clear();
        for _ in 0..20 {
            cluster.model.version.send_modify(|version| *version += 1);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    once_and_in_order(&cluster, &client, changes).await;
    let opened = cluster.model.opened.lock().expect("no panic").clone();
    let beside: Vec<_> = opened.iter().filter(|(broker, ..)| *broker != 2).collect();
    // Before the news of the election got through the old leader may have been tried.
    assert!(beside.len() <= 3, "{opened:?}");
    assert_eq!(
        client.topic_metadata(TOPIC).await.expect("known").partitions[0].leader,
        Some(BrokerId::new(2))
    );
}

#[tokio::test]
async fn without_sequences_nothing_is_appended_under_another_leader_and_the_order_stands() {
    let cluster = three(1).await;
    let client = cluster.client().await;
    let producer = client.producer(TOPIC).idempotent(false).build().await.expect("a producer");
    let changes = async {
        for round in 0..8 {
            let stored = cluster.model.values(0).len();
            cluster.model.elect(0, [2, 3, 1][round % 3]);
            until("the leader stores", || cluster.model.values(0).len() > stored).await;
        }
    };
    let count = send_while(&producer, Some(0), changes).await;
    // Some may be there twice, none is missing, and none comes before one that was sent before it.
    let mut seen = BTreeSet::new();
    let firsts: Vec<_> =
        cluster.model.values(0).into_iter().filter(|value| seen.insert(value.clone())).collect();
    assert_eq!(firsts, values(count));
    let opened = cluster.model.opened.lock().expect("no panic").clone();
    let leads = |(broker, _, epoch): &&(u32, u32, i32)| *epoch >= 0 && [1, 2, 3].contains(broker);
    assert!(opened.iter().filter(leads).count() >= 3, "pinned to the leaders that are known: {opened:?}");
}

#[tokio::test]
async fn routed_records_go_by_way_of_whoever_answers() {
    let cluster = three(1).await;
    let client = cluster.client().await;
    let producer = client.producer(TOPIC).routed().build().await.expect("a producer");
    let dying = async {
        for round in 0..2 {
            let stored = cluster.model.values(0).len();
            until("some are stored", || cluster.model.values(0).len() > stored + 50).await;
            // Whoever has the stream goes: once without a word, once with one.
            let busy =
                (1..=3).max_by_key(|id| cluster.node(*id).routed.load(Ordering::Relaxed)).expect("one");
            (1..=3).for_each(|id| cluster.node(id).routed.store(0, Ordering::Relaxed));
            if round == 0 {
                cluster.silence(busy)
            } else {
                cluster.close(busy)
            }
            let died = Instant::now();
            until("another takes over", || {
                (1..=3).any(|id| cluster.node(id).routed.load(Ordering::Relaxed) > 0)
            })
            .await;
            eprintln!("routed by another after {:?}", died.elapsed());
            assert!(died.elapsed() < Duration::from_secs(10));
        }
    };
    let count = send_while(&producer, None, dying).await;
    assert_eq!(cluster.model.values(0), values(count));
}

#[tokio::test]
async fn a_deadline_holds_whatever_the_brokers_do() {
    let cluster = three(1).await;
    let client = cluster.client().await;
    let timeout = Duration::from_millis(800);
    let producer = client.producer(TOPIC).delivery_timeout(timeout).build().await.expect("a producer");
    within(send(&producer, Some(0), 0).await).await.expect("stored");
    (1..=3).for_each(|id| cluster.silence(id));
    let begun = Instant::now();
    let delivery = send(&producer, Some(0), 1).await;
    let error = within(delivery).await.expect_err("nobody answers");
    assert!(matches!(error, DeliveryError::TimedOut { .. }), "{error}");
    assert!(begun.elapsed() >= timeout && begun.elapsed() < timeout * 5, "after {:?}", begun.elapsed());

    // Nobody leads, and everybody says so.
    (1..=3).for_each(|id| cluster.unsilence(id));
    cluster.model.elect(0, 0);
    let delivery = send(&producer, Some(0), 2).await;
    let error = within(delivery).await.expect_err("nobody leads");
    assert!(matches!(error, DeliveryError::TimedOut { .. }), "{error}");
    cluster.model.elect(0, 3);
    let delivery = send(&producer, Some(0), 3).await;
    assert!(matches!(within(delivery).await, Ok(Receipt::Stored { .. })));
}

#[tokio::test]
async fn a_dead_address_holds_up_nobody() {
    let cluster = three(1).await;
    cluster.kill(1);
    // Longer than the test may take: whoever waits for the first address fails.
    let client = Client::connect(cluster.config().connect_timeout(PATIENCE * 2));
    let client = within(client).await.expect("another answers");
    assert_eq!(within(client.topics().list()).await, Ok(vec![TOPIC.to_owned()]));
    // The leader is the dead one, and then another.
    let producer = within(client.producer(TOPIC).build()).await.expect("a producer");
    let delivery = send(&producer, Some(0), 0).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    cluster.model.elect(0, 2);
    within(delivery).await.expect("stored");
}

#[tokio::test]
async fn requests_go_to_another_broker_when_theirs_is_gone() {
    let cluster = three(1).await;
    let client = cluster.client().await;
    client.topic_metadata(TOPIC).await.expect("known");
    let connected = || async {
        // One request shows whom the next ones go to.
        (1..=3).for_each(|id| cluster.node(id).requests.store(0, Ordering::Relaxed));
        client.topics().list().await.expect("answered");
    };
    let busiest =
        || (1..=3).max_by_key(|id| cluster.node(*id).requests.load(Ordering::Relaxed)).expect("one");
    let quick = Duration::from_secs(5);
    for round in 0..2 {
        connected().await;
        let asked = busiest();
        let begun = Instant::now();
        if round == 0 {
            cluster.silence(asked)
        } else {
            cluster.close(asked)
        }
        assert_eq!(within(client.topics().list()).await, Ok(vec![TOPIC.to_owned()]));
        eprintln!("answered by another after {:?}", begun.elapsed());
        assert!(begun.elapsed() < quick, "{:?}", begun.elapsed());
        if round == 0 {
            cluster.unsilence(asked);
        }
    }
}

/// Two of three refuse, in whatever order they are asked and whichever of them was asked before.
#[tokio::test]
async fn a_request_gets_to_the_one_broker_that_takes_it() {
    let cluster = three(1).await;
    for _ in 0..3 {
        let client = cluster.client().await;
        client.topic_metadata(TOPIC).await.expect("known");
        for willing in [1, 2, 3, 1, 3, 2] {
            for id in 1..=3 {
                cluster.node(id).refuses.store(id != willing, Ordering::Relaxed);
                cluster.node(id).requests.store(0, Ordering::Relaxed);
            }
            assert_eq!(within(client.topics().list()).await, Ok(vec![TOPIC.to_owned()]), "by {willing}");
            assert!(cluster.node(willing).requests.load(Ordering::Relaxed) > 0);
        }
        (1..=3).for_each(|id| cluster.node(id).refuses.store(false, Ordering::Relaxed));
    }
}

#[tokio::test]
async fn one_that_goes_away_gets_nothing_new() {
    let cluster = three(1).await;
    let client = cluster.client().await;
    let leaves = async {
        until("some are stored", || cluster.model.values(0).len() > 100).await;
        // As a broker does that stops: its leads are others' by then.
        cluster.model.elect(0, 2);
        cluster.node(1).leaving.send_modify(|leaving| *leaving += 1);
        tokio::time::sleep(Duration::from_millis(300)).await;
        cluster.node(1).requests.store(0, Ordering::Relaxed);
        cluster.model.opened.lock().expect("no panic").clear();
        for _ in 0..10 {
            within(client.topics().list()).await.expect("answered");
        }
        cluster.close(1);
    };
    once_and_in_order(&cluster, &client, leaves).await;
    assert_eq!(cluster.node(1).requests.load(Ordering::Relaxed), 0);
    let opened = cluster.model.opened.lock().expect("no panic").clone();
    assert!(opened.iter().all(|(broker, ..)| *broker != 1), "{opened:?}");
}

#[tokio::test]
async fn many_partitions_move_together() {
    const PARTITIONS: u32 = 60;
    let cluster = three(PARTITIONS).await;
    (0..PARTITIONS as usize).for_each(|partition| cluster.model.elect(partition, 1 + partition as u32 % 3));
    let client = cluster.client().await;
    let producer = client.producer(TOPIC).build().await.expect("a producer");
    let send_all = async |from: usize| {
        let mut deliveries = Vec::new();
        for number in from..from + 10 {
            for partition in 0..PARTITIONS {
                deliveries.push(send(&producer, Some(partition), number).await);
            }
        }
        for delivery in deliveries {
            within(delivery).await.expect("stored");
        }
    };
    send_all(0).await;
    cluster.kill(2);
    let dead_leads = (0..PARTITIONS as usize).filter(|partition| partition % 3 == 1);
    dead_leads.for_each(|partition| cluster.model.elect(partition, 1 + (partition as u32 / 3 % 2) * 2));
    let begun = Instant::now();
    send_all(10).await;
    eprintln!("{PARTITIONS} partitions went on after {:?}", begun.elapsed());
    (0..PARTITIONS as usize).for_each(|partition| assert_eq!(cluster.model.values(partition), values(20)));
}

#[tokio::test]
async fn the_cluster_is_changed_through_any_broker() {
    let cluster = three(1).await;
    let client = cluster.client().await;
    let token = client.create_join_token(Some(BrokerId::new(4)), Some(PATIENCE)).await.expect("a token");
    assert_eq!((token.token.as_str(), token.expires_at), ("tmj1.4", PATIENCE.as_millis() as i64));
    client.drain_broker(BrokerId::new(2), false).await.expect("drained");
    client.drain_broker(BrokerId::new(2), true).await.expect("and not any more");
    client.remove_broker(BrokerId::new(2)).await.expect("removed");
    client.alter_cluster(Some(PATIENCE), Some(50_000_000)).await.expect("altered");
    let metadata = client.metadata().await.expect("metadata");
    assert_eq!((metadata.brokers.len(), metadata.topics.len()), (3, 1));
    assert!(matches!(send_one(&client).await, Ok(Receipt::Stored { .. })));
}

async fn send_one(client: &Client) -> Result<Receipt, DeliveryError> {
    let producer = client.producer(TOPIC).build().await.expect("a producer");
    within(producer.send(Record::new("one")).await.expect("taken")).await
}
