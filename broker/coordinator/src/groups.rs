//! The groups of one shard.
//!
//! ```text
//! key:   group name, utf-8
//! value: format u8 (1) | postcard of the group's positions
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tidemill_protocol::{LeaderEpoch, Offset, PartitionId, Timestamp, TopicId, TopicPartition};

use crate::command::{GroupCommand, GroupRefusal, GroupReply, PositionCommit};

/// How much a shard keeps of groups; part of the replicated behaviour, so the same everywhere.
#[derive(Debug, Clone, Copy)]
pub struct GroupsBounds;

impl GroupsBounds {
    /// Groups of one shard.
    pub const GROUPS_MAX: usize = 50_000;
    /// Positions of one group.
    pub const POSITIONS_MAX: usize = 100_000;
    /// Positions of all groups of one shard.
    pub const SHARD_POSITIONS_MAX: usize = 1_000_000;
    /// Bytes of a group's name.
    pub const NAME_BYTES_MAX: usize = 255;
    /// Bytes of a position's note.
    pub const NOTE_BYTES_MAX: usize = 4 << 10;
    /// Bytes of a group's notes together: a group is one row, and one answer.
    pub const GROUP_NOTES_BYTES_MAX: usize = 4 << 20;
    /// Bytes of the notes of all groups of one shard.
    pub const SHARD_NOTES_BYTES_MAX: usize = 64 << 20;
}

/// A position as committed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommittedPosition {
    /// The next offset to read.
    pub offset: Offset,
    /// The leader epoch of the last record read, where the reader knew it.
    pub leader_epoch: Option<LeaderEpoch>,
    /// The reader's own.
    pub note: String,
    /// The log's time of the commit.
    pub committed_at: Timestamp,
}

/// One group that changed: its key, and its value or `None` where it is gone.
pub type Change = (Bytes, Option<Bytes>);

/// A stored group that can't be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("stored group '{group}' can't be read: {reason}")]
pub struct RestoreError {
    group: String,
    reason: String,
}

type Positions = BTreeMap<TopicPartition, CommittedPosition>;

const FORMAT: u8 = 1;

/// The committed positions of a shard's groups.
#[derive(Debug, Clone, Default)]
pub struct Groups {
    groups: BTreeMap<String, Positions>,
    position_count: usize,
    notes_bytes: usize,
    changed: BTreeSet<String>,
}

impl Groups {
    /// Applies one command: all of it or, when refused, nothing.
    pub fn apply(&mut self, command: &GroupCommand, now: Timestamp) -> GroupReply {
        let outcome = match command {
            GroupCommand::Commit { group, positions } => self.commit(group, positions, now),
            GroupCommand::Delete { group } => self.delete(group),
            GroupCommand::ForgetTopic { topic } => {
                self.forget_topic(*topic);
                Ok(())
            }
        };
        match outcome {
            Ok(()) => GroupReply::Done,
            Err(refusal) => GroupReply::Refused(refusal),
        }
    }

    fn commit(
        &mut self,
        group: &str,
        commits: &[PositionCommit],
        now: Timestamp,
    ) -> Result<(), GroupRefusal> {
        self.check(group, commits)?;
        let positions = self.groups.entry(group.to_owned()).or_default();
        let before = positions.len();
        let notes_before = notes_bytes(positions);
        for commit in commits {
            match commit.offset {
                Some(offset) => {
                    let position = CommittedPosition {
                        offset,
                        leader_epoch: commit.leader_epoch,
                        note: commit.note.clone(),
                        committed_at: now,
                    };
                    positions.insert(commit.partition, position);
                }
                None => {
                    positions.remove(&commit.partition);
                }
            }
        }
        self.position_count = self.position_count - before + positions.len();
        self.notes_bytes = self.notes_bytes - notes_before + notes_bytes(positions);
        self.changed.insert(group.to_owned());
        Ok(())
    }

