//! The chapter in which a leader is killed.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use tidemill_client::{Client, Delivery, Record};
use tidemill_cluster_tests::reading::{self, ByPartition, read_all};
use tidemill_cluster_tests::{Outcome, TestBroker, TestCluster};
use tokio::sync::mpsc;

use crate::chapters::{self, COUNTER, TOPIC};
use crate::counts;
use crate::facts::{Event, Inventory, Plays};
use crate::narrator::{Narrator, grouped, time};
use crate::readers::LiveReader;

const EVENTS: usize = 30_000;
/// Between events, so that the kill falls among them.
const PACE: (usize, Duration) = (300, Duration::from_millis(20));
/// The leader of the first partition is killed when so many of the events are acknowledged.
const KILLED_AFTER: u64 = 10_000;
const PENDING_MAX: usize = 50_000;

/// Kills a leader while events are produced, and looks at who goes on without it, and at what is left. `before` is what was there.
pub(crate) async fn play(
    narrator: &mut Narrator,
    client: &Client,
    cluster: &mut TestCluster,
    plays: &mut Plays,
    mut live: LiveReader,
    before: &ByPartition,
) -> Outcome<()> {
    narrator.chapter("kill -9, in the middle of it");
    let producer = client.producer(TOPIC).routed().build().await?;
    let (pending, outcomes) = mpsc::channel(PENDING_MAX);
    let (reached, mut count) = tokio::sync::watch::channel(0u64);
    let collecting = tokio::spawn(collect(outcomes, reached));
    let events: Vec<Event> = plays.by_ref().take(EVENTS).collect();
    let sending = {
        let producer = producer.clone();
        tokio::spawn(async move { send(&producer, events, pending).await })
    };
    count.wait_for(|acknowledged| *acknowledged >= KILLED_AFTER).await?;
    let killed_after = *count.borrow();
    let leader = client.topics().describe(TOPIC).await?.partitions.first().map_or(1, |first| first.leader);
    let victim = cluster.broker(leader).process_id().unwrap_or_default();
    cluster.broker(leader).kill().await?;
    let gone = Instant::now();
    let first = *count.borrow();
    // What was on its way when it died may still come in.
    count.wait_for(|acknowledged| *acknowledged > first + PACE.0 as u64).await?;
    let resumed = gone.elapsed();
    sending.await??;
    let collected = collecting.await?;
    let stats = producer.stats();
    narrator.tell(&format!(
        "{} more events were on their way. When {} of them were acknowledged, process {victim}, broker {leader}, which led a partition, was \
         killed with kill -9. The two others elected new leaders; {} after the kill the producer, which noticed by itself, had further \
         acknowledgements, having sent {} batches again.",
        grouped(EVENTS as u64),
        grouped(killed_after),
        time(resumed),
        stats.resent_batches,
    ));
    narrator.check(
        collected.failed == 0,
        format!("the producer has an acknowledgement for all {} events", grouped(EVENTS as u64)),
    );
    let all = chapters::EVENTS + collected.acknowledged.len() as u64;
    check_without(narrator, client, cluster.broker(leader), &mut live, all).await;
    let took = cluster.broker(leader).restart().await?;
    cluster.settled(client).await?;
    narrator.tell(&format!(
        "Only then was broker {leader} started again on its directory: it served after {}, and caught up with what it had missed.",
        time(took)
    ));
    let after = read_all(client, TOPIC).await?;
    let inventory = Inventory::of(&after);
    let expected: BTreeSet<u64> =
        (0..chapters::EVENTS).chain(collected.acknowledged.iter().copied()).collect();
    let lost = expected.difference(&inventory.numbers).count();
    narrator.check(
        lost == 0,
        format!("nothing is lost: all {} acknowledged events are there", grouped(expected.len() as u64)),
    );
    narrator.check(
        inventory.doubled == 0 && inventory.unreadable == 0,
        "nothing is doubled, though batches were sent twice",
    );
    narrator.check(
        inventory.reordered == 0 && inventory.scattered_users == 0,
        "every user's events are in order, in one partition",
    );
    let read = check_live(narrator, live, &expected).await?;
    compare(narrator, &read, &after, before);
    Ok(())
}

