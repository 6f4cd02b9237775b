//! What tests of brokers' files begin with: segments that are full, and copies of directories.

use std::path::Path;

use tidemill_client::messages::TopicConfig;
use tidemill_client::{Client, NewTopic, PartitionId, Record};
use tidemill_cluster_tests::Outcome;
use tidemill_cluster_tests::fixtures::Random;

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
