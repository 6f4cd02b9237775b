//! The chapters of the story, but for the crash.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tidemill_client::messages::FailurePolicy;
use tidemill_client::{
    Client, ConsumerRecord, NewDeployment, NewTopic, Offset, PartitionId, Position, Record, Start,
};
use tidemill_cluster_tests::plays::DEVICES;
use tidemill_cluster_tests::reading::{self, ByPartition, drain, read_all};
use tidemill_cluster_tests::waiting::caught_up;
use tidemill_cluster_tests::{BrokerOptions, Outcome, TestCluster, plugins};

use crate::counts;
use crate::crash;
use crate::facts::{Inventory, Plays};
use crate::narrator::{Narrator, grouped, rate, size, time};
use crate::readers;

pub(crate) const TOPIC: &str = "plays";
pub(crate) const PARTITIONS: u32 = 3;
pub(crate) const COUNTER: &str = "plays-per-song";
pub(crate) const TOP_SONGS: &str = "top-songs";
pub(crate) const EVENTS: u64 = 30_000;
const BROKERS: u32 = 3;
const SHARDS: u16 = 3;
/// For what is there to arrive and to be counted.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// Tells the whole story.
pub(crate) async fn play(narrator: &mut Narrator, keep: bool) -> Outcome<()> {
    narrator.tell(
        "Tidemill is a durable, replicated commit log in the shape of Apache Kafka: topics, partitions, offsets, consumer groups. \
         Clients reach it over QUIC, and small programs of yours (plugins, compiled to WebAssembly) run next to the log, where \
         otherwise you would run further services. This example starts three brokers, plays a music service on them, kills a \
         leader on the way, and checks every claim that it makes.",
    );
    narrator.chapter("Three brokers");
    let begun = Instant::now();
    let mut cluster = TestCluster::start(BROKERS, SHARDS, BrokerOptions::as_shipped()).await?;
    let client = cluster.client()?;
    cluster.settled(&client).await?;
    let where_ = if keep { cluster.keep() } else { cluster.directory() };
    let processes: Vec<String> =
        cluster.brokers().iter().filter_map(|broker| Some(broker.process_id()?.to_string())).collect();
    let addresses: Vec<String> =
        cluster.brokers().iter().map(|broker| broker.address().to_string()).collect();
    narrator.tell(&format!(
        "`tidemill cluster init` made a plan; processes {} serve on {} (UDP), each found the others by one seed, and every shard has a \
         leader after {}. What they know is in {}. Nothing else was installed: no ZooKeeper, no JVM.",
        processes.join(", "),
        addresses.join(", "),
        time(begun.elapsed()),
        where_.display()
    ));
    let mut plays = Plays::new();
    partitioner(narrator, &client, &mut plays).await?;
    let first_read = consumer(narrator, &client).await?;
    filter(narrator, &client, &first_read).await?;
    let (live, replay_from) = readers::play(narrator, &client, &first_read).await?;
    let before = replay(narrator, &client, &first_read, &replay_from).await?;
    crash::play(narrator, &client, &mut cluster, &mut plays, live, &first_read).await?;
    let after = reading_from(&client, &replay_from).await?;
    let digest = reading::digest(up_to(&after, &first_read));
    narrator.check(
        before == digest,
        format!("the replay of chapter 6 reads the same after the crash: {}", short(&digest)),
    );
    counts_after_all(narrator, &client).await?;
    farewell(narrator, &cluster, keep);
    Ok(())
}

/// Chapter: the broker places records, by a plugin.
async fn partitioner(narrator: &mut Narrator, client: &Client, plays: &mut Plays) -> Outcome<()> {
    narrator.chapter("The broker chooses the partition");
    client.topics().create(NewTopic::new(TOPIC, PARTITIONS)).await?;
    client.topics().create(NewTopic::new(TOP_SONGS, 2)).await?;
    let begun = Instant::now();
    let plugin = plugins::upload(client, "field-hash").await?;
    let uploaded = begun.elapsed();
    let deployment = NewDeployment::partitioner("by-user", "field-hash", TOPIC).set("field", "user_id");
    client.deployments().create(deployment).await?;
    narrator.tell(&format!(
        "Topic \"{TOPIC}\" has {PARTITIONS} partitions. Events of a user must stay in order, so they must share a partition; but the \
         records' keys are event numbers. With Kafka every producer would have to agree on a partitioner. Here the topic has \
         one: the plugin field-hash ({} of WebAssembly, uploaded, checked and compiled in {}), told to look at user_id.",
        size(plugin.size),
        time(uploaded)
    ));
    let producer = client.producer(TOPIC).routed().build().await?;
    let begun = Instant::now();
    for event in plays.by_ref().take(EVENTS as usize) {
        producer
            .send_and_forget(
                Record::new(&event.play.to_json()).key(&event.key()).timestamp(event.timestamp()),
            )
            .await?;
    }
    producer.flush().await?;
    let took = begun.elapsed();
    narrator.show(String::from_utf8_lossy(
        &Plays::new().next().map(|event| event.play.to_json()).unwrap_or_default(),
    ));
    narrator.tell(&format!(
        "{} events like this one were produced in {} ({}), each acknowledged only after it was on the disks of two of the three brokers \
         (fdatasync).",
        grouped(EVENTS),
        time(took),
        rate(EVENTS, took)
    ));
    let records = read_all(client, TOPIC).await?;
    let inventory = Inventory::of(&records);
    for (partition, records) in &records {
        let users = inventory.users_per_partition.get(partition).copied().unwrap_or(0);
        narrator.show(format!(
            "partition {partition}: {:>7} events of {users:>4} users",
            grouped(records.len() as u64)
        ));
    }
    narrator
        .check(inventory.numbers.len() as u64 == EVENTS, format!("all {} events are there", grouped(EVENTS)));
    narrator.check(inventory.scattered_users == 0, "every user's events lie in one partition");
    narrator.check(inventory.reordered == 0, "and in the order in which they were sent");
    Ok(())
}

