//! With more brokers than replicas: every broker serves everything, also of shards that it has no replica of.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tidemill_client::messages::{ClusterStatus, Deployment};
use tidemill_client::{
    Client, Commit, NewDeployment, NewTopic, Offset, PartitionId, Position, Record, StateRange, Timestamp,
    TopicPartition,
};
use tidemill_cluster_tests::reading::{count, digest, read_all};
use tidemill_cluster_tests::waiting::caught_up;
use tidemill_cluster_tests::{BrokerOptions, Outcome, TestCluster, plugins};

use crate::load::{Load, Reader};

const BROKERS: u32 = 4;
const SHARDS: u16 = 4;
const PARTITIONS: u32 = 8;
/// Records that each client sends to each partition.
const RECORDS: u32 = 5;
const SONGS: u32 = 7;
const PATIENCE: Duration = Duration::from_secs(60);

/// A cluster whose brokers advertise addresses at which nobody answers, as behind a NAT, and for each broker a client that reaches this
/// one alone.
async fn cluster() -> Outcome<(TestCluster, Vec<Client>)> {
    let mut cluster = TestCluster::planned(BROKERS, SHARDS, BrokerOptions::default(), None).await?;
    cluster.start_planned(|broker, options| options.set("advertise", format!("127.0.0.1:{broker}"))).await?;
    let mut clients = Vec::new();
    for broker in cluster.brokers() {
        let config = cluster.client_config_at([broker.address().to_string()]).client_id("at one broker");
        clients.push(Client::detached(config.request_timeout(PATIENCE))?);
    }
    let status = cluster.settled(&clients[0]).await?;
    for broker in 1..=BROKERS {
        let holds = held(&status, broker);
        assert!(holds < usize::from(SHARDS), "broker {broker} has a replica of every shard: {status:#?}");
    }
    Ok((cluster, clients))
}

fn held(status: &ClusterStatus, broker: u32) -> usize {
    let data = status.placement.iter().filter(|shard| shard.shard != 0);
    data.filter(|shard| shard.replicas.iter().any(|replica| replica.broker_id == broker)).count()
}

async fn id_of(client: &Client, topic: &str) -> Outcome<Vec<TopicPartition>> {
    let described = client.topics().describe(topic).await?;
    let id = described.info.ok_or("no topic in its description")?.topic_id;
    let id = tidemill_protocol::TopicId::from_slice(&id).ok_or("no topic id")?;
    Ok((0..PARTITIONS).map(|partition| TopicPartition::new(id, PartitionId::new(partition))).collect())
}

