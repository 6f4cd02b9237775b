//! What tests of brokers' files begin with: segments that are full, and copies of directories.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use tidemill_client::messages::TopicConfig;
use tidemill_client::{Client, NewTopic, PartitionId, Record};
use tidemill_cluster_tests::fixtures::Random;
use tidemill_cluster_tests::{Outcome, TestCluster};

/// A topic's records: so many, of so many bytes each, that no compression makes fewer.
pub(crate) struct Filling {
    pub(crate) partitions: u32,
    /// The n-th record goes to partition n, counted round and round; else the client chooses.
    pub(crate) in_turn: bool,
    pub(crate) segment_bytes: u64,
    pub(crate) records: u32,
    pub(crate) record_bytes: usize,
    pub(crate) seed: u64,
}

/// Makes a topic, and waits until all its records are acknowledged.
pub(crate) async fn fill(client: &Client, topic: &str, filling: &Filling) -> Outcome<()> {
    let config = TopicConfig { segment_bytes: Some(filling.segment_bytes), ..TopicConfig::default() };
    client.topics().create(NewTopic::new(topic, filling.partitions).config(config)).await?;
    let producer = client.producer(topic).build().await?;
    let (mut random, mut value) = (Random::new(filling.seed), vec![0; filling.record_bytes]);
    let mut deliveries = Vec::new();
    for number in 0..filling.records {
        random.fill(&mut value);
        let record = Record::new(&value);
        let record = match filling.in_turn {
            true => record.partition(PartitionId::new(number % filling.partitions)),
            false => record,
        };
        deliveries.push(producer.send(record).await?);
    }
    for delivery in deliveries {
        delivery.await?;
    }
    Ok(())
}

/// Makes a topic of which each partition has several segments, all but the last of them sealed, and waits until all replicas have it.
pub(crate) async fn fill_segments(
    cluster: &TestCluster,
    client: &Client,
    topic: &str,
    partitions: u32,
    records: u32,
) -> Outcome<()> {
    let (segment_bytes, record_bytes) = (256 << 10, 4_000);
    let filling = Filling { partitions, in_turn: false, segment_bytes, records, record_bytes, seed: 11 };
    cluster.settled(client).await?;
    fill(client, topic, &filling).await?;
    cluster.settled(client).await?;
    Ok(())
}

/// The sealed segments below a data directory, by their path within it: all but the last of each partition.
pub(crate) fn sealed(data_dir: &Path) -> Outcome<BTreeMap<PathBuf, Vec<u8>>> {
    let mut found = BTreeMap::new();
    for shard in std::fs::read_dir(data_dir)? {
        let shard = shard?;
        if !shard.file_name().to_string_lossy().starts_with("shard-") {
            continue;
        }
        for partition in std::fs::read_dir(shard.path())? {
            let partition = partition?;
            if !partition.file_type()?.is_dir() {
                continue;
            }
            let files = std::fs::read_dir(partition.path())?.collect::<Result<Vec<_>, _>>()?;
            let logs = files.into_iter().map(|file| file.path());
            let mut logs: Vec<_> = logs.filter(|path| path.extension().is_some_and(|e| e == "log")).collect();
            logs.sort();
            logs.pop();
            for path in logs {
                let bytes = std::fs::read(&path)?;
                found.insert(path.strip_prefix(data_dir)?.to_owned(), bytes);
            }
        }
    }
    Ok(found)
}

/// A directory as it is.
pub(crate) fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        match entry.file_type()?.is_dir() {
            true => copy(&entry.path(), &target)?,
            false => drop(std::fs::copy(entry.path(), target)?),
        }
    }
    Ok(())
}
