//! How many partitions the subscriptions of one connection have together.

use std::sync::Arc;

use tidemill_protocol::ErrorCode;
use tidemill_protocol::messages::Error;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The places of one connection; cheap to clone. Each partition costs the broker some 2 KiB, and the same may be added again and again, on as
/// many streams as there may be.
#[derive(Clone)]
pub(crate) struct Places {
    free: Arc<Semaphore>,
    most: usize,
}

/// One partition's, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    _permit: OwnedSemaphorePermit,
}

impl Places {
    /// Of one more connection: all its streams have these.
    pub(crate) fn new(most: u32) -> Self {
        let most = usize::try_from(most).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        Self { free: Arc::new(Semaphore::new(most)), most }
    }

    /// A place for one more partition.
    ///
    /// # Errors
    /// All are taken; as the client is told.
    pub(super) fn take(&self) -> Result<Place, Error> {
        let permit = Arc::clone(&self.free).try_acquire_owned();
        permit.map(|permit| Place { _permit: permit }).map_err(|_| {
            let reason = format!(
                "the subscriptions of one connection hold at most {} partitions together (limits.connection_partitions_max); remove some, \
                 or open another connection",
                self.most
            );
            Error::new(ErrorCode::Overloaded, reason)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_that_is_dropped_is_another_partitions() {
        let places = Places::new(2);
        let of_another_stream = places.clone();
        let first = places.take().expect("a place");
        let _second = of_another_stream.take().expect("a place");
        let refused = [&places, &of_another_stream].map(|places| places.take().expect_err("none is left"));
        for error in refused {
            assert_eq!(error.error_code(), Some(ErrorCode::Overloaded));
            assert!(error.message.contains("at most 2 partitions"), "{error:?}");
        }
        assert!(Places::new(1).take().is_ok(), "another connection has its own");
        drop(first);
        let third = of_another_stream.take();
        assert!(third.is_ok() && places.take().is_err());
    }
}
