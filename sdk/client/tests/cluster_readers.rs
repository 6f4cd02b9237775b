//! Readers with several brokers, whose leaders change, die, and lag.

mod fake;

use std::time::{Duration, Instant};

use fake::{FakeCluster, PATIENCE, TOPIC, topic_id, within};
use tidemill_client::{Client, Consumer, Offset, PartitionId, Position, Record, TopicId, TopicPartition};

fn partition(number: u32) -> TopicPartition {
    TopicPartition::new(TopicId::from_slice(&topic_id()).expect("an id"), PartitionId::new(number))
}

/// Puts a few records more, ten to a batch, into every partition.
async fn fill(cluster: &FakeCluster, client: &Client, count: usize) {
    let producer = client.producer(TOPIC).linger(PATIENCE).eager(false).build().await.expect("one");
    let first = cluster.model.logs[0].lock().expect("no panic").end as usize;
    for number in first..first + count {
        for partition in 0..cluster.model.logs.len() {
            let partition = PartitionId::new(partition as u32);
            let value = number.to_string();
            producer.send_and_forget(Record::new(&value).partition(partition)).await.expect("taken");
        }
        if number % 10 == 9 {
            within(producer.flush()).await.expect("stored");
        }
    }
    within(producer.close()).await.expect("stored");
}

/// Reads up to here, and checks that the records come once and in order.
async fn read(consumer: &mut Consumer, numbers: std::ops::Range<usize>) {
    for number in numbers {
        let record = within(consumer.next()).await.expect("more").expect("a record");
        assert_eq!(record.offset.get(), number as i64);
        assert_eq!(record.value.expect("a value"), number.to_string());
    }
}

fn last_read(cluster: &FakeCluster) -> Option<(u32, i64, i64)> {
    let reads = cluster.model.reads.lock().expect("no panic");
    reads.last().map(|(broker, _, offset, floor)| (*broker, *offset, *floor))
}

#[tokio::test]
async fn reading_goes_on_over_dead_leaders_without_gap_or_duplicate() {
    let cluster = FakeCluster::start(&["a", "b", "c"], 1).await;
    let client = cluster.client().await;
    fill(&cluster, &client, 100).await;
    let mut consumer = client.consumer().topic(TOPIC).from(Position::Earliest).build().await.expect("one");
    read(&mut consumer, 0..100).await;
    assert_eq!(last_read(&cluster).map(|(broker, ..)| broker), Some(1), "at the leader");

    // Without a word, with one, and behind a farewell.
    for (round, (dies, leads)) in [(1, 2), (2, 3), (3, 1)].into_iter().enumerate() {
        match round {
            0 => cluster.kill(dies),
            1 => cluster.close(dies),
            _ => cluster.node(dies).leaving.send_modify(|leaving| *leaving += 1),
        }
        let died = Instant::now();
        cluster.model.elect(0, leads);
        let end = 100 + 100 * round;
        let (filled, ()) = tokio::join!(fill(&cluster, &client, 100), read(&mut consumer, end..end + 100));
        let () = filled;
        eprintln!("read on after {:?}", died.elapsed());
        assert!(died.elapsed() < Duration::from_secs(10));
        let (broker, offset, floor) = last_read(&cluster).expect("it was read");
        assert_ne!(broker, dies);
        assert!(offset >= end as i64 && floor >= offset, "{offset}, {floor}");
        cluster.revive(dies);
    }
}