fn play(number: u32) -> String {
    format!(r#"{{"song_id":"song-{}","number":{number}}}"#, number % SONGS)
}

/// Each client writes to every partition.
async fn produce(clients: &[Client]) -> Outcome<()> {
    clients[0].topics().create(NewTopic::new("plays", PARTITIONS)).await?;
    for client in clients {
        let producer = client.producer("plays").build().await?;
        for number in 0..RECORDS * PARTITIONS {
            let value = play(number);
            let record = Record::new(&value).partition(PartitionId::new(number % PARTITIONS));
            producer.send(record).await?.await?;
        }
    }
    Ok(())
}

/// All clients say the same.
async fn alike<T: PartialEq + std::fmt::Debug, F: Future<Output = Outcome<T>>>(
    what: &str,
    clients: &[Client],
    ask: impl Fn(Client) -> F,
) -> Outcome<T> {
    let mut first = None;
    for (broker, client) in (1..).zip(clients) {
        let said =
            ask(client.clone()).await.map_err(|error| format!("{what}, at broker {broker}: {error}"))?;
        match &first {
            None => first = Some(said),
            Some(first) => assert_eq!(first, &said, "{what}, at broker {broker}"),
        }
    }
    first.ok_or_else(|| "no client".into())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whichever_broker_a_client_reaches_answers_for_all_shards() -> Outcome<()> {
    let (_cluster, clients) = cluster().await?;
    produce(&clients).await?;
    let sent = usize::try_from(BROKERS * RECORDS * PARTITIONS)?;
    let read = alike("reading", &clients, async |client| {
        let read = read_all(&client, "plays").await?;
        Ok((count(&read), digest(read.values().flatten())))
    });
    assert_eq!(read.await?.0, sent);

    let partitions = id_of(&clients[3], "plays").await?;
    ends(&clients, &partitions).await?;
    groups(&clients, &partitions).await?;
    records_are_deleted(&clients, &partitions).await?;
    Ok(())
}

async fn ends(clients: &[Client], partitions: &[TopicPartition]) -> Outcome<()> {
    let end = i64::from(BROKERS * RECORDS);
    for (position, expected) in [
        (Position::Latest, end),
        (Position::Earliest, 0),
        (Position::Offset(Offset::new(3)), 3),
        (Position::Time(Timestamp::new(0)), 0),
    ] {
        let queries: Vec<_> = partitions.iter().map(|partition| (*partition, position)).collect();
        let found = alike("offsets", clients, async |client| {
            let found = client.offsets().find(&queries).await?;
            Ok(found.into_iter().collect::<Result<Vec<_>, _>>()?)
        });
        assert!(found.await?.iter().all(|found| found.offset.get() == expected), "{position:?}");
    }
    let described = alike("a description", clients, async |client| {
        let described = client.topics().describe("plays").await?;
        let ends = described.partitions.iter().map(|partition| {
            (partition.partition, partition.shard, partition.log_start_offset, partition.high_watermark)
        });
        Ok(ends.collect::<Vec<_>>())
    });
    let described = described.await?;
    assert!(described.iter().all(|(.., start, high_watermark)| (*start, *high_watermark) == (0, end)));
    let shards: BTreeSet<u32> = described.iter().map(|(_, shard, ..)| *shard).collect();
    assert_eq!(shards.len(), usize::from(SHARDS), "the topic lies in every shard");
    Ok(())
}

/// Each client commits positions of all partitions, for groups that live in all shards; beyond the ends none is taken.
async fn groups(clients: &[Client], partitions: &[TopicPartition]) -> Outcome<()> {
    let mut names = Vec::new();
    for (broker, client) in (1..=BROKERS).zip(clients) {
        for number in 0..6 {
            let name = format!("readers-{broker}-{number}");
            let at = Offset::new(i64::from(broker + number) % 5);
            let commits: Vec<Commit> =
                partitions.iter().map(|partition| Commit::new(*partition, at)).collect();
            client.groups().commit(&name, &commits).await?;
            names.push(name);
        }
        for partition in partitions {
            let beyond = Commit::new(*partition, Offset::new(1_000));
            let refused = client.groups().commit("beyond", &[beyond]).await;
            assert_eq!(
                refused.expect_err("it lies beyond the end").code(),
                Some(tidemill_client::ErrorCode::OffsetOutOfRange.code())
            );
        }
    }
    names.sort();
    let listed = alike("a list of groups", clients, async |client| Ok(client.groups().list().await?));
    assert_eq!(listed.await?, names);
    for name in &names {
        let described = alike("a group", clients, async |client| Ok(client.groups().positions(name).await?));
        assert_eq!(described.await?.len(), partitions.len());
    }
    for (number, name) in names.iter().enumerate() {
        clients[number % clients.len()].groups().delete(name).await?;
    }
    let listed = alike("a list of groups", clients, async |client| Ok(client.groups().list().await?));
    assert_eq!(listed.await?, Vec::<String>::new());
    Ok(())
}

async fn records_are_deleted(clients: &[Client], partitions: &[TopicPartition]) -> Outcome<()> {
    for (number, client) in (1..).zip(clients) {
        for partition in partitions {
            let before = Offset::new(number);
            let start = client.topics().delete_records("plays", partition.partition, before).await?;
            assert_eq!(start, before);
        }
    }
    let starts = alike("the starts", clients, async |client| {
        let queries: Vec<_> = partitions.iter().map(|partition| (*partition, Position::Earliest)).collect();
        let found = client.offsets().find(&queries).await?;
        Ok(found.into_iter().collect::<Result<Vec<_>, _>>()?)
    });
    assert!(starts.await?.iter().all(|found| found.offset.get() == i64::from(BROKERS)));
    Ok(())
}

/// The brokers behind the one that is asked die one after the other. What goes through it, to them and from them, goes on, and nothing is
/// lost, doubled or reordered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn those_who_are_asked_behind_a_broker_may_die() -> Outcome<()> {
    let (mut cluster, clients) = cluster().await?;
    let client = &clients[0];
    let mut load = Load::start(client, "plays", PARTITIONS).await?;
    let reader = Reader::start(client, "plays").await?;
    for broker in 2..=BROKERS {
        cluster.broker(broker).kill().await?;
        load.goes_on().await?;
        cluster.broker(broker).restart().await?;
        cluster.settled(client).await?;
    }
    let acknowledged = load.check(client).await?;
    reader.has_all(acknowledged).await?;
    Ok(())
}

/// The broker places what each client sends, a hosted consumer counts it, and its outputs go to shards that its own broker may lack.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_are_placed_counted_and_sent_on_whichever_broker_is_asked() -> Outcome<()> {
    let (_cluster, clients) = cluster().await?;
    plugins::upload(&clients[2], "count-by-field").await?;
    plugins::upload(&clients[1], "field-hash").await?;
    clients[1].topics().create(NewTopic::new("plays", PARTITIONS)).await?;
    clients[2].topics().create(NewTopic::new("counts", PARTITIONS)).await?;
    let by_song = NewDeployment::partitioner("by-song", "field-hash", "plays").set("field", "song_id");
    clients[0].deployments().create(by_song).await?;
    let counter = NewDeployment::consumer("songs", "count-by-field")
        .topic("plays")
        .target("counts")
        .set("field", "song_id")
        .start(Position::Earliest);
    let made = clients[3].deployments().create(counter).await?;
    assert_eq!(
        made.tasks.len(),
        usize::try_from(PARTITIONS)?,
        "its tasks are there when it is made: {made:?}"
    );
    for client in &clients {
        let producer = client.producer("plays").routed().build().await?;
        for number in 0..70 {
            producer.send(Record::new(&play(number))).await?.await?;
        }
    }
    let expected: BTreeMap<String, String> =
        (0..SONGS).map(|song| (format!("total:\"song-{song}\""), (10 * BROKERS).to_string())).collect();

    let tasks = usize::try_from(PARTITIONS)?;
    for client in &clients {
        caught_up(client, "songs", tasks, PATIENCE).await?;
    }
    let scanned = alike("a scan", &clients, async |client| {
        let entries = client.state("songs").scan(StateRange::default()).await?.entries;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok(entries.iter().map(|entry| (text(&entry.key), text(&entry.value))).collect::<BTreeMap<_, _>>())
    });
    assert_eq!(scanned.await?, expected);
    for (key, total) in &expected {
        let found = alike("a key", &clients, async |client| {
            let entries = client.state("songs").get(key.clone(), None).await?;
            Ok(entries.into_iter().map(|entry| (entry.partition, entry.value)).collect::<Vec<_>>())
        });
        let found = found.await?;
        assert_eq!(found.len(), 1, "a song is counted by one task");
        assert_eq!(found[0].1, total.as_bytes());
    }
    let described = alike("a deployment", &clients, async |client| {
        Ok(tasks_of(&client.deployments().describe("songs").await?))
    });
    assert_eq!(described.await?.len(), tasks);
    alike("a list of deployments", &clients, async |client| {
        Ok(client.deployments().list().await?.iter().map(tasks_of).collect::<Vec<_>>())
    })
    .await?;
    let counts = alike("the counts", &clients, async |client| {
        let read = read_all(&client, "counts").await?;
        let mut last: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
        for record in read.values().flatten() {
            let part = |part: &Option<bytes::Bytes>| part.as_deref().unwrap_or_default().to_vec();
            last.insert(part(&record.key), part(&record.value));
        }
        Ok((digest(read.values().flatten()), last))
    });
    let (_, last) = counts.await?;
    assert_eq!(last.len(), usize::try_from(SONGS)?);
    let total = format!("\"count\":{}", 10 * BROKERS);
    assert!(last.values().all(|value| String::from_utf8_lossy(value).contains(&total)), "{last:?}");
    Ok(())
}

/// A task's partition, status, each source's position and high watermark, and bytes of state.
type TaskStands = (u32, i32, Vec<(i64, i64)>, u64);

/// Where its tasks stand, without what only the broker tells that runs them.
fn tasks_of(deployment: &Deployment) -> Vec<TaskStands> {
    let tasks = deployment.tasks.iter().map(|task| {
        let positions = task.positions.iter().map(|source| (source.position, source.high_watermark));
        (task.partition, task.status, positions.collect(), task.state_bytes)
    });
    tasks.collect()
}
