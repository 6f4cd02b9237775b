//! The broker under measurement: the release binary, a process of its own, with the settings that ship.

use std::path::Path;

use tidemill_client::{Client, NewTopic};
use tidemill_cluster_tests::{BrokerOptions, TestBroker};
use tokio::sync::{Mutex, MutexGuard};

use crate::Outcome;

pub(crate) struct Broker {
    process: Mutex<TestBroker>,
}

impl Broker {
    /// Starts one in `dir/name`, with settings other than those that ship only where a row demands them.
    pub(crate) async fn start(dir: &Path, name: &str, settings: &[(&str, &str)]) -> Outcome<Self> {
        let mut options = BrokerOptions::as_shipped().directory(dir.join(name));
        for (name, value) in settings {
            options = options.set(name, value);
        }
        Ok(Self { process: Mutex::new(TestBroker::start(options).await?) })
    }

    /// A client with a connection of its own.
    pub(crate) async fn client(&self) -> Outcome<Client> {
        let config = self.process.lock().await.client_config();
        Ok(Client::connect(config.client_id("bench")).await?)
    }

    /// The number of its process.
    pub(crate) async fn process_id(&self) -> Outcome<u32> {
        self.process.lock().await.process_id().ok_or_else(|| "the broker is not running".into())
    }

    /// The process, to be looked at, killed and started again.
    pub(crate) async fn process(&self) -> MutexGuard<'_, TestBroker> {
        self.process.lock().await
    }

    /// Stops it in good order, which checkpoints every shard and so removes what deleted topics held, and starts it again: the next
    /// leg finds the disk as the one before found it.
    pub(crate) async fn tidy(&self) -> Outcome<()> {
        let mut process = self.process.lock().await;
        process.stop().await?;
        process.restart().await?;
        Ok(())
    }
}

/// Makes a topic; answers its name.
pub(crate) async fn topic(client: &Client, name: impl Into<String>, partitions: u32) -> Outcome<String> {
    let name = name.into();
    client.topics().create(NewTopic::new(&name, partitions)).await?;
    Ok(name)
}

/// Checkpoints of all shards since the broker started.
pub(crate) async fn checkpoints(client: &Client) -> Outcome<u64> {
    Ok(metric(client, "tidemill_raft_checkpoints_total").await? as u64)
}

/// A counter or gauge, summed over its labels.
pub(crate) async fn metric(client: &Client, name: &str) -> Outcome<f64> {
    Ok(sum_of(&client.metrics().await?, name))
}

/// The sum of a metric over its labels, from Prometheus' text format.
fn sum_of(text: &str, name: &str) -> f64 {
    let of_name = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']));
    text.lines().filter(of_name).filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_is_summed_over_its_labels_and_not_over_longer_names() {
        let text =
            "# TYPE a_total counter\na_total{shard=\"0\"} 2\na_total{shard=\"1\"} 3\na_total_more 100\nb 7\n";
        assert_eq!(sum_of(text, "a_total"), 5.0);
        assert_eq!(sum_of(text, "b"), 7.0);
        assert_eq!(sum_of(text, "c"), 0.0);
    }
}
