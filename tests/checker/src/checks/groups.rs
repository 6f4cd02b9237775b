//! Positions of consumer groups.

use std::collections::HashMap;

use crate::error::EventError;
use crate::facts::Facts;
use crate::finding::{Finding, Kind};
use crate::ids::TopicPartition;

/// Commits without an outcome that are remembered for a group and partition. Where there are more, its positions are not checked.
const OPEN_COMMITS_MAX: usize = 4_096;

/// Groups' positions, by group and slot.
#[derive(Debug, Default)]
pub(crate) struct Groups {
    positions: HashMap<String, HashMap<u16, Committed>>,
}

#[derive(Debug, Default)]
struct Committed {
    /// The last that was acknowledged.
    last: Option<u64>,
    /// Tried, and not acknowledged before `last`: any of them may be the position.
    open: Vec<u64>,
    is_overfull: bool,
}

impl Groups {
    pub(crate) fn commit(
        &mut self,
        facts: &mut Facts,
        group: &str,
        partition: &TopicPartition,
        offset: u64,
    ) -> Result<(), EventError> {
        let known = self.known(facts, group, partition)?;
        if known.open.len() < OPEN_COMMITS_MAX {
            known.open.push(offset);
        } else {
            known.is_overfull = true;
        }
        Ok(())
    }

    pub(crate) fn committed(
        &mut self,
        facts: &mut Facts,
        group: &str,
        partition: &TopicPartition,
        offset: u64,
    ) -> Result<(), EventError> {
        let known = self.known(facts, group, partition)?;
        if let Some(place) = known.open.iter().position(|open| *open == offset) {
            known.open.remove(place);
        }
        known.last = Some(offset);
        Ok(())
    }

    pub(crate) fn position(
        &mut self,
        facts: &mut Facts,
        group: &str,
        partition: &TopicPartition,
        offset: Option<u64>,
    ) -> Result<(), EventError> {
        let known = self.known(facts, group, partition)?;
        let is_one = known.is_overfull
            || offset == known.last
            || offset.is_some_and(|offset| known.open.contains(&offset));
        facts.findings.check(is_one, 0, || {
            let shown = |offset: Option<u64>| offset.map_or("none".to_owned(), |offset| offset.to_string());
            let what = format!(
                "the position of group {group} in {partition} is {}; the last that was committed is {}, and {} other commits \
                 have no outcome",
                shown(offset),
                shown(known.last),
                known.open.len()
            );
            let offsets: Vec<u64> = known.last.into_iter().chain(offset).collect();
            Finding::new(Kind::GroupPosition, what).at(partition, &offsets).group(group)
        });
        Ok(())
    }

    fn known(
        &mut self,
        facts: &mut Facts,
        group: &str,
        partition: &TopicPartition,
    ) -> Result<&mut Committed, EventError> {
        let slot = facts.slot(partition)?;
        if !self.positions.contains_key(group) {
            self.positions.insert(group.to_owned(), HashMap::new());
        }
        let of_group = self.positions.entry(group.to_owned()).or_default();
        Ok(of_group.entry(slot).or_default())
    }
}