    fn check(&self, group: &str, commits: &[PositionCommit]) -> Result<(), GroupRefusal> {
        let invalid = |reason: &str| {
            let group = group.chars().take(GroupsBounds::NAME_BYTES_MAX).collect();
            Err(GroupRefusal::Invalid { group, reason: reason.to_owned() })
        };
        if group.is_empty() || group.len() > GroupsBounds::NAME_BYTES_MAX {
            return invalid("a group's name has 1 to 255 bytes");
        }
        if group.chars().any(char::is_control) {
            return invalid("a group's name has no control characters");
        }
        if commits.iter().any(|commit| commit.note.len() > GroupsBounds::NOTE_BYTES_MAX) {
            return invalid("a note is at most 4 KiB");
        }
        if commits.iter().any(|commit| commit.offset.is_some_and(|offset| offset < Offset::ZERO)) {
            return invalid("a committed offset is 0 or more");
        }
        let known = self.groups.get(group);
        if known.is_none() && self.groups.len() >= GroupsBounds::GROUPS_MAX {
            return invalid("its shard holds as many groups as it may; delete some");
        }
        // Counted as if every position were new: close to the bound a commit may be refused a little early.
        let held = known.map_or(0, BTreeMap::len);
        let new = commits
            .iter()
            .filter(|commit| commit.offset.is_some())
            .filter(|commit| known.is_none_or(|known| !known.contains_key(&commit.partition)))
            .count();
        if held + new > GroupsBounds::POSITIONS_MAX
            || self.position_count + new > GroupsBounds::SHARD_POSITIONS_MAX
        {
            return invalid("it holds as many positions as it may; remove some");
        }
        let notes: usize = commits.iter().map(|commit| commit.note.len()).sum();
        if notes > 0
            && (known.map_or(0, notes_bytes) + notes > GroupsBounds::GROUP_NOTES_BYTES_MAX
                || self.notes_bytes + notes > GroupsBounds::SHARD_NOTES_BYTES_MAX)
        {
            return invalid("its notes take as much as they may; make them shorter");
        }
        Ok(())
    }

    fn delete(&mut self, group: &str) -> Result<(), GroupRefusal> {
        let Some(positions) = self.groups.remove(group) else {
            let shortened = group.chars().take(GroupsBounds::NAME_BYTES_MAX).collect();
            return Err(GroupRefusal::UnknownGroup(shortened));
        };
        self.position_count -= positions.len();
        self.notes_bytes -= notes_bytes(&positions);
        self.changed.insert(group.to_owned());
        Ok(())
    }

    fn forget_topic(&mut self, topic: TopicId) {
        for (name, positions) in &mut self.groups {
            let before = positions.len();
            let notes_before = notes_bytes(positions);
            positions.retain(|partition, _| partition.topic != topic);
            if positions.len() != before {
                self.position_count -= before - positions.len();
                self.notes_bytes -= notes_before - notes_bytes(positions);
                self.changed.insert(name.clone());
            }
        }
    }

    /// A group's positions by partition; `None` where there is no such group.
    #[must_use]
    pub fn group(&self, name: &str) -> Option<&BTreeMap<TopicPartition, CommittedPosition>> {
        self.groups.get(name)
    }

    /// The topics of which positions are held.
    #[must_use]
    pub fn topics(&self) -> BTreeSet<TopicId> {
        let mut topics = BTreeSet::new();
        for positions in self.groups.values() {
            // From topic to topic: a group may hold very many positions.
            let mut next = positions.keys().next();
            while let Some(TopicPartition { topic, .. }) = next.copied() {
                topics.insert(topic);
                let last = TopicPartition::new(topic, PartitionId::new(u32::MAX));
                next = positions.range((Bound::Excluded(last), Bound::Unbounded)).next().map(|(id, _)| id);
            }
        }
        topics
    }

    /// The groups' names, ascending.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.groups.keys().map(String::as_str)
    }

    /// The groups that changed since the last call, ascending.
    pub fn take_changes(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.changed)
            .into_iter()
            .map(|name| {
                let value = self.groups.get(&name).map(encode);
                (Bytes::from(name), value)
            })
            .collect()
    }

    /// Rebuilds the groups from stored objects, in any order.
    ///
    /// # Errors
    /// [`RestoreError`] names the group that does not read.
    pub fn restore(objects: impl IntoIterator<Item = (Bytes, Bytes)>) -> Result<Self, RestoreError> {
        let mut groups = Self::default();
        for (key, value) in objects {
            let name = String::from_utf8_lossy(&key).into_owned();
            let positions = decode(&value).map_err(|reason| RestoreError { group: name.clone(), reason })?;
            groups.position_count += positions.len();
            groups.notes_bytes += notes_bytes(&positions);
            groups.groups.insert(name, positions);
        }
        Ok(groups)
    }
}

fn notes_bytes(positions: &Positions) -> usize {
    positions.values().map(|position| position.note.len()).sum()
}

fn encode(positions: &Positions) -> Bytes {
    postcard::to_extend(positions, vec![FORMAT]).expect("plain maps always encode into memory").into()
}

