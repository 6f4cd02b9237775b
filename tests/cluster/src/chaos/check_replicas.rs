//! Each broker by itself holds the same, and it is that broker which gives it out.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tidemill_client::{BrokerId, Client};
use tokio::time::sleep;

use super::config::ChaosConfig;
use super::findings::{Findings, ViolationKind};
use super::fleet::{Alone, Fleet, REPLICAS};
use super::gather::{self, Digest, Ends, Place};
use super::recording::Recording;
use super::setup::TOPICS;
use crate::Outcome;
use crate::metrics::metric;

/// What a broker has sent to readers: bytes of record batches, as they are stored.
const SENT: &str = "tidemill_subscribe_sent_bytes_total";
/// A client turns to another replica where the one in its rack does not answer for a moment, or can't give out what it has not mended
/// yet. Then it is read again, so often.
const READS_MAX: u32 = 5;
const READ_PAUSE: Duration = Duration::from_secs(3);
/// A broker is asked so often what it has sent.
const ASKS_MAX: usize = 5;

/// By topic and partition: what each broker has of it, `None` where that is nothing.
type Found = BTreeMap<(&'static str, u32), BTreeMap<u32, Option<Digest>>>;

/// Reads each broker by itself. To be called when nobody else reads, and what was damaged is mended.
pub(super) async fn check_replicas(
    config: &ChaosConfig,
    fleet: &Fleet,
    ends: &Ends,
    recording: &Recording,
    findings: &mut Findings,
) -> Outcome<()> {
    let all = fleet.each_alone();
    let mut found = Found::new();
    for (name, _) in TOPICS {
        let partitions = (0u32..).take(ends.of(name).len());
        found.extend(partitions.map(|partition| ((name, partition), BTreeMap::new())));
    }
    for Alone { broker, rack, settings } in &all {
        let client = Client::connect(settings.clone().client_id("chaos-alone")).await?;
        for (name, topic) in TOPICS {
            let partitions = match rack {
                Some(_) => partitions_at(&client, name, *broker).await?,
                None => (0u32..).take(ends.of(name).len()).collect(),
            };
            if partitions.is_empty() {
                continue;
            }
            let place = Place { rack: rack.as_deref(), partitions: &partitions };
            let mut reads = 1;
            let held = loop {
                let before = sent(&all).await?;
                let held = gather::held(&client, config.seed, (name, topic), ends, place, findings).await?;
                let elsewhere = from_elsewhere(*broker, held.received_bytes, &before, &sent(&all).await?);
                if elsewhere.is_none() || reads >= READS_MAX {
                    findings.check(elsewhere.is_none(), ViolationKind::Replica, || {
                        let reason = elsewhere.unwrap_or_default();
                        format!("{name} could not be read at broker {broker} alone, {reads} times: {reason}")
                    });
                    break held;
                }
                reads += 1;
                sleep(READ_PAUSE).await;
            };
            if let Some(topic) = topic {
                recording.replicas(*broker, topic, &held.log, ends, &partitions);
            }
            for partition in partitions {
                let of_partition = found.entry((name, partition)).or_default();
                of_partition.insert(*broker, held.digests.get(&partition).copied());
            }
        }
        client.close().await;
    }
    compare(&found, all.len().min(REPLICAS as usize), findings);
    Ok(())
}

/// The partitions of a topic of which a broker has a replica.
async fn partitions_at(client: &Client, topic: &str, broker: u32) -> Outcome<BTreeSet<u32>> {
    let topic = client.topic_metadata(topic).await?;
    let broker = BrokerId::new(broker);
    let here = topic.partitions.iter().filter(|partition| partition.replicas.contains(&broker));
    Ok(here.map(|partition| partition.partition.get()).collect())
}

fn compare(found: &Found, replicas: usize, findings: &mut Findings) {
    for ((name, partition), held) in found {
        findings.check(held.len() >= replicas, ViolationKind::Replica, || {
            let brokers: Vec<u32> = held.keys().copied().collect();
            format!("{name}-{partition}: only brokers {brokers:?} have a replica, where {replicas} should")
        });
        let mut held = held.iter();
        let Some((first, expected)) = held.next() else { continue };
        for (broker, here) in held {
            findings.check(here == expected, ViolationKind::Replica, || {
                format!(
                    "{name}-{partition}: broker {broker} has {here:?} (records, digest), broker {first} {expected:?}"
                )
            });
        }
    }
}

/// Bytes that each broker says that it has sent, by its number.
async fn sent(all: &[Alone]) -> Outcome<BTreeMap<u32, f64>> {
    let mut sent = BTreeMap::new();
    for one in all {
        sent.insert(one.broker, sent_by(one).await?);
    }
    Ok(sent)
}

async fn sent_by(Alone { broker, settings, .. }: &Alone) -> Outcome<f64> {
    for _ in 0..ASKS_MAX {
        // A new client has a connection to this broker alone. Should that break it may ask another, which says who it is.
        let client = Client::connect(settings.clone().client_id("chaos-counter")).await?;
        let sent = metric(&client, SENT).await?;
        let answers = client.cluster_status().await?.broker_id;
        client.close().await;
        if answers == *broker {
            return Ok(sent);
        }
    }
    Err(format!("broker {broker} does not say what it has sent: others answer").into())
}

/// Why not all of a read came from this broker, by what all brokers had sent before and after it; `None` where it did.
fn from_elsewhere(
    broker: u32,
    received_bytes: u64,
    before: &BTreeMap<u32, f64>,
    after: &BTreeMap<u32, f64>,
) -> Option<String> {
    let sent = |broker: &u32| {
        let [before, after] = [before, after].map(|counted| counted.get(broker).copied().unwrap_or(0.0));
        after - before
    };
    if let Some(other) = after.keys().find(|&&other| other != broker && sent(&other) > 0.0) {
        return Some(format!("broker {other} sent {} bytes meanwhile", sent(other)));
    }
    let here = sent(&broker);
    (here < received_bytes as f64).then(|| format!("it sent {here} bytes of {received_bytes} that were read"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(sent: [f64; 3]) -> BTreeMap<u32, f64> {
        (1..).zip(sent).collect()
    }

    #[test]
    fn what_another_broker_sent_is_not_this_ones() {
        let before = counted([100.0, 0.0, 7.0]);
        assert_eq!(from_elsewhere(2, 50, &before, &counted([100.0, 50.0, 7.0])), None);
        // What was sent twice counts twice, and what is on its way, too.
        assert_eq!(from_elsewhere(2, 50, &before, &counted([100.0, 90.0, 7.0])), None);
        let some = from_elsewhere(2, 50, &before, &counted([101.0, 50.0, 7.0])).expect("some is not");
        assert!(some.contains("broker 1 sent 1 bytes"), "{some}");
        let all = from_elsewhere(2, 50, &before, &counted([100.0, 0.0, 57.0])).expect("nothing is");
        assert!(all.contains("broker 3 sent 50 bytes"), "{all}");
        let less = from_elsewhere(2, 50, &before, &counted([100.0, 49.0, 7.0])).expect("not all is");
        assert!(less.contains("49 bytes of 50"), "{less}");
        // Started again in between.
        assert!(from_elsewhere(1, 50, &before, &counted([50.0, 0.0, 7.0])).is_some());
    }

    #[test]
    fn replicas_that_differ_or_are_missing_are_findings() {
        let digest = |records: u64| Some((records, blake3::hash(&records.to_le_bytes())));
        let of = |held: &[(u32, Option<Digest>)]| {
            let mut findings = Findings::default();
            let found = Found::from([(("direct", 0), held.iter().copied().collect())]);
            compare(&found, 2, &mut findings);
            (findings.checks(), findings.kinds())
        };
        assert_eq!(of(&[(1, digest(5)), (3, digest(5))]), (2, vec![]));
        assert_eq!(of(&[(1, None), (2, None), (3, None)]), (3, vec![]), "an empty one");
        assert_eq!(of(&[(1, digest(5)), (3, digest(6))]), (2, vec![ViolationKind::Replica]));
        assert_eq!(of(&[(1, digest(5)), (3, None)]), (2, vec![ViolationKind::Replica]));
        assert_eq!(of(&[(1, digest(5))]), (1, vec![ViolationKind::Replica]));
    }
}
