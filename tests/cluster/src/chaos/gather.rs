//! Reading everything back.

use std::collections::BTreeMap;

use tidemill_client::{Client, ConsumerRecord, PartitionId, StateRange};

use super::check_tasks::RouteTarget;
use super::findings::{Findings, ViolationKind};
use super::history::{Logged, RecordId};
use super::load::{Topic, recognise, song_of};
use crate::Outcome;
use crate::reading::{ByPartition, read_all};

/// A topic's records, by partition. What has other bytes than it must is a violation, and left out.
pub(super) async fn log(
    client: &Client,
    seed: u64,
    topic: Topic,
    findings: &mut Findings,
) -> Outcome<Vec<Vec<Logged>>> {
    let mut read = read_all(client, topic.name()).await?;
    let partitions = (0..topic.partitions()).map(|partition| read.remove(&partition).unwrap_or_default());
    Ok(partitions.map(|records| recognised(seed, topic, &records, findings)).collect())
}

/// The records that a task sent on to a topic, by partition.
pub(super) async fn routed(
    client: &Client,
    seed: u64,
    target: &str,
    findings: &mut Findings,
) -> Outcome<BTreeMap<RouteTarget, Vec<RecordId>>> {
    let read = read_all(client, target).await?;
    check_contiguous(target, &read, findings);
    let ids = read.iter().map(|(partition, records)| {
        let logged = recognised(seed, Topic::Routed, records, findings);
        ((target.to_owned(), *partition), logged.iter().map(|record| record.id).collect())
    });
    Ok(ids.collect())
}

fn recognised(seed: u64, topic: Topic, records: &[ConsumerRecord], findings: &mut Findings) -> Vec<Logged> {
    let mut all = Vec::with_capacity(records.len());
    for record in records {
        let offset = record.offset.get();
        let read = recognise(seed, topic, offset, record.key.as_deref(), record.value.as_deref());
        findings.check(read.is_ok(), ViolationKind::Damaged, || {
            let reason = read.as_ref().err().cloned().unwrap_or_default();
            format!("{}-{} offset {offset}: {reason}", record.topic, record.partition)
        });
        all.extend(read);
    }
    all
}

fn check_contiguous(topic: &str, read: &ByPartition, findings: &mut Findings) {
    for (partition, records) in read {
        for (expected, record) in (0i64..).zip(records) {
            findings.check(record.offset.get() == expected, ViolationKind::Gap, || {
                format!("{topic}-{partition}: offset {} follows {}", record.offset, expected - 1)
            });
        }
    }
}

/// What `count-by-field` emitted: (song, count) in the order of the topic, for each partition of it.
pub(super) async fn counts(
    client: &Client,
    topic: &str,
    findings: &mut Findings,
) -> Outcome<Vec<Vec<(u32, u64)>>> {
    #[derive(serde::Deserialize)]
    struct Count {
        song_id: String,
        count: u64,
    }
    let read = read_all(client, topic).await?;
    check_contiguous(topic, &read, findings);
    let mut partitions = Vec::new();
    for (partition, records) in &read {
        let mut counts = Vec::with_capacity(records.len());
        for record in records {
            let value = record.value.as_deref().unwrap_or_default();
            let count: Option<Count> = serde_json::from_slice(value).ok();
            let song = count.as_ref().and_then(|count| song_of(&count.song_id));
            let has_key = count.as_ref().is_some_and(|c| record.key.as_deref() == Some(c.song_id.as_bytes()));
            findings.check(song.is_some() && has_key, ViolationKind::Damaged, || {
                format!(
                    "{topic}-{partition} offset {}: no count of a song: {}",
                    record.offset,
                    value.escape_ascii()
                )
            });
            counts.extend(song.zip(count.map(|count| count.count)));
        }
        partitions.push(counts);
    }
    Ok(partitions)
}

/// The totals of one task of `count-by-field`.
pub(super) async fn totals(client: &Client, deployment: &str, partition: u32) -> Outcome<BTreeMap<u32, u64>> {
    let prefix = "total:";
    let mut totals = BTreeMap::new();
    let mut start = bytes::Bytes::from_static(b"total:");
    loop {
        let range = StateRange {
            start: start.clone(),
            partition: Some(PartitionId::new(partition)),
            limit: 1_000,
            ..StateRange::default()
        };
        let page = client.state(deployment).scan(range).await?;
        for entry in &page.entries {
            let key = std::str::from_utf8(&entry.key)?;
            // total:"s-17"
            let song = key.strip_prefix(prefix).map(|song| song.trim_matches('"')).and_then(song_of);
            let song = song.ok_or_else(|| format!("the state has a key {key:?}"))?;
            totals.insert(song, std::str::from_utf8(&entry.value)?.parse()?);
        }
        match page.entries.last() {
            Some(last) if page.more => start = [&last.key[..], &[0]].concat().into(),
            _ => return Ok(totals),
        }
    }
}