/// Before the killed broker comes back: who goes on does so with the two others alone.
async fn check_without(
    narrator: &mut Narrator,
    client: &Client,
    killed: &TestBroker,
    live: &mut LiveReader,
    all: u64,
) {
    let is_read = came(live.has_read(all).await);
    let is_counted = came(counts::have_reached(client, all).await);
    let is_away = killed.process_id().is_none();
    narrator.check(
        is_read && is_away,
        format!(
            "recommendations, still without the killed broker, got all {} acknowledged events",
            grouped(all)
        ),
    );
    narrator.check(
        is_counted && is_away,
        format!("{COUNTER}, still without it, has counted all of them, and what it emitted has arrived"),
    );
}

/// Whether it came; why not goes to the standard error.
fn came(outcome: Outcome<()>) -> bool {
    outcome.inspect_err(|error| eprintln!("{error}")).is_ok()
}

/// The reader that was open all along. Answers what it read.
async fn check_live(
    narrator: &mut Narrator,
    live: LiveReader,
    expected: &BTreeSet<u64>,
) -> Outcome<ByPartition> {
    let (read, stats) = live.finish().await?;
    let inventory = Inventory::of(&read);
    narrator.check(
        inventory.numbers == *expected && inventory.doubled == 0 && inventory.reordered == 0,
        format!(
            "recommendations, one consumer that was open all the time, got every event once and in order; it subscribed again \
             by itself ({})",
            if stats.reconnects == 1 { "once".to_owned() } else { format!("{} times", stats.reconnects) }
        ),
    );
    Ok(read)
}

/// What was written while a leader was killed: as it was read while that broker was away, and as it is read from the start once it is back.
fn compare(narrator: &mut Narrator, live: &ByPartition, after: &ByPartition, before: &ByPartition) {
    let from = chapters::ends(before);
    let live_digest = reading::digest(chapters::later_than(live, &from));
    let after_digest = reading::digest(chapters::later_than(after, &from));
    narrator.show(format!("read live   blake3 {}", live_digest.to_hex()));
    narrator.show(format!("read again  blake3 {}", after_digest.to_hex()));
    narrator.check(
        live_digest == after_digest,
        format!(
            "the {} events of this chapter, as recommendations got them live and as a reader from the start gets them now, are the same, \
             byte for byte",
            grouped(chapters::later_than(after, &from).count() as u64)
        ),
    );
}

async fn send(
    producer: &tidemill_client::Producer,
    events: Vec<Event>,
    pending: mpsc::Sender<(u64, Delivery)>,
) -> Outcome<()> {
    for (place, event) in events.iter().enumerate() {
        if place % PACE.0 == 0 {
            tokio::time::sleep(PACE.1).await;
        }
        let delivery = producer
            .send(Record::new(&event.play.to_json()).key(&event.key()).timestamp(event.timestamp()))
            .await?;
        pending.send((event.number, delivery)).await?;
    }
    Ok(())
}

#[derive(Debug, Default)]
struct Collected {
    acknowledged: BTreeSet<u64>,
    failed: u64,
}

async fn collect(
    mut outcomes: mpsc::Receiver<(u64, Delivery)>,
    reached: tokio::sync::watch::Sender<u64>,
) -> Collected {
    let mut collected = Collected::default();
    while let Some((number, delivery)) = outcomes.recv().await {
        match delivery.await {
            Ok(_) => {
                collected.acknowledged.insert(number);
                reached.send_replace(collected.acknowledged.len() as u64);
            }
            Err(error) => {
                eprintln!("event {number}: {error}");
                collected.failed += 1;
            }
        }
    }
    collected
}
