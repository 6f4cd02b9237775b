//! Congestion control: quinn's Cubic (RFC 9438), bounded by what the way can hold.
//!
//! Cubic sends more until something is lost. Between near peers nothing is lost on the way but in the receiver's socket buffer, whenever
//! that is busy: over loopback under full load some hundred packets a second, of which quinn takes a few in a row for a path that
//! swallows large packets. More in flight than a round trip carries brings nothing, so there is an end to it.

use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn::congestion::{Controller, ControllerFactory, ControllerMetrics, CubicConfig};
use quinn_proto::RttEstimator;

/// Bytes that may be in flight before the first acknowledgement.
const INITIAL_WINDOW_BYTES: u64 = 128 << 10;
/// Bytes in flight to a near peer at most. A socket buffer of 8 MiB holds them with what the kernel adds. Measured over loopback under
/// full load: 8 MiB lost some packets, 2 MiB cost throughput.
const NEAR_BYTES: u64 = 4 << 20;
/// What is in flight to one further away: so much as this brings in a round trip, 10 Gbit/s.
const LINK_BYTES_PER_SECOND: f64 = 1.25e9;

/// Makes a controller for each path.
pub(crate) struct BoundedCubic(Arc<CubicConfig>);

impl BoundedCubic {
    pub(crate) fn new() -> Self {
        let mut cubic = CubicConfig::default();
        cubic.initial_window(INITIAL_WINDOW_BYTES);
        Self(Arc::new(cubic))
    }
}

impl ControllerFactory for BoundedCubic {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        Box::new(Bounded { inner: Arc::clone(&self.0).build(now, current_mtu), bytes_max: NEAR_BYTES })
    }
}

struct Bounded {
    inner: Box<dyn Controller>,
    bytes_max: u64,
}

/// Bytes in flight that a path with this least round trip can use.
fn bytes_max(rtt: Duration) -> u64 {
    // Saturates.
    ((rtt.as_secs_f64() * LINK_BYTES_PER_SECOND) as u64).max(NEAR_BYTES)
}

impl Controller for Bounded {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.inner.on_sent(now, bytes, last_packet_number);
    }

    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool, rtt: &RttEstimator) {
        self.bytes_max = bytes_max(rtt.min());
        // At the bound it is not the path that limits: Cubic must not count on what it was never shown.
        let is_limited = app_limited || self.inner.window() >= self.bytes_max;
        self.inner.on_ack(now, sent, bytes, is_limited, rtt);
    }

    fn on_end_acks(&mut self, now: Instant, in_flight: u64, app_limited: bool, largest: Option<u64>) {
        self.inner.on_end_acks(now, in_flight, app_limited, largest);
    }

    fn on_congestion_event(&mut self, now: Instant, sent: Instant, is_persistent: bool, lost_bytes: u64) {
        self.inner.on_congestion_event(now, sent, is_persistent, lost_bytes);
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.inner.on_mtu_update(new_mtu);
    }

    fn window(&self) -> u64 {
        self.inner.window().min(self.bytes_max)
    }

    fn metrics(&self) -> ControllerMetrics {
        let mut metrics = self.inner.metrics();
        metrics.congestion_window = self.window();
        metrics
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(Self { inner: self.inner.clone_box(), bytes_max: self.bytes_max })
    }

    fn initial_window(&self) -> u64 {
        self.inner.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A path that loses nothing, and carries all that is sent.
    #[derive(Clone)]
    struct Endless;

    impl Controller for Endless {
        fn on_congestion_event(&mut self, _: Instant, _: Instant, _: bool, _: u64) {}
        fn on_mtu_update(&mut self, _: u16) {}
        fn window(&self) -> u64 {
            u64::MAX
        }
        fn clone_box(&self) -> Box<dyn Controller> {
            Box::new(self.clone())
        }
        fn initial_window(&self) -> u64 {
            u64::MAX
        }
        fn into_any(self: Box<Self>) -> Box<dyn Any> {
            self
        }
    }

    #[test]
    fn a_window_ends_where_the_way_is_full() {
        let near = Bounded { inner: Box::new(Endless), bytes_max: bytes_max(Duration::from_micros(100)) };
        assert_eq!(near.window(), NEAR_BYTES);
        assert_eq!(near.clone_box().window(), NEAR_BYTES);
        assert_eq!(near.metrics().congestion_window, NEAR_BYTES);
        assert_eq!(bytes_max(Duration::from_millis(100)), 125_000_000, "10 Gbit/s over 100 ms");
        assert_eq!(bytes_max(Duration::MAX), u64::MAX);
    }

    #[test]
    fn it_begins_as_cubic_does() {
        let first = Arc::new(BoundedCubic::new()).build(Instant::now(), 1200);
        assert_eq!(first.window(), INITIAL_WINDOW_BYTES);
    }
}
