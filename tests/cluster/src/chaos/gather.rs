//! Reading everything back.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tidemill_client::{Client, ConsumerRecord, PartitionId, Start, StateRange};
use tokio::time::{Instant, sleep, timeout};

use super::check_tasks::RouteTarget;
use super::findings::{Findings, ViolationKind};
use super::history::{Logged, RecordId};
use super::load::{Topic, recognise, song_of};
use super::setup::TOPICS;
use crate::Outcome;
use crate::reading::digest;

/// No topic takes longer to read.
const READ_DEADLINE: Duration = Duration::from_secs(300);

/// Retention looks every second: once logs have started where they do for so long, and nothing is written, they stay.
const STEADY: Duration = Duration::from_secs(5);
const STEADY_DEADLINE: Duration = Duration::from_secs(90);
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// Where the partitions of each topic end, and where they start.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Ends {
    ends: BTreeMap<&'static str, Vec<i64>>,
    /// 0 but where retention is at work.
    starts: BTreeMap<&'static str, Vec<i64>>,
}

impl Ends {
    /// As the cluster says now.
    pub(super) async fn now(client: &Client) -> Outcome<Self> {
        let mut all = Self::default();
        for (topic, _) in TOPICS {
            let description = client.topics().describe(topic).await?;
            let partitions = &description.partitions;
            all.ends.insert(topic, partitions.iter().map(|status| status.high_watermark).collect());
            // Who does not know says -1.
            all.starts
                .insert(topic, partitions.iter().map(|status| status.log_start_offset.max(0)).collect());
        }
        Ok(all)
    }

    /// As the cluster says once retention has let go all that it will. To be called when nobody writes.
    pub(super) async fn steady(client: &Client) -> Outcome<Self> {
        let begun = Instant::now();
        let (mut known, mut since) = (Self::now(client).await?, begun);
        while since.elapsed() < STEADY {
            if begun.elapsed() >= STEADY_DEADLINE {
                return Err(format!(
                    "logs are let go for {STEADY_DEADLINE:?} though nobody writes: {:?}",
                    known.starts
                )
                .into());
            }
            sleep(LOOK_INTERVAL).await;
            let now = Self::now(client).await?.further(&known);
            if now.starts != known.starts {
                since = Instant::now();
            }
            known = now;
        }
        Ok(known)
    }

    /// Of one topic.
    pub(super) fn of(&self, topic: &str) -> &[i64] {
        self.ends.get(topic).map_or(&[][..], Vec::as_slice)
    }

    /// Where the partitions of one topic start.
    pub(super) fn starts_of(&self, topic: &str) -> &[i64] {
        self.starts.get(topic).map_or(&[][..], Vec::as_slice)
    }

    /// Where a partition starts.
    pub(super) fn start_of(&self, topic: &str, partition: u32) -> i64 {
        self.starts_of(topic).get(partition as usize).copied().unwrap_or(0)
    }

    /// It ends there or later.
    pub(super) fn reach(&mut self, topic: &str, partition: u32, end: i64) {
        if let Some(known) = self.ends.get_mut(topic).and_then(|ends| ends.get_mut(partition as usize)) {
            *known = (*known).max(end);
        }
    }

    /// Whichever is further: an end that was there once is there for good, and so is a start.
    pub(super) fn further(mut self, other: &Self) -> Self {
        for (topic, ends) in &mut self.ends {
            raise(ends, other.of(topic));
        }
        for (topic, starts) in &mut self.starts {
            raise(starts, other.starts_of(topic));
        }
        self
    }
}

fn raise(offsets: &mut [i64], others: &[i64]) {
    for (offset, other) in offsets.iter_mut().zip(others) {
        *offset = (*offset).max(*other);
    }
}

/// Where a topic is read, if not at the leaders.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) rack: Option<&'a str>,
    /// These partitions alone, at least one.
    pub(super) partitions: &'a BTreeSet<u32>,
}

