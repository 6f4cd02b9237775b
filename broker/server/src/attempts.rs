//! Routed batches under way: a second attempt passes the same produce filter as the first.
//!
//! A routed batch becomes a unit in each of several shards. After a crash one shard may have its part and another not, and a
//! retry fills the gap; so it must be split exactly as before, of the records that were left before. Which filter they
//! passed is in the log with them. What is under way and in no shard's state yet is kept here.

use std::collections::HashMap;
use std::collections::hash_map::{Entry, RandomState};
use std::hash::BuildHasher;
use std::sync::Arc;

use parking_lot::Mutex;
use tidemill_protocol::{ProducerEpoch, ProducerId, TopicId};
use tidemill_shard::FilterPass;

/// Locks that the batches are spread over.
const STRIPES: usize = 32;

/// Which batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct RoutedKey {
    pub(crate) topic: TopicId,
    pub(crate) producer: ProducerId,
    pub(crate) epoch: ProducerEpoch,
    pub(crate) topic_sequence: u64,
}

/// The routed batches under way on this broker. Bounded by what its produce streams may have in flight.
#[derive(Default)]
pub(crate) struct Attempts {
    hasher: RandomState,
    stripes: [Mutex<HashMap<RoutedKey, UnderWay>>; STRIPES],
}

struct UnderWay {
    filtered: Option<FilterPass>,
    attempts: usize,
}

/// One attempt; it ends when this is dropped.
pub(crate) struct Attempt {
    entry: Option<(Arc<Attempts>, RoutedKey)>,
    /// What the batch is to pass.
    pub(crate) filtered: Option<FilterPass>,
}

impl Attempts {
    /// Begins an attempt: it passes what another one that is under way passes, else what `decide` says.
    pub(crate) fn begin(
        self: &Arc<Self>,
        key: RoutedKey,
        decide: impl FnOnce() -> Option<FilterPass>,
    ) -> Attempt {
        let filtered = match self.stripe(&key).lock().entry(key) {
            Entry::Occupied(mut under_way) => {
                under_way.get_mut().attempts += 1;
                under_way.get().filtered
            }
            Entry::Vacant(place) => place.insert(UnderWay { filtered: decide(), attempts: 1 }).filtered,
        };
        Attempt { entry: Some((Arc::clone(self), key)), filtered }
    }

    fn stripe(&self, key: &RoutedKey) -> &Mutex<HashMap<RoutedKey, UnderWay>> {
        let number = self.hasher.hash_one(key) % STRIPES as u64;
        &self.stripes[usize::try_from(number).unwrap_or(0)]
    }
}

impl Attempt {
    /// The one attempt at a batch that is never sent again.
    pub(crate) const fn alone(filtered: Option<FilterPass>) -> Self {
        Self { entry: None, filtered }
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        let Some((all, key)) = &self.entry else { return };
        if let Entry::Occupied(mut under_way) = all.stripe(key).lock().entry(*key) {
            under_way.get_mut().attempts -= 1;
            if under_way.get().attempts == 0 {
                under_way.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tidemill_protocol::{DeploymentId, Timestamp};

    use super::*;

    #[test]
    fn a_second_attempt_passes_what_the_first_does_for_as_long_as_either_is_under_way() {
        let attempts = Arc::<Attempts>::default();
        let key = |topic_sequence| RoutedKey {
            topic: TopicId::new(uuid::Uuid::from_u128(1)),
            producer: ProducerId::new(1),
            epoch: ProducerEpoch::new(0),
            topic_sequence,
        };
        let pass = |filter| Some(FilterPass { filter: DeploymentId::new(filter), now: Timestamp::new(5) });
        let first = attempts.begin(key(7), || pass(1));
        let second = attempts.begin(key(7), || pass(2));
        assert_eq!((first.filtered, second.filtered), (pass(1), pass(1)));
        assert_eq!(attempts.begin(key(8), || pass(2)).filtered, pass(2), "another batch");
        drop(first);
        assert_eq!(attempts.begin(key(7), || None).filtered, pass(1), "the second is still under way");
        drop(second);
        assert_eq!(attempts.begin(key(7), || None).filtered, None);
        assert!(attempts.stripes.iter().all(|stripe| stripe.lock().is_empty()));
    }
}
