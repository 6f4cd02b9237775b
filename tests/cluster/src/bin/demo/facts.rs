//! What the example knows of what it sent, to compare the broker with.

use std::collections::{BTreeMap, BTreeSet};

use tidemill_client::{ConsumerRecord, Timestamp};
use tidemill_cluster_tests::fixtures::Random;
use tidemill_cluster_tests::plays::Play;
use tidemill_cluster_tests::reading::ByPartition;

pub(crate) const USERS: u64 = 2_000;
pub(crate) const SONGS: u64 = 500;
const SEED: u64 = 42;
const FIRST_PLAY_MS: i64 = 1_767_225_600_000;
const PLAY_EVERY_MS: i64 = 25;

/// The plays, in the order in which they happen: event n is always the same.
pub(crate) struct Plays {
    random: Random,
    next: u64,
}

impl Plays {
    pub(crate) const fn new() -> Self {
        Self { random: Random::new(SEED), next: 0 }
    }
}

/// A play with its number.
pub(crate) struct Event {
    pub(crate) number: u64,
    pub(crate) play: Play,
}

impl Event {
    /// The record's key: it says which event this is. Records are not placed by it.
    pub(crate) fn key(&self) -> String {
        format!("event-{}", self.number)
    }

    /// The record's timestamp: when it was played. Each event has one of its own, and what a hosted consumer emits for a record has the
    /// record's: so [`number_at`] says what it was emitted for.
    pub(crate) const fn timestamp(&self) -> Timestamp {
        Timestamp::new(self.play.ts)
    }
}

impl Iterator for Plays {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        let number = self.next;
        self.next += 1;
        let play =
            Play::random(&mut self.random, USERS, SONGS, FIRST_PLAY_MS + number as i64 * PLAY_EVERY_MS);
        Some(Event { number, play })
    }
}

/// The number of the event with this timestamp.
pub(crate) fn number_at(timestamp: Timestamp) -> Option<u64> {
    let since_first = timestamp.get().checked_sub(FIRST_PLAY_MS)?;
    (since_first % PLAY_EVERY_MS == 0).then(|| u64::try_from(since_first / PLAY_EVERY_MS).ok())?
}

/// The number in a song's name.
pub(crate) fn song_number(song: &str) -> Option<u32> {
    song.strip_prefix("song-")?.parse().ok()
}

/// What was found of the events in the topic.
#[derive(Debug, Default)]
pub(crate) struct Inventory {
    /// Events that are there.
    pub(crate) numbers: BTreeSet<u64>,
    /// Events that are there a second time.
    pub(crate) doubled: u64,
    /// Events behind a later one of the same user.
    pub(crate) reordered: u64,
    /// Users with events in several partitions.
    pub(crate) scattered_users: usize,
    pub(crate) unreadable: u64,
    /// The events of each partition and the songs' numbers, in the order of the log.
    pub(crate) played: BTreeMap<u32, Vec<(u64, u32)>>,
    /// Plays by song, in each partition.
    pub(crate) songs: BTreeMap<u32, BTreeMap<String, u64>>,
    pub(crate) users_per_partition: BTreeMap<u32, usize>,
}

impl Inventory {
    pub(crate) fn of(records: &ByPartition) -> Self {
        let mut inventory = Self::default();
        let mut home: BTreeMap<String, BTreeSet<u32>> = BTreeMap::new();
        for (partition, records) in records {
            let mut last: BTreeMap<String, u64> = BTreeMap::new();
            for record in records {
                let Some((number, play, song)) = read(record) else {
                    inventory.unreadable += 1;
                    continue;
                };
                if !inventory.numbers.insert(number) {
                    inventory.doubled += 1;
                }
                if last.insert(play.user_id.clone(), number).is_some_and(|before| before > number) {
                    inventory.reordered += 1;
                }
                inventory.played.entry(*partition).or_default().push((number, song));
                home.entry(play.user_id).or_default().insert(*partition);
                *inventory.songs.entry(*partition).or_default().entry(play.song_id).or_default() += 1;
            }
            inventory.users_per_partition.insert(*partition, last.len());
        }
        inventory.scattered_users = home.values().filter(|partitions| partitions.len() > 1).count();
        inventory
    }

    /// Plays of each song over all partitions, the most played first.
    pub(crate) fn top_songs(&self) -> Vec<(String, u64)> {
        let mut totals: BTreeMap<&str, u64> = BTreeMap::new();
        for (song, plays) in self.songs.values().flatten() {
            *totals.entry(song).or_default() += plays;
        }
        let mut totals: Vec<_> = totals.into_iter().map(|(song, plays)| (song.to_owned(), plays)).collect();
        totals.sort_by(|(song, plays), (other, others)| others.cmp(plays).then_with(|| song.cmp(other)));
        totals
    }
}

fn read(record: &ConsumerRecord) -> Option<(u64, Play, u32)> {
    let key = std::str::from_utf8(record.key.as_deref()?).ok()?;
    let number = key.strip_prefix("event-")?.parse().ok()?;
    let play: Play = serde_json::from_slice(record.value.as_deref()?).ok()?;
    let song = song_number(&play.song_id)?;
    Some((number, play, song))
}
