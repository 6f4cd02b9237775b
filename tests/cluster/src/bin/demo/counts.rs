//! What the hosted consumer counted and emitted, against a count of our own.

use std::collections::{BTreeMap, HashMap};

use tidemill_client::messages::DeploymentStatus;
use tidemill_client::{Client, ConsumerRecord, PartitionId, StateRange};
use tidemill_cluster_tests::Outcome;
use tidemill_cluster_tests::chaos::{Findings, ViolationKind, check_counts};
use tidemill_cluster_tests::reading::read_all;
use tidemill_cluster_tests::waiting::eventually;

use crate::chapters::{COUNTER, PARTITIONS, PATIENCE, TOP_SONGS};
use crate::facts::{Inventory, number_at, song_number};
use crate::narrator::{Narrator, grouped};

/// Plays by song, in each partition.
type Songs = BTreeMap<u32, BTreeMap<String, u64>>;

/// Waits until the counter's tasks have handled so many events, and what they emitted has arrived. Whoever is asked may be behind: so it
/// is the number that counts, and not the end of the topic as that broker knows it.
pub(crate) async fn have_reached(client: &Client, events: u64) -> Outcome<()> {
    let what = format!("{COUNTER} at {events} events");
    eventually(&what, PATIENCE, async || {
        let seen = client.deployments().describe(COUNTER).await.ok()?;
        let mut tasks = seen.tasks.iter();
        let stopped =
            tasks.find(|task| matches!(task.status(), DeploymentStatus::Paused | DeploymentStatus::Failed));
        if let Some(stopped) = stopped {
            return Some(Err(format!("task {} of {COUNTER} stopped: {}", stopped.partition, stopped.reason)));
        }
        let positions = seen.tasks.iter().flat_map(|task| &task.positions);
        let handled: i64 = positions.map(|source| source.position).sum();
        let all_handled = u64::try_from(handled).is_ok_and(|handled| handled >= events);
        let all_arrived = seen.tasks.iter().all(|task| task.outbox_bytes == 0);
        (all_handled && all_arrived).then_some(Ok(()))
    })
    .await??;
    Ok(())
}

/// The state and the emitted totals.
pub(crate) async fn check(narrator: &mut Narrator, client: &Client, inventory: &Inventory) -> Outcome<()> {
    let state = state(client).await?;
    let songs: usize = inventory.songs.values().map(BTreeMap::len).sum();
    narrator.check(
        state == inventory.songs,
        format!(
            "the state of all tasks ({} counts) equals a count made by reading the topic",
            grouped(songs as u64)
        ),
    );
    let mut totals = Vec::new();
    for record in read_all(client, TOP_SONGS).await?.values().flatten() {
        let (partition, offset) = (record.partition, record.offset);
        let no_total =
            || format!("\"{TOP_SONGS}\", partition {partition}, offset {offset}: no total of a song");
        totals.push(Total::of(record).ok_or_else(no_total)?);
    }
    let findings = replayed(inventory, &state, &totals);
    for violation in findings.violations() {
        eprintln!("{violation}");
    }
    narrator.check(
        findings.violation_count() == 0,
        format!(
            "the {} totals in \"{TOP_SONGS}\" are those of a recount: each task's totals of a song rise, none is missing, doubled \
             or out of place",
            grouped(totals.len() as u64)
        ),
    );
    Ok(())
}

/// The counter's state, by partition.
async fn state(client: &Client) -> Outcome<Songs> {
    let mut totals = Songs::new();
    for partition in 0..PARTITIONS {
        let range = StateRange { partition: Some(PartitionId::new(partition)), ..StateRange::default() };
        for entry in client.state(COUNTER).scan(range).await?.entries {
            let key = std::str::from_utf8(&entry.key)?;
            let song = key.strip_prefix("total:").ok_or("a key that is no total")?.trim_matches('"');
            let plays = std::str::from_utf8(&entry.value)?.parse()?;
            totals.entry(entry.partition).or_default().insert(song.to_owned(), plays);
        }
    }
    Ok(totals)
}

/// A total as the plugin emits it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Total {
    song: u32,
    count: u64,
    /// The last event that it counts.
    event: u64,
}

