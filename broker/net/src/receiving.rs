//! Memory for frames on their way in.
//!
//! QUIC's windows bound what a peer has sent and nobody has read. A frame that was begun is read into a buffer of its
//! own, out of reach of those windows, so it counts here: from its first byte until the handler that took it asks for
//! the next. Whoever finds the budget used up is refused, not made to wait: waiting streams would hold the windows
//! that begun frames need to become complete.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Buffers of this size and less are not counted: the number of streams bounds them.
const UNCOUNTED_BYTES: usize = 4 << 10;

/// Bytes in buffers of incoming frames: of one connection and of all of them.
#[derive(Debug, Clone)]
pub(crate) struct ReceiveBudget {
    connection: Arc<Account>,
    all: Arc<Account>,
}

#[derive(Debug)]
struct Account {
    used: AtomicUsize,
    bytes_max: usize,
}

impl Account {
    fn new(bytes_max: usize) -> Arc<Self> {
        Arc::new(Self { used: AtomicUsize::new(0), bytes_max })
    }

    fn take(&self, bytes: usize) -> bool {
        let fits = |used: usize| used.checked_add(bytes).filter(|sum| *sum <= self.bytes_max);
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_ok()
    }

    fn give_back(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl ReceiveBudget {
    /// For a listener: what all its connections may hold, and each of them.
    pub(crate) fn new(all_bytes_max: usize, connection_bytes_max: usize) -> Self {
        Self { connection: Account::new(connection_bytes_max), all: Account::new(all_bytes_max) }
    }

    /// The same, for another connection.
    pub(crate) fn of_connection(&self) -> Self {
        Self { connection: Account::new(self.connection.bytes_max), all: Arc::clone(&self.all) }
    }

    /// Nothing charged yet.
    pub(crate) fn charge(&self) -> Charge {
        Charge { budget: self.clone(), bytes: 0 }
    }
}

/// What one stream has taken of the budget; given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Charge {
    budget: ReceiveBudget,
    bytes: usize,
}

impl Charge {
    /// Raises the charge to a buffer of `bytes`; `false` where that is beyond what there may be.
    pub(crate) fn raise_to(&mut self, bytes: usize) -> bool {
        let more = bytes.saturating_sub(self.bytes);
        if bytes <= UNCOUNTED_BYTES || more == 0 {
            return true;
        }
        if !self.budget.connection.take(more) {
            return false;
        }
        if !self.budget.all.take(more) {
            self.budget.connection.give_back(more);
            return false;
        }
        self.bytes += more;
        true
    }

    /// Gives everything back.
    pub(crate) fn clear(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        self.budget.connection.give_back(bytes);
        self.budget.all.give_back(bytes);
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_and_all_of_them_have_an_end() {
        let budget = ReceiveBudget::new(150_000, 100_000);
        let (mut a, mut b) = (budget.of_connection().charge(), budget.of_connection().charge());
        assert!(a.raise_to(60_000) && a.raise_to(100_000), "only the difference counts");
        assert!(!a.raise_to(100_001), "the connection's end");
        assert!(!b.raise_to(60_000), "the end of all");
        assert!(b.raise_to(50_000) && b.raise_to(UNCOUNTED_BYTES));
        drop(a);
        assert!(b.raise_to(100_000));
        b.clear();
        assert!(b.raise_to(100_000), "what was given back can be taken again");
    }
}
