//! Whose bytes go first where several streams have some to send.
//!
//! quinn gives each stream of a connection a packet in turn. For batches that is the worst order: all of them become complete late, at
//! the same time, and the broker is woken for each packet of each. Here a batch goes out whole before one that was written after it; a
//! stream that always has more falls behind with each batch, so that nobody waits for ever. Requests and control frames have the
//! usual priority, which is above all of these.

use std::sync::atomic::{AtomicU64, Ordering};

/// Writes within so many bytes share a place, and take turns: small ones gain nothing from an order.
const PLACE_BYTES: u64 = 256 << 10;

/// The order of what is written on one connection.
#[derive(Debug, Default)]
pub(crate) struct SendOrder {
    written: AtomicU64,
}

impl SendOrder {
    /// The priority of `bytes` that are written now: below that of all that was written before.
    ///
    /// There are places for 512 TiB; on a connection that has sent more, streams take turns as if there were no order.
    pub(crate) fn next(&self, bytes: usize) -> i32 {
        let before = self.written.fetch_add(bytes as u64, Ordering::Relaxed);
        i32::try_from(before / PLACE_BYTES).map_or(i32::MIN, |place| -1 - place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_is_lower_and_the_end_is_the_lowest() {
        let order = SendOrder::default();
        assert_eq!(order.next(1 << 20), -1);
        assert_eq!(order.next(100), -5);
        assert_eq!(order.next(100), -5, "small ones share a place");
        let last = AtomicU64::new(u64::from(i32::MAX.unsigned_abs()) * PLACE_BYTES);
        let order = SendOrder { written: last };
        assert_eq!(order.next(PLACE_BYTES as usize), i32::MIN);
        assert_eq!(order.next(1), i32::MIN, "nothing wraps round");
    }
}