impl Total {
    fn of(record: &ConsumerRecord) -> Option<Self> {
        #[derive(serde::Deserialize)]
        struct Emitted {
            song_id: String,
            count: u64,
        }
        let Emitted { song_id, count } = serde_json::from_slice(record.value.as_deref()?).ok()?;
        // The key keeps a song's totals in one partition, and so in order.
        let has_key = record.key.as_deref() == Some(song_id.as_bytes());
        let total = Self { song: song_number(&song_id)?, count, event: number_at(record.timestamp)? };
        has_key.then_some(total)
    }
}

/// The emitted totals against a replay of the topic.
///
/// A call of the plugin gets some events of one partition, and emits a total of each song among them: it counts up to the song's last event in
/// that call, and has the event's timestamp. Songs are in several partitions, and the task of each counts alone; so it is the event that says
/// which task a total is of, and how much it must be. Which totals a task must emit in a row is [`check_counts`]' to say.
fn replayed(inventory: &Inventory, state: &Songs, totals: &[Total]) -> Findings {
    let mut findings = Findings::default();
    let mut expected: HashMap<u64, (u32, Total)> = HashMap::new();
    for (task, played) in &inventory.played {
        let mut counts: HashMap<u32, u64> = HashMap::new();
        for (event, song) in played {
            let count = counts.entry(*song).or_default();
            *count += 1;
            expected.insert(*event, (*task, Total { song: *song, count: *count, event: *event }));
        }
    }
    let mut outputs: BTreeMap<u32, Vec<(u32, u64)>> = BTreeMap::new();
    for total in totals {
        match expected.get(&total.event).filter(|(_, expected)| expected == total) {
            Some((task, _)) => outputs.entry(*task).or_default().push((total.song, total.count)),
            None => findings.check(false, ViolationKind::OutputForeign, || {
                format!("{COUNTER} emitted {total:?}, which no count of the topic gives")
            }),
        }
    }
    for (task, played) in &inventory.played {
        let source: Vec<u32> = played.iter().map(|(_, song)| *song).collect();
        let outputs = outputs.remove(task).unwrap_or_default();
        let of_task = state.get(task).into_iter().flatten();
        let kept: BTreeMap<u32, u64> =
            of_task.filter_map(|(song, plays)| Some((song_number(song)?, *plays))).collect();
        check_counts(&format!("{COUNTER}, task {task}"), &source, &outputs, &kept, &mut findings);
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of two tasks that share a song, each a call per event.
    const RIGHT: [Total; 5] =
        [total(0, 7, 1), total(1, 7, 1), total(2, 8, 1), total(3, 7, 2), total(4, 7, 2)];

    const fn total(event: u64, song: u32, count: u64) -> Total {
        Total { song, count, event }
    }

    fn found(totals: &[Total]) -> Vec<ViolationKind> {
        let played = BTreeMap::from([(0, vec![(0, 7), (2, 8), (3, 7)]), (1, vec![(1, 7), (4, 7)])]);
        let counts = |counts: &[(&str, u64)]| -> BTreeMap<String, u64> {
            counts.iter().map(|(song, count)| ((*song).to_owned(), *count)).collect()
        };
        let state =
            Songs::from([(0, counts(&[("song-7", 2), ("song-8", 1)])), (1, counts(&[("song-7", 2)]))]);
        let inventory = Inventory { played, ..Inventory::default() };
        replayed(&inventory, &state, totals).violations().iter().map(|violation| violation.kind).collect()
    }

    #[test]
    fn any_cut_into_calls_will_do_and_the_tasks_may_mingle() {
        assert_eq!(found(&RIGHT), []);
        assert_eq!(found(&[RIGHT[1], RIGHT[4], RIGHT[2], RIGHT[3]]), []);
        assert_eq!(found(&[RIGHT[2], RIGHT[3], RIGHT[4]]), []);
    }

    #[test]
    fn a_total_that_is_missing_doubled_or_out_of_place_is_found() {
        assert_eq!(found(&RIGHT[..4]), [ViolationKind::OutputMissing], "the other task has the same total");
        assert_eq!(found(&[&RIGHT[..], &RIGHT[4..]].concat()), [ViolationKind::OutputDoubled]);
        let reordered = [RIGHT[4], RIGHT[0], RIGHT[1], RIGHT[2], RIGHT[3]];
        assert_eq!(found(&reordered), [ViolationKind::OutputReordered]);
        assert_eq!(found(&[&RIGHT[..], &[total(0, 7, 2)]].concat()), [ViolationKind::OutputForeign]);
    }
}