fn decode(value: &[u8]) -> Result<Positions, String> {
    match value.split_first() {
        Some((&FORMAT, rest)) => match postcard::take_from_bytes(rest) {
            Ok((positions, [])) => Ok(positions),
            Ok(_) => Err("something follows it".to_owned()),
            Err(error) => Err(error.to_string()),
        },
        Some((format, _)) => Err(format!("it has format {format}, this release reads format 1")),
        None => Err("it is empty".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    const NOW: Timestamp = Timestamp::new(5);

    fn partition(topic: u128, number: u32) -> TopicPartition {
        TopicPartition::new(TopicId::new(Uuid::from_u128(topic)), PartitionId::new(number))
    }

    fn at(topic: u128, number: u32, offset: Option<i64>) -> PositionCommit {
        PositionCommit {
            partition: partition(topic, number),
            offset: offset.map(Offset::new),
            leader_epoch: None,
            note: String::new(),
        }
    }

    fn commit(group: &str, positions: Vec<PositionCommit>) -> GroupCommand {
        GroupCommand::Commit { group: group.to_owned(), positions }
    }

    #[test]
    fn groups_stand_apart_and_positions_may_go_back() {
        let mut groups = Groups::default();
        assert_eq!(groups.apply(&commit("live", vec![at(1, 0, Some(9))]), NOW), GroupReply::Done);
        assert_eq!(groups.apply(&commit("nightly", vec![at(1, 0, Some(2))]), NOW), GroupReply::Done);
        assert_eq!(
            groups.apply(&commit("live", vec![at(1, 0, Some(4)), at(1, 1, Some(1))]), NOW),
            GroupReply::Done
        );
        let offset =
            |group: &str, number| groups.group(group)?.get(&partition(1, number)).map(|p| p.offset.get());
        assert_eq!(offset("live", 0), Some(4));
        assert_eq!(offset("live", 1), Some(1));
        assert_eq!(offset("nightly", 0), Some(2));
        assert_eq!(groups.names().collect::<Vec<_>>(), ["live", "nightly"]);
    }

    #[test]
    fn a_refused_commit_changes_nothing() {
        let mut groups = Groups::default();
        let long = "g".repeat(256);
        for bad in [
            commit("", vec![at(1, 0, Some(1))]),
            commit(&long, vec![at(1, 0, Some(1))]),
            commit("tab\t", vec![at(1, 0, Some(1))]),
            commit("g", vec![at(1, 0, Some(1)), at(1, 1, Some(-1))]),
            commit("g", vec![PositionCommit { note: "n".repeat(5000), ..at(1, 0, Some(1)) }]),
            GroupCommand::Delete { group: "g".into() },
        ] {
            assert!(matches!(groups.apply(&bad, NOW), GroupReply::Refused(_)), "{bad:?}");
        }
        assert_eq!(groups.names().count(), 0);
        assert!(groups.take_changes().is_empty());
    }

    #[test]
    fn a_deleted_topic_leaves_no_positions() {
        let mut groups = Groups::default();
        groups.apply(&commit("g", vec![at(1, 0, Some(1)), at(2, 0, Some(1))]), NOW);
        groups.apply(&commit("h", vec![at(1, 7, Some(1)), at(1, u32::MAX, Some(1)), at(3, 0, Some(1))]), NOW);
        let topics = |numbers: &[u128]| numbers.iter().map(|number| partition(*number, 0).topic).collect();
        assert_eq!(groups.topics(), topics(&[1, 2, 3]));
        groups.apply(&GroupCommand::ForgetTopic { topic: partition(1, 0).topic }, NOW);
        let left: Vec<_> = groups.group("g").expect("g").keys().copied().collect();
        assert_eq!(left, [partition(2, 0)]);
        assert_eq!(groups.topics(), topics(&[2, 3]));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn stored_changes_rebuild_the_groups(
            steps in proptest::collection::vec(("[abc]", 0u128..2, 0u32..3, proptest::option::of(0i64..9), 0u8..8), 1..60)
        ) {
            let mut groups = Groups::default();
            let mut stored = BTreeMap::new();
            for (group, topic, number, offset, action) in steps {
                let command = match action {
                    0 => GroupCommand::Delete { group },
                    1 => GroupCommand::ForgetTopic { topic: partition(topic, 0).topic },
                    _ => commit(&group, vec![at(topic, number, offset)]),
                };
                groups.apply(&command, NOW);
                if action % 2 == 0 {
                    for (key, value) in groups.take_changes() {
                        match value {
                            Some(value) => stored.insert(key, value),
                            None => stored.remove(&key),
                        };
                    }
                }
            }
            for (key, value) in groups.take_changes() {
                match value {
                    Some(value) => stored.insert(key, value),
                    None => stored.remove(&key),
                };
            }
            let restored = Groups::restore(stored).expect("restores");
            prop_assert_eq!(&restored.groups, &groups.groups);
            prop_assert_eq!(restored.position_count, groups.position_count);
        }
    }
}
