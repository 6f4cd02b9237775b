//! Lookups that run beside the task that owns the set: one that waits for a majority holds up nobody else.

use std::collections::HashMap;

use tokio::task::{AbortHandle, JoinError, JoinSet};

/// What is being looked up for a subscription's partitions, by the client's id: for each the newest alone.
///
/// Each lookup is a task of its own. Were they polled by the set's task, one that holds what others in the broker wait for would stand still
/// while that task waits for a slow reader.
pub(super) struct Lookups<T> {
    under_way: HashMap<u32, UnderWay>,
    tasks: JoinSet<Done<T>>,
    /// Lookups that there have been.
    begun: u64,
}

/// One of the lookups; the number tells it from earlier ones for the same id.
struct UnderWay {
    number: u64,
    task: AbortHandle,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What came of a lookup.
struct Done<T> {
    id: u32,
    number: u64,
    found: T,
}

impl<T: Send + 'static> Lookups<T> {
    pub(super) fn new() -> Self {
        Self { under_way: HashMap::new(), tasks: JoinSet::new(), begun: 0 }
    }

    /// Whether none is under way.
    pub(super) fn is_empty(&self) -> bool {
        self.under_way.is_empty()
    }

    /// Begins one, in place of the one for the same id that is under way.
    pub(super) fn begin(&mut self, id: u32, lookup: impl Future<Output = T> + Send + 'static) {
        self.begun += 1;
        let number = self.begun;
        let task = self.tasks.spawn(async move { Done { id, number, found: lookup.await } });
        self.under_way.insert(id, UnderWay { number, task });
    }

    /// Ends the one for an id, whatever it has found.
    pub(super) fn end(&mut self, id: u32) {
        self.under_way.remove(&id);
    }

    /// Waits for what one finds; for ever where none is under way. Cancel-safe.
    pub(super) async fn next(&mut self) -> (u32, T) {
        loop {
            match self.tasks.join_next().await {
                Some(joined) => {
                    if let Some(found) = self.current(joined) {
                        return found;
                    }
                }
                None => std::future::pending().await,
            }
        }
    }

    /// What one has found already.
    pub(super) fn try_next(&mut self) -> Option<(u32, T)> {
        while let Some(joined) = self.tasks.try_join_next() {
            if let Some(found) = self.current(joined) {
                return Some(found);
            }
        }
        None
    }

    /// What came of one, unless it was ended or a newer one took its place.
    fn current(&mut self, joined: Result<Done<T>, JoinError>) -> Option<(u32, T)> {
        let done = match joined {
            Ok(done) => done,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_ended) => return None,
        };
        self.under_way.get(&done.id).filter(|under_way| under_way.number == done.number)?;
        self.under_way.remove(&done.id);
        Some((done.id, done.found))
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use futures::FutureExt;

    use super::Lookups;

    /// Lets the tasks of a test run as far as they come.
    async fn let_run() {
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_newer_one_takes_the_place_of_one_that_has_found_something() {
        let mut lookups = Lookups::new();
        lookups.begin(1, async { "old" });
        let_run().await;
        lookups.begin(1, async { "new" });
        assert_eq!(lookups.next().await, (1, "new"));
        assert!(lookups.is_empty());
        assert_eq!(lookups.try_next(), None);
    }

    #[tokio::test]
    async fn one_that_waits_holds_up_no_other() {
        let mut lookups = Lookups::new();
        lookups.begin(1, pending());
        lookups.begin(2, async { "found" });
        assert_eq!(lookups.next().await, (2, "found"));
        assert!(!lookups.is_empty());
        assert_eq!(lookups.try_next(), None);
    }

    #[tokio::test]
    async fn one_that_was_ended_is_never_heard_of() {
        let mut lookups = Lookups::new();
        lookups.begin(1, async { "found" });
        let_run().await;
        lookups.end(1);
        assert!(lookups.is_empty());
        assert_eq!(lookups.try_next(), None);
        assert_eq!(lookups.next().now_or_never(), None);
    }
}