/// Chapter: a hosted consumer. Answers the first read of the topic.
async fn consumer(narrator: &mut Narrator, client: &Client) -> Outcome<ByPartition> {
    narrator.chapter("A consumer that runs in the broker");
    plugins::upload(client, "count-by-field").await?;
    let begun = Instant::now();
    let deployment = NewDeployment::consumer(COUNTER, "count-by-field")
        .topic(TOPIC)
        .target(TOP_SONGS)
        .set("field", "song_id")
        .start(Position::Earliest)
        .policy(FailurePolicy::Pause);
    client.deployments().create(deployment).await?;
    let seen = caught_up(client, COUNTER, PARTITIONS as usize, PATIENCE).await?;
    let took = begun.elapsed();
    let events: i64 = seen.tasks.iter().flat_map(|task| &task.positions).map(|source| source.position).sum();
    narrator.tell(&format!(
        "The plugin count-by-field counts plays per song: deployed on \"{TOPIC}\" from its start, one task per partition, it had gone \
         through {} events after {}. Its counts are keyed state in the broker, and its new totals go to \"{TOP_SONGS}\". Input \
         position, state and output of a call are committed as one: a crash can lose or repeat none of them. No service, no \
         database, no deployment of your own.",
        grouped(u64::try_from(events).unwrap_or(0)),
        time(took)
    ));
    let records = read_all(client, TOPIC).await?;
    let inventory = Inventory::of(&records);
    for (song, plays) in inventory.top_songs().iter().take(5) {
        narrator.show(format!("{song:<10} {:>6} plays", grouped(*plays)));
    }
    counts::check(narrator, client, &inventory).await?;
    Ok(records)
}

/// Chapter: a subscription with a filter.
async fn filter(narrator: &mut Narrator, client: &Client, all: &ByPartition) -> Outcome<()> {
    narrator.chapter("A subscription that gets only what it wants");
    plugins::upload(client, "json-filter").await?;
    let device = DEVICES[DEVICES.len() - 1];
    let condition = format!("device == \"{device}\"");
    let mut consumer = client
        .consumer()
        .topic(TOPIC)
        .from(Start::Earliest)
        .filter("json-filter", [("where", condition.as_str())])
        .stop_at_end()
        .build()
        .await?;
    let mut matched = 0;
    let mut matched_bytes = 0;
    let mut is_right = true;
    while let Some(record) = consumer.next().await {
        let record = record?;
        let value = record.value.as_deref().unwrap_or_default();
        matched += 1;
        matched_bytes += (value.len() + record.key.as_deref().map_or(0, <[u8]>::len)) as u64;
        is_right &= serde_json::from_slice::<serde_json::Value>(value)?["device"] == device;
    }
    let stats = consumer.stats();
    narrator.tell(&format!(
        "A reader asks for plays on a {device} only: {condition}. The plugin json-filter looks at each record in the broker, \
         and what does not match never crosses the network."
    ));
    narrator.show(format!("read by the broker    {:>10}", size(stats.scanned_bytes)));
    narrator.show(format!(
        "matched               {:>10}  in {} of {} events",
        size(matched_bytes),
        grouped(matched),
        grouped(reading::count(all) as u64)
    ));
    narrator.show(format!(
        "sent to the reader    {:>10}  ({:.1} % of what was read)",
        size(stats.received_bytes),
        stats.received_bytes as f64 * 100.0 / stats.scanned_bytes.max(1) as f64
    ));
    let expected = all.values().flatten().filter(|record| {
        let value = record.value.as_deref().unwrap_or_default();
        serde_json::from_slice::<serde_json::Value>(value).is_ok_and(|value| value["device"] == device)
    });
    narrator.check(is_right && matched == expected.count() as u64, "exactly the matching events arrived");
    narrator.check(
        stats.received_bytes * 10 < stats.scanned_bytes,
        "and less than a tenth of the bytes was sent",
    );
    Ok(())
}