/// Reads a topic from its beginning to these ends, and hands out each record. Answers how many bytes of record batches came for it.
pub(super) async fn read_to(
    client: &Client,
    topic: &str,
    ends: &[i64],
    place: Option<Place<'_>>,
    mut each: impl FnMut(&ConsumerRecord),
) -> Outcome<u64> {
    let mut builder = client.consumer().topic(topic).from(Start::Earliest);
    let mut behind: BTreeSet<u32> =
        (0u32..).zip(ends).filter(|(_, end)| **end > 0).map(|(partition, _)| partition).collect();
    if let Some(Place { rack, partitions }) = place {
        builder = builder.partitions(partitions.iter().copied().map(PartitionId::new));
        if let Some(rack) = rack {
            builder = builder.rack(rack);
        }
        behind.retain(|partition| partitions.contains(partition));
    }
    let mut consumer = builder.build().await?;
    let reading = async {
        while !behind.is_empty() {
            let record = consumer.next().await.ok_or("a consumer came to an end")??;
            let partition = record.partition.get();
            let end = ends.get(partition as usize).copied().unwrap_or(0);
            if record.offset.get() + 1 >= end {
                behind.remove(&partition);
            }
            each(&record);
        }
        Outcome::Ok(())
    };
    let read = timeout(READ_DEADLINE, reading).await;
    read.map_err(|_| {
        format!("{topic} was not read to its ends {ends:?} in time; partitions {behind:?} are behind")
    })??;
    Ok(consumer.stats().received_bytes)
}

/// A topic's records, by partition, from where it starts. What has other bytes than it must is a violation, and left out.
pub(super) async fn log(
    client: &Client,
    seed: u64,
    topic: Topic,
    ends: &Ends,
    findings: &mut Findings,
) -> Outcome<Vec<Vec<Logged>>> {
    let mut log = vec![Vec::new(); topic.partitions() as usize];
    read_to(client, topic.name(), ends.of(topic.name()), None, |record| {
        if is_let_go(ends, record) {
            return;
        }
        if let Some(partition) = log.get_mut(record.partition.get() as usize) {
            partition.extend(recognised(seed, topic, record, findings));
        }
    })
    .await?;
    Ok(log)
}

/// The records that a task sent on to a topic, by partition.
pub(super) async fn routed(
    client: &Client,
    seed: u64,
    target: &str,
    ends: &Ends,
    findings: &mut Findings,
) -> Outcome<BTreeMap<RouteTarget, Vec<RecordId>>> {
    let mut ids: BTreeMap<RouteTarget, Vec<RecordId>> = BTreeMap::new();
    let mut contiguous = Contiguous::default();
    read_to(client, target, ends.of(target), None, |record| {
        contiguous.check(target, record, findings);
        let of_target = ids.entry((target.to_owned(), record.partition.get())).or_default();
        of_target.extend(recognised(seed, Topic::Routed, record, findings).map(|logged| logged.id));
    })
    .await?;
    Ok(ids)
}

/// Whether retention has let a record go, of which this replica may not have heard yet.
fn is_let_go(ends: &Ends, record: &ConsumerRecord) -> bool {
    record.offset.get() < ends.start_of(&record.topic, record.partition.get())
}

fn recognised(seed: u64, topic: Topic, record: &ConsumerRecord, findings: &mut Findings) -> Option<Logged> {
    let offset = record.offset.get();
    let read = recognise(seed, topic, offset, record.key.as_deref(), record.value.as_deref());
    findings.check(read.is_ok(), ViolationKind::Damaged, || {
        let reason = read.as_ref().err().cloned().unwrap_or_default();
        format!("{}-{} offset {offset}: {reason}", record.topic, record.partition)
    });
    read.ok()
}

/// The next offset of each partition.
#[derive(Debug, Default)]
struct Contiguous(BTreeMap<u32, i64>);

impl Contiguous {
    fn check(&mut self, topic: &str, record: &ConsumerRecord, findings: &mut Findings) {
        let (partition, offset) = (record.partition.get(), record.offset.get());
        let expected = self.0.insert(partition, offset + 1).unwrap_or(0);
        findings.check(offset == expected, ViolationKind::Gap, || {
            format!("{topic}-{partition}: offset {offset} follows {}", expected - 1)
        });
    }
}

