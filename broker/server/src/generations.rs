//! Which stream of a producer may write to a place: the one of the highest generation.
//!
//! A producer whose stream broke opens another and sends everything unanswered again. What of the broken one is still on its way
//! here, in buffers or waiting for room, must not come in between. So a new stream takes its turn before it is told that it is
//! open, and from then on the older one proposes nothing.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use parking_lot::Mutex;
use tidemill_protocol::messages::Error;
use tidemill_protocol::{ErrorCode, ProducerEpoch, ProducerId, TopicId, TopicPartition};

/// What a produce stream writes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Target {
    Partition(TopicPartition),
    Routed(TopicId),
}

type Key = (ProducerId, Target);

/// The produce streams of idempotent producers. Bounded by the streams that are open: each takes its entry along.
#[derive(Default)]
pub(crate) struct Generations {
    newest: Mutex<HashMap<Key, Newest>>,
}

struct Newest {
    /// A newer epoch counts its generations anew.
    order: (ProducerEpoch, u64),
    is_over: Arc<Mutex<bool>>,
}

/// A stream's right to propose, until a newer stream takes it, or this is dropped.
pub(crate) struct Turn {
    /// `None` for a producer without an id: nobody can tell its streams apart.
    held: Option<(Arc<Generations>, Key)>,
    is_over: Arc<Mutex<bool>>,
}

impl Generations {
    /// Takes the turn from an older stream; when this returns the older one proposes nothing any more.
    ///
    /// # Errors
    /// A stream of this generation or a higher one is open.
    pub(crate) fn enter(
        self: &Arc<Self>,
        producer: ProducerId,
        target: Target,
        order: (ProducerEpoch, u64),
    ) -> Result<Turn, Error> {
        let is_over = Arc::new(Mutex::new(false));
        if producer.get() < 0 {
            return Ok(Turn { held: None, is_over });
        }
        let key = (producer, target);
        let newest = Newest { order, is_over: Arc::clone(&is_over) };
        let older = match self.newest.lock().entry(key) {
            Entry::Vacant(place) => {
                place.insert(newest);
                None
            }
            Entry::Occupied(place) if place.get().order >= order => {
                return Err(stale(&format!(
                    "producer {producer} has a stream of generation {} open, and this is its generation {}",
                    place.get().order.1,
                    order.1
                )));
            }
            Entry::Occupied(mut place) => Some(place.insert(newest)),
        };
        if let Some(older) = older {
            *older.is_over.lock() = true;
        }
        Ok(Turn { held: Some((Arc::clone(self), key)), is_over })
    }
}

impl Turn {
    /// Does what must not happen once a newer stream is open.
    ///
    /// # Errors
    /// One is.
    pub(crate) fn propose<T>(&self, propose: impl FnOnce() -> T) -> Result<T, Error> {
        // Held meanwhile: a newer stream opens before it or after it.
        let is_over = self.is_over.lock();
        if *is_over {
            return Err(stale("a newer stream of the same producer has taken over from this one"));
        }
        Ok(propose())
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let Some((all, key)) = &self.held else { return };
        if let Entry::Occupied(newest) = all.newest.lock().entry(*key)
            && Arc::ptr_eq(&newest.get().is_over, &self.is_over)
        {
            newest.remove();
        }
    }
}

fn stale(message: &str) -> Error {
    Error::new(ErrorCode::StaleGeneration, message.to_owned())
}

#[cfg(test)]
mod tests {
    use tidemill_protocol::PartitionId;

    use super::*;

    #[test]
    fn a_newer_stream_takes_the_turn_and_an_older_one_never_takes_it_back() {
        let all = Arc::<Generations>::default();
        let topic = TopicId::new(uuid::Uuid::from_u128(1));
        let partition = |number| Target::Partition(TopicPartition::new(topic, PartitionId::new(number)));
        let enter = |producer, target, epoch, generation| {
            all.enter(ProducerId::new(producer), target, (ProducerEpoch::new(epoch), generation))
        };
        let is_stale = |error: Error| error.error_code() == Some(ErrorCode::StaleGeneration);
        let first = enter(7, partition(0), 0, 3).expect("nobody else");
        assert_eq!(first.propose(|| 5).expect("its turn"), 5);
        for older in [3, 2, 0] {
            assert!(enter(7, partition(0), 0, older).is_err_and(is_stale), "generation {older}");
        }
        // Elsewhere, and others.
        let elsewhere = [
            enter(7, partition(1), 0, 1).expect("another partition"),
            enter(7, Target::Routed(topic), 0, 1).expect("routed"),
            enter(8, partition(0), 0, 1).expect("another producer"),
        ];
        let second = enter(7, partition(0), 0, 4).expect("newer");
        assert!(first.propose(|| panic!("not its turn any more")).is_err_and(is_stale));
        drop(first);
        assert!(enter(7, partition(0), 0, 3).is_err_and(is_stale), "the second is still open");
        let reborn = enter(7, partition(0), 1, 1).expect("a newer epoch");
        assert!(second.propose(|| ()).is_err());
        assert!(elsewhere.iter().all(|turn| turn.propose(|| ()).is_ok()));
        let nobody = [enter(-1, partition(0), -1, 0), enter(-1, partition(0), -1, 0)];
        assert!(nobody.iter().all(|turn| turn.as_ref().is_ok_and(|turn| turn.propose(|| ()).is_ok())));
        drop((second, reborn, elsewhere, nobody));
        assert!(all.newest.lock().is_empty());
    }
}
