//! `tidemill cluster drain`.

use std::time::{Duration, Instant};

use clap::Args;
use serde_json::json;
use tidemill_client::messages::{ClusterStatus, ShardPlacement};
use tidemill_client::{BrokerId, Client};

use super::status::holds;
use super::which::WhichBroker;
use crate::error::CliError;
use crate::output;
use crate::text::counted;
use crate::waiting::{AGAIN_AFTER, QUIET};

/// See `tidemill cluster drain`.
#[derive(Debug, Args)]
pub(crate) struct Drain {
    #[command(flatten)]
    which: WhichBroker,
    /// Let it take replicas and leads again.
    #[arg(long)]
    undo: bool,
    /// Wait until it holds nothing any more.
    #[arg(long, conflicts_with = "undo")]
    wait: bool,
}

impl Drain {
    /// Whether it goes on until the cluster is done, however long that takes.
    pub(super) const fn waits(&self) -> bool {
        self.wait
    }
}

/// How often it is looked what the broker holds still.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// A broker that is not seen draining by then was taken back by somebody else.
const SEEN_WITHIN: Duration = Duration::from_secs(10);

pub(super) async fn run(drain: Drain, client: Client, json: bool) -> Result<(), CliError> {
    let Drain { which, undo, wait } = drain;
    let broker = which.number();
    client.drain_broker(BrokerId::new(broker), undo).await?;
    if wait {
        until_empty(&client, broker).await?;
        let document = json!({ "broker": broker, "state": "draining", "replicas": 0 });
        return output::print(json, &document, || {
            println!(
                "broker {broker} holds nothing any more; `tidemill cluster remove {broker}` takes it out"
            );
        });
    }
    let state = if undo { "active" } else { "draining" };
    output::print(json, &json!({ "broker": broker, "state": state }), || {
        if undo {
            println!("broker {broker} takes replicas and leads again");
        } else {
            println!("broker {broker} is being drained; `tidemill cluster status` shows how far it is");
        }
    })
}

async fn until_empty(client: &Client, broker: u32) -> Result<(), CliError> {
    let since = Instant::now();
    let mut teller = Teller { broker, since, said: None };
    let mut was_draining = false;
    loop {
        let left = match stage(&client.cluster_status().await?, broker) {
            Stage::Empty => return Ok(()),
            Stage::Active if was_draining || since.elapsed() >= SEEN_WITHIN => {
                return Err(CliError::other(format!("somebody has taken the drain of broker {broker} back")));
            }
            Stage::Active | Stage::Unknown => None,
            Stage::Holds(replicas) => {
                was_draining = true;
                Some(replicas)
            }
        };
        if let Some(words) = left.and_then(|left| teller.words(left, Instant::now())) {
            eprintln!("{words}");
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

/// How far a drain is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Whoever was asked does not know: it may just be starting.
    Unknown,
    /// It is not being drained.
    Active,
    /// So many replicas are there still, or planned.
    Holds(usize),
    /// None is.
    Empty,
}

fn stage(status: &ClusterStatus, broker: u32) -> Stage {
    let record = status.brokers.iter().find(|record| record.broker_id == broker);
    let Some(record) = record.filter(|_| !status.placement.is_empty()) else { return Stage::Unknown };
    if record.state == "active" {
        return Stage::Active;
    }
    let is_left = |shard: &&ShardPlacement| holds(shard, broker) || shard.planned.contains(&broker);
    match status.placement.iter().filter(is_left).count() {
        0 => Stage::Empty,
        replicas => Stage::Holds(replicas),
    }
}

/// Says on standard error what is waited for: after a moment, when there is news, and every few seconds.
struct Teller {
    broker: u32,
    since: Instant,
    /// How many replicas, and when.
    said: Option<(usize, Instant)>,
}

impl Teller {
    fn words(&mut self, replicas: usize, now: Instant) -> Option<String> {
        let (news, at) = match self.said {
            None => (true, self.since),
            Some((before, at)) => (before != replicas, at),
        };
        let after = if news { QUIET } else { AGAIN_AFTER };
        if now.saturating_duration_since(at) < after {
            return None;
        }
        self.said = Some((replicas, now));
        let seconds = now.saturating_duration_since(self.since).as_secs();
        let replicas = counted(replicas, "replica");
        Some(format!(
            "broker {} holds {replicas} still, after {seconds} s (Ctrl-C ends only the waiting)",
            self.broker
        ))
    }
}

#[cfg(test)]
mod tests {
    use tidemill_client::messages::{BrokerStatus, ShardReplica};

    use super::*;

    fn status(state: &str, placement: Vec<ShardPlacement>) -> ClusterStatus {
        let broker = BrokerStatus { broker_id: 4, state: state.to_owned(), ..BrokerStatus::default() };
        ClusterStatus { brokers: vec![broker], placement, ..ClusterStatus::default() }
    }

    fn shard(number: u32, voters: &[u32], planned: &[u32]) -> ShardPlacement {
        let voter = |id: &u32| ShardReplica { broker_id: *id, voter: true, ..ShardReplica::default() };
        ShardPlacement {
            shard: number,
            replicas: voters.iter().map(voter).collect(),
            planned: planned.to_vec(),
            ..ShardPlacement::default()
        }
    }

    #[test]
    fn a_broker_is_empty_when_nothing_is_there_and_nothing_planned() {
        let done = [1, 2, 3];
        let stage = |state: &str, placement: Vec<ShardPlacement>| stage(&status(state, placement), 4);
        assert_eq!(stage("draining", vec![shard(1, &done, &done)]), Stage::Empty);
        let moving = vec![shard(1, &[1, 2, 4], &done), shard(2, &done, &done), shard(3, &done, &[1, 2, 4])];
        assert_eq!(stage("draining", moving), Stage::Holds(2));
        // It follows the controller as long as it is a broker.
        let follower = ShardReplica { broker_id: 4, ..ShardReplica::default() };
        let mut controller = shard(0, &done, &done);
        controller.replicas.push(follower);
        assert_eq!(stage("draining", vec![controller]), Stage::Empty);
        assert_eq!(stage("active", vec![shard(1, &done, &done)]), Stage::Active);
        assert_eq!(stage("removed", vec![shard(1, &done, &done)]), Stage::Empty);
        assert_eq!(stage("draining", Vec::new()), Stage::Unknown);
        assert_eq!(super::stage(&status("draining", vec![shard(1, &done, &done)]), 5), Stage::Unknown);
    }

    #[test]
    fn one_hears_of_news_and_now_and_then_of_none() {
        let since = Instant::now();
        let mut teller = Teller { broker: 4, since, said: None };
        let mut at = |seconds: u64, replicas| teller.words(replicas, since + Duration::from_secs(seconds));
        assert_eq!(at(1, 7), None);
        let first = at(2, 7).expect("after a moment");
        assert_eq!(first, "broker 4 holds 7 replicas still, after 2 s (Ctrl-C ends only the waiting)");
        assert_eq!(at(3, 6), None, "not for each of them");
        assert!(at(5, 1).is_some_and(|words| words.contains("holds 1 replica still")));
        assert_eq!(at(14, 1), None);
        assert!(at(15, 1).is_some());
    }
}
