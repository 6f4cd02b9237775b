//! Read barriers that all share who ask for one at about the same time: the partitions of a subscription, or requests that must know what
//! the controller decided.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tidemill_protocol::{NodeId, ShardId};
use tidemill_raft::{ReadError, Replica};
use tokio::time::Instant;

/// A replica, and of which shard.
type Key = (ShardId, NodeId);

/// The last barrier at each replica, whatever came of it: whoever asked before it began needs no round of their own, so that a thousand
/// partitions that are added at once cost a round per shard, and one round's patience where there is no majority.
#[derive(Debug, Default)]
pub(crate) struct Barriers(Mutex<HashMap<Key, Arc<LastBarrier>>>);

/// Held while a barrier is under way: whoever asks meanwhile waits, and then shares the next one.
type LastBarrier = tokio::sync::Mutex<Option<Barrier>>;

/// A barrier that is over.
#[derive(Debug)]
struct Barrier {
    begun: Instant,
    ended: Instant,
    outcome: Result<(), ReadError>,
}

impl Barriers {
    /// Makes sure that a replica shows all that was acknowledged before it was `asked` for.
    ///
    /// # Errors
    /// See [`Replica::read_barrier`].
    pub(crate) async fn confirm(&self, replica: &Replica, asked: Instant) -> Result<(), ReadError> {
        let key = (replica.shard_id(), replica.node());
        self.share(key, asked, replica.read_barrier()).await
    }

    /// The outcome of a barrier that began after it was asked for: of one that others began, or else of this one.
    async fn share(
        &self,
        key: Key,
        asked: Instant,
        barrier: impl Future<Output = Result<(), ReadError>>,
    ) -> Result<(), ReadError> {
        let came = Instant::now();
        let last = self.last(key);
        let mut last = last.lock().await;
        if let Some(last) = last.as_ref().filter(|last| last.counts(asked, came)) {
            return last.outcome.clone();
        }
        let begun = Instant::now();
        let outcome = barrier.await;
        *last = Some(Barrier { begun, ended: Instant::now(), outcome: outcome.clone() });
        outcome
    }

    fn last(&self, key: Key) -> Arc<LastBarrier> {
        Arc::clone(self.0.lock().entry(key).or_default())
    }
}

impl Barrier {
    /// Whether its outcome is also that of who asked at `asked`, and `came` to wait for it. What was confirmed stays so, while a
    /// failure tells nothing of the time after it.
    fn counts(&self, asked: Instant, came: Instant) -> bool {
        self.begun >= asked && (self.outcome.is_ok() || came <= self.ended)
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    use futures::FutureExt;
    use futures::future::join_all;
    use tidemill_protocol::{BrokerId, NodeId, ShardId};
    use tidemill_raft::ReadError;
    use tokio::time::Instant;

    use super::{Barriers, Key};

    fn key() -> Key {
        (ShardId::new(1), NodeId::new(BrokerId::new(1), 1))
    }

    #[tokio::test]
    async fn a_failure_answers_all_that_asked_before_it_began() {
        let (barriers, rounds) = (Barriers::default(), AtomicU32::new(0));
        let asked = Instant::now();
        let round = || async {
            rounds.fetch_add(1, Ordering::Relaxed);
            tokio::task::yield_now().await;
            Err::<(), _>(ReadError::NoQuorum)
        };
        let answers = join_all((0..100).map(|_| barriers.share(key(), asked, round()))).await;
        assert!(answers.iter().all(|answer| *answer == Err(ReadError::NoQuorum)), "{answers:?}");
        assert_eq!(rounds.load(Ordering::Relaxed), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn all_who_ask_while_one_is_under_way_share_the_next_whatever_comes_of_it() {
        let (barriers, rounds) = (Barriers::default(), AtomicU32::new(0));
        let (barriers, rounds) = (&barriers, &rounds);
        let ask = |after_ms: u64| async move {
            tokio::time::sleep(Duration::from_millis(after_ms)).await;
            let round = async move {
                rounds.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_secs(5)).await;
                Err(ReadError::NoQuorum)
            };
            barriers.share(key(), Instant::now(), round).await
        };
        let answers = join_all((0..100).map(ask)).await;
        assert!(answers.iter().all(|answer| *answer == Err(ReadError::NoQuorum)), "{answers:?}");
        assert_eq!(rounds.load(Ordering::Relaxed), 2, "the first one's, and that of all others");
    }

    #[tokio::test]
    async fn whoever_asks_after_it_began_has_another() {
        let barriers = Barriers::default();
        let first = barriers.share(key(), Instant::now(), ready(Err(ReadError::NoQuorum))).await;
        assert_eq!(first, Err(ReadError::NoQuorum));
        let later = Instant::now() + Duration::from_secs(1);
        assert_eq!(barriers.share(key(), later, ready(Ok(()))).await, Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_is_none_of_who_comes_after_it() {
        let barriers = Barriers::default();
        let asked = Instant::now();
        let failure = Err(ReadError::NoQuorum);
        assert_eq!(barriers.share(key(), asked, ready(failure.clone())).await, failure);
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(
            barriers.share(key(), asked, ready(Ok(()))).await,
            Ok(()),
            "it asked before, and came after"
        );
        let again = barriers.share(key(), asked, ready(failure)).await;
        assert_eq!(again, Ok(()), "what was confirmed stays confirmed");
    }

    #[tokio::test]
    async fn one_that_is_given_up_leaves_the_next_to_ask() {
        let barriers = Barriers::default();
        let asked = Instant::now();
        assert_eq!(barriers.share(key(), asked, pending()).now_or_never(), None);
        assert_eq!(barriers.share(key(), asked, ready(Ok(()))).await, Ok(()));
    }
}