#[tokio::test]
async fn partitions_follow_their_leaders_after_a_while() {
    let cluster = FakeCluster::start(&["a", "b", "c"], 2).await;
    let client = cluster.client().await;
    fill(&cluster, &client, 20).await;
    let one = client.consumer().topic(TOPIC).partitions([PartitionId::new(0)]).from(Position::Earliest);
    let mut consumer = one.build().await.expect("a consumer");
    read(&mut consumer, 0..20).await;
    cluster.model.elect(0, 3);
    fill(&cluster, &client, 20).await;
    read(&mut consumer, 20..40).await;
    assert_eq!(last_read(&cluster), Some((1, -1, 0)), "it is read on where it was");
    let moved = async {
        while last_read(&cluster).is_some_and(|(broker, ..)| broker != 3) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    within(moved).await;
    assert_eq!(last_read(&cluster), Some((3, 40, 40)));
    fill(&cluster, &client, 20).await;
    read(&mut consumer, 40..60).await;
}

#[tokio::test]
async fn the_nearest_replica_is_read_and_one_that_lags_waits() {
    let cluster = FakeCluster::start(&["a", "b", "b"], 1).await;
    let client = Client::connect(cluster.config().rack("b")).await.expect("a connection");
    fill(&cluster, &client, 100).await;
    let mut consumer = client.consumer().topic(TOPIC).from(Position::Earliest).build().await.expect("one");
    read(&mut consumer, 0..100).await;
    let (near, ..) = last_read(&cluster).expect("it was read");
    assert!(near == 2 || near == 3, "in rack b, not at {near}");

    // The other one there is behind what was read: it waits until it has got so far.
    let other = 5 - near;
    cluster.node(other).reach(50);
    cluster.kill(near);
    let moved = async {
        while last_read(&cluster).is_some_and(|(broker, ..)| broker != other) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    within(moved).await;
    assert_eq!(last_read(&cluster), Some((other, 100, 100)));
    fill(&cluster, &client, 20).await;
    let early = tokio::time::timeout(Duration::from_millis(300), consumer.next()).await;
    assert!(early.is_err(), "{early:?}");
    assert_eq!(
        consumer.positions()[&partition(0)].high_watermark,
        Some(Offset::new(100)),
        "it does not go back"
    );
    cluster.node(other).reach(110);
    read(&mut consumer, 100..110).await;
    cluster.node(other).reach(i64::MAX);
    read(&mut consumer, 110..120).await;

    // Elsewhere there is no replica: at the leader.
    let elsewhere = client.consumer().topic(TOPIC).rack("nowhere").from(Position::Earliest).build();
    read(&mut elsewhere.await.expect("a consumer"), 0..10).await;
    assert_eq!(last_read(&cluster).map(|(broker, ..)| broker), Some(1));
}

/// What the client has not seen it can name no floor for: a replica that refuses it is not believed before the leader is asked.
#[tokio::test]
async fn a_position_ahead_of_a_replica_is_found_at_the_leader() {
    let cluster = FakeCluster::start(&["a", "b", "b"], 1).await;
    let client = cluster.client().await;
    fill(&cluster, &client, 100).await;
    cluster.node(2).reach(50);
    cluster.node(3).reach(50);
    let at = |offset| Position::Offset(Offset::new(offset));
    let mut consumer =
        client.consumer().topic(TOPIC).rack("b").from(at(80)).build().await.expect("a consumer");
    read(&mut consumer, 80..100).await;
    assert_eq!(last_read(&cluster), Some((1, 80, 0)));
    // Ahead of the leader, too.
    let mut consumer =
        client.consumer().topic(TOPIC).rack("b").from(at(500)).build().await.expect("a consumer");
    let refused = within(consumer.next()).await.expect("an error");
    assert!(matches!(refused, Err(tidemill_client::ConsumeError::OutOfRange { .. })), "{refused:?}");
}

/// Steps that follow from a seed.
struct Dice(u64);

impl Dice {
    fn throw(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

/// Brokers die with and without a word, fall silent, come back, say old news; leaders change all along.
async fn storm(cluster: &FakeCluster, partitions: usize, seed: u64) {
    let mut dice = Dice(seed);
    for _ in 0..40 {
        let id = 1 + dice.throw(3) as u32;
        let is_down = |id: u32| cluster.model.down.lock().expect("no panic").contains(&id);
        let others_live = (1..=3).filter(|other| *other != id && !is_down(*other)).count() > 0;
        match dice.throw(6) {
            0 if others_live && !is_down(id) => cluster.kill(id),
            1 if others_live && !is_down(id) => cluster.close(id),
            2 if others_live && !is_down(id) => {
                *cluster.node(id).stale.lock().expect("no panic") = Some(cluster.model.metadata());
            }
            3 if is_down(id) => cluster.revive(id),
            4 => *cluster.node(id).stale.lock().expect("no panic") = None,
            _ => {}
        }
        // As an election does it: nobody who is down leads for long, and some leads move for no reason.
        let leads = cluster.model.leads.lock().expect("no panic").clone();
        for (partition, (leader, _)) in (0..partitions).zip(leads) {
            if leader == 0 || is_down(leader) || dice.throw(4) == 0 {
                let next = 1 + dice.throw(3) as u32;
                cluster.model.elect(partition, if is_down(next) { 0 } else { next });
            }
        }
        tokio::time::sleep(Duration::from_millis(20 + dice.throw(150))).await;
    }
    for id in 1..=3 {
        *cluster.node(id).stale.lock().expect("no panic") = None;
        if cluster.model.down.lock().expect("no panic").contains(&id) {
            cluster.revive(id);
        }
    }
    (0..partitions).for_each(|partition| cluster.model.elect(partition, 1 + partition as u32 % 3));
}

#[tokio::test]
async fn a_storm_loses_doubles_and_reorders_nothing() {
    const PARTITIONS: usize = 4;
    for seed in 1..=3 {
        let cluster = FakeCluster::start(&["a", "b", "c"], PARTITIONS as u32).await;
        let (writer, reader) = (cluster.client().await, cluster.client().await);
        let producer = writer.producer(TOPIC).linger(Duration::ZERO).build().await.expect("a producer");
        let consumer = reader.consumer().topic(TOPIC).from(Position::Earliest).build();
        let mut consumer = consumer.await.expect("a consumer");
        let raging = storm(&cluster, PARTITIONS, seed);
        let writing = async {
            let mut raging = std::pin::pin!(raging);
            for number in 0.. {
                for partition in 0..PARTITIONS as u32 {
                    let (value, partition) = (number.to_string(), PartitionId::new(partition));
                    let record = Record::new(&value).partition(partition);
                    producer.send_and_forget(record).await.expect("taken");
                }
                let pause = tokio::time::sleep(Duration::from_millis(1));
                if tokio::time::timeout(Duration::from_millis(1), &mut raging).await.is_ok() {
                    within(producer.flush()).await.expect("stored");
                    return number + 1;
                }
                pause.await;
            }
            unreachable!("the storm ends")
        };
        let (counted, count) = (std::cell::Cell::new(None), std::cell::Cell::new([0; PARTITIONS]));
        let reading = async {
            loop {
                if counted.get().is_some_and(|written| count.get() == [written; PARTITIONS]) {
                    return;
                }
                let next = tokio::time::timeout(Duration::from_millis(100), consumer.next()).await;
                let Ok(next) = next else { continue };
                let record = next.expect("more").expect("a record");
                let mut counts = count.get();
                let expected = &mut counts[record.partition.get() as usize];
                assert_eq!(record.offset.get(), *expected, "seed {seed}, partition {}", record.partition);
                assert_eq!(record.value.expect("a value"), expected.to_string(), "seed {seed}");
                *expected += 1;
                count.set(counts);
            }
        };
        let writing = async { counted.set(Some(writing.await)) };
        let all = async { tokio::join!(writing, reading) };
        let ended = tokio::time::timeout(PATIENCE * 3, all).await;
        assert!(ended.is_ok(), "seed {seed}: {:?} written, {:?} read", counted.get(), count.get());
        let written = counted.get().expect("it ended");
        for partition in 0..PARTITIONS {
            assert_eq!(cluster.model.values(partition).len() as i64, written, "seed {seed}");
        }
    }
}
