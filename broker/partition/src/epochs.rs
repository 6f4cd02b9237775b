//! Reigns of leaders: which offsets were appended under which leader epoch.

use serde::{Deserialize, Serialize};
use tidemill_protocol::{LeaderEpoch, Offset, Term};

/// Reigns that a partition remembers; older ones melt into the oldest remembered.
pub const EPOCHS_MAX: usize = 1024;

/// The clients' word for a reign that Raft counts in terms: the one place where the two meet.
///
/// Saturates at `i32::MAX`, which a shard that elects once a second would reach after 68 years.
#[must_use]
pub fn leader_epoch(term: Term) -> LeaderEpoch {
    LeaderEpoch::new(i32::try_from(term.get()).unwrap_or(i32::MAX))
}

/// From which offset on batches carry a leader epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochStart {
    /// The epoch.
    pub epoch: LeaderEpoch,
    /// First offset appended under it.
    pub start: Offset,
}

/// Notes that `epoch` appends at `start`.
pub(crate) fn note_epoch(epochs: &mut Vec<EpochStart>, epoch: LeaderEpoch, start: Offset) {
    if epochs.last().is_some_and(|last| last.epoch == epoch) {
        return;
    }
    if epochs.len() >= EPOCHS_MAX {
        // The oldest start covers the second oldest's offsets too: an answer for them names an epoch too old, which
        // makes a replica fetch more than it needs, never less.
        epochs.remove(1);
    }
    epochs.push(EpochStart { epoch, start });
}

/// Forgets the reigns that ended before the log start.
pub(crate) fn trim_epochs(epochs: &mut Vec<EpochStart>, log_start: Offset) {
    let gone = epochs.iter().skip(1).take_while(|next| next.start <= log_start).count();
    epochs.drain(..gone);
    if let Some(first) = epochs.first_mut() {
        first.start = first.start.max(log_start);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn starts(epochs: &[EpochStart]) -> Vec<(i32, i64)> {
        epochs.iter().map(|e| (e.epoch.get(), e.start.get())).collect()
    }

    #[test]
    fn a_reign_is_noted_once_and_forgotten_with_its_records() {
        let mut epochs = Vec::new();
        for (epoch, start) in [(1, 0), (1, 10), (3, 20), (4, 30)] {
            note_epoch(&mut epochs, LeaderEpoch::new(epoch), Offset::new(start));
        }
        assert_eq!(starts(&epochs), [(1, 0), (3, 20), (4, 30)]);
        trim_epochs(&mut epochs, Offset::new(25));
        assert_eq!(starts(&epochs), [(3, 25), (4, 30)]);
        trim_epochs(&mut epochs, Offset::new(100));
        assert_eq!(starts(&epochs), [(4, 100)]);
    }

    #[test]
    fn reigns_are_bounded() {
        let mut epochs = Vec::new();
        for n in 0..3000 {
            note_epoch(&mut epochs, LeaderEpoch::new(n), Offset::new(i64::from(n)));
        }
        assert_eq!(epochs.len(), EPOCHS_MAX);
        assert_eq!(epochs[0].start, Offset::ZERO);
        assert_eq!(epochs[EPOCHS_MAX - 1].epoch, LeaderEpoch::new(2999));
    }

    #[test]
    fn a_term_beyond_what_clients_can_say_saturates() {
        assert_eq!(leader_epoch(Term::new(7)), LeaderEpoch::new(7));
        assert_eq!(leader_epoch(Term::new(u64::MAX)), LeaderEpoch::new(i32::MAX));
    }
}