/// What `count-by-field` emitted: (song, count) in the order of the topic, for each partition of it.
pub(super) async fn counts(
    client: &Client,
    topic: &str,
    ends: &Ends,
    findings: &mut Findings,
) -> Outcome<Vec<Vec<(u32, u64)>>> {
    #[derive(serde::Deserialize)]
    struct Count {
        song_id: String,
        count: u64,
    }
    let mut partitions: BTreeMap<u32, Vec<(u32, u64)>> = BTreeMap::new();
    let mut contiguous = Contiguous::default();
    read_to(client, topic, ends.of(topic), None, |record| {
        contiguous.check(topic, record, findings);
        let partition = record.partition.get();
        let value = record.value.as_deref().unwrap_or_default();
        let count: Option<Count> = serde_json::from_slice(value).ok();
        let song = count.as_ref().and_then(|count| song_of(&count.song_id));
        let has_key = count.as_ref().is_some_and(|c| record.key.as_deref() == Some(c.song_id.as_bytes()));
        findings.check(song.is_some() && has_key, ViolationKind::Damaged, || {
            let (offset, value) = (record.offset, value.escape_ascii());
            format!("{topic}-{partition} offset {offset}: no count of a song: {value}")
        });
        partitions.entry(partition).or_default().extend(song.zip(count.map(|count| count.count)));
    })
    .await?;
    Ok(partitions.into_values().collect())
}

/// How many records, and a digest of all that can be told of them, in their order.
pub(super) type Digest = (u64, blake3::Hash);

/// What one broker has of a topic.
#[derive(Debug)]
pub(super) struct Held {
    /// By partition; none of those without records.
    pub(super) digests: BTreeMap<u32, Digest>,
    /// The records by partition, where these are a producer's.
    pub(super) log: Vec<Vec<Logged>>,
    /// Bytes of record batches that came for it.
    pub(super) received_bytes: u64,
}

/// What a broker has of a topic: `client` knew only that one at first, and reads in the rack in which it stands alone. Where that broker does
/// not give something out, the client turns to another.
pub(super) async fn held(
    client: &Client,
    seed: u64,
    (name, topic): (&'static str, Option<Topic>),
    ends: &Ends,
    place: Place<'_>,
    findings: &mut Findings,
) -> Outcome<Held> {
    let mut hashers: BTreeMap<u32, (u64, blake3::Hasher)> = BTreeMap::new();
    let mut log = vec![Vec::new(); topic.map_or(0, |topic| topic.partitions() as usize)];
    let received_bytes = read_to(client, name, ends.of(name), Some(place), |record| {
        if is_let_go(ends, record) {
            return;
        }
        let partition = record.partition.get();
        let (count, hasher) = hashers.entry(partition).or_default();
        *count += 1;
        hasher.update(digest([record]).as_bytes());
        if let (Some(topic), Some(of_partition)) = (topic, log.get_mut(partition as usize)) {
            of_partition.extend(recognised(seed, topic, record, findings));
        }
    })
    .await?;
    let digests =
        hashers.into_iter().map(|(partition, (count, hasher))| (partition, (count, hasher.finalize())));
    Ok(Held { digests: digests.collect(), log, received_bytes })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_further_end_counts_and_so_does_the_further_start() {
        let ends = |one: i64, other: i64| Ends {
            ends: BTreeMap::from([("direct", vec![one, other])]),
            starts: BTreeMap::from([("direct", vec![one - 2, other - 2])]),
        };
        assert_eq!(ends(3, 9).further(&ends(5, 2)), ends(5, 9));
        assert_eq!(ends(3, 9).further(&Ends::default()), ends(3, 9));
        assert_eq!(ends(3, 9).of("routed"), [0i64; 0]);
        assert_eq!([ends(3, 9).start_of("direct", 1), ends(3, 9).start_of("routed", 1)], [7, 0]);
    }
}