/// Chapter: the log can be read again. Answers the digest.
async fn replay(
    narrator: &mut Narrator,
    client: &Client,
    first: &ByPartition,
    from: &BTreeMap<u32, i64>,
) -> Outcome<blake3::Hash> {
    narrator.chapter("Reading again");
    let first_digest = reading::digest(later_than(first, from));
    let again = reading_from(client, from).await?;
    let again_digest = reading::digest(again.values().flatten());
    narrator.tell(&format!(
        "A log keeps what was read. Going back to where royalties are and reading to the end gives the same {} records: offsets, \
         timestamps, keys, values, headers.",
        grouped(reading::count(&again) as u64)
    ));
    narrator.show(format!("first read  blake3 {}", first_digest.to_hex()));
    narrator.show(format!("read again  blake3 {}", again_digest.to_hex()));
    narrator.check(first_digest == again_digest, "both reads are the same, byte for byte");
    Ok(again_digest)
}

async fn reading_from(client: &Client, from: &BTreeMap<u32, i64>) -> Outcome<ByPartition> {
    let mut all = ByPartition::new();
    for (partition, offset) in from {
        let partition = PartitionId::new(*partition);
        let consumer = client
            .consumer()
            .topic(TOPIC)
            .partitions([partition])
            .from(Start::Offset(Offset::new(*offset)))
            .stop_at_end();
        all.extend(drain(consumer.build().await?).await?);
    }
    Ok(all)
}

/// Where each partition ended when it was read.
pub(crate) fn ends(records: &ByPartition) -> BTreeMap<u32, i64> {
    let end = |records: &[ConsumerRecord]| records.last().map_or(0, |last| last.offset.get() + 1);
    records.iter().map(|(partition, records)| (*partition, end(records))).collect()
}

/// Records from these offsets on.
pub(crate) fn later_than<'a>(
    records: &'a ByPartition,
    from: &'a BTreeMap<u32, i64>,
) -> impl Iterator<Item = &'a ConsumerRecord> {
    records.iter().flat_map(|(partition, records)| {
        let from = from.get(partition).copied().unwrap_or(0);
        records.iter().filter(move |record| record.offset.get() >= from)
    })
}

/// Of a later read, what was there at an earlier one.
fn up_to<'a>(later: &'a ByPartition, earlier: &'a ByPartition) -> impl Iterator<Item = &'a ConsumerRecord> {
    later.iter().flat_map(|(partition, records)| {
        let end =
            earlier.get(partition).and_then(|records| records.last()).map_or(-1, |last| last.offset.get());
        records.iter().filter(move |record| record.offset.get() <= end)
    })
}

fn short(digest: &blake3::Hash) -> String {
    digest.to_hex().chars().take(16).collect::<String>() + "…"
}

/// After the crash: the counts go on where they were.
async fn counts_after_all(narrator: &mut Narrator, client: &Client) -> Outcome<()> {
    let records = read_all(client, TOPIC).await?;
    counts::have_reached(client, reading::count(&records) as u64).await?;
    counts::check(narrator, client, &Inventory::of(&records)).await
}

fn farewell(narrator: &mut Narrator, cluster: &TestCluster, keep: bool) {
    let (checks, failed) = (narrator.checks(), narrator.failed());
    narrator.chapter("What to try next");
    if failed == 0 {
        narrator.tell(&format!("All {checks} checks hold."));
    } else {
        narrator.tell(&format!("{failed} of {checks} checks FAILED."));
    }
    if keep {
        narrator.tell(&format!("The brokers' directories are left in {}.", cluster.directory().display()));
    }
    let start = "tidemill dev".to_owned();
    let (begin, broker_is) = ("tidemill topic create plays --partitions 3", "a broker of your own");
    for (command, what) in [
        ("cargo install --locked --path broker/cli", "the command line"),
        (start.as_str(), broker_is),
        (begin, "in another terminal"),
        ("echo '{\"song_id\":\"s-17\"}' | tidemill produce plays", "a record per line"),
        ("tidemill consume plays --from earliest --follow", ""),
        (
            "tidemill plugin new my-filter --kind filter",
            "a plugin of ten lines that builds and whose test passes",
        ),
        ("tidemill deploy consumer --help", "what the broker can run for you"),
        ("tidemill cluster init --help", "three brokers of your own"),
        ("cargo xtask chaos --minutes 15", "what chapter 7 did, for a quarter of an hour"),
    ] {
        narrator.show(format!("{command:<52} {what}").trim_end());
    }
    if !keep {
        narrator.tell(
            "The brokers of this example are stopped and their directories removed; --keep leaves them.",
        );
    }
}
