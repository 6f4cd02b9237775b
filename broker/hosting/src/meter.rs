//! What calls cost, measured. For rehearsals: on the broker's own paths reading these clocks would cost more than most calls.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::time::{ClockId, clock_gettime};
use tidemill_wasm::{GuestSink, LogLevel};

/// What one call, or several, cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cost {
    /// From its begin to its end, waiting for a turn on the plugin runtime included.
    pub wall: Duration,
    /// Of a processor: the plugin's, and what the sandbox adds. Starting an instance for it is included.
    pub cpu: Duration,
    /// Linear memory that the instance had grown to when it ended.
    pub memory_bytes: usize,
}

/// Adds up what calls cost until it is asked.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    cost: Mutex<Cost>,
}

impl Meter {
    /// What the calls since the last time cost.
    pub(crate) fn take(&self) -> Cost {
        std::mem::take(&mut *self.cost.lock())
    }

    /// Runs a call. It may be moved between threads: each poll is charged to the thread that it happens on.
    pub(crate) async fn measure<T>(self: Arc<Self>, call: impl Future<Output = T>) -> T {
        let mut call = std::pin::pin!(call);
        let started = Instant::now();
        let mut cpu = Duration::ZERO;
        let answer = std::future::poll_fn(|context| {
            let before = thread_cpu();
            let polled = call.as_mut().poll(context);
            cpu += thread_cpu().saturating_sub(before);
            polled
        })
        .await;
        let mut cost = self.cost.lock();
        cost.wall += started.elapsed();
        cost.cpu += cpu;
        answer
    }
}

/// Measures a call where there is a meter for it.
pub(crate) async fn measured<T>(meter: Option<&Arc<Meter>>, call: impl Future<Output = T>) -> T {
    match meter {
        Some(meter) => Arc::clone(meter).measure(call).await,
        None => call.await,
    }
}

/// Passes everything on, and tells the meter of the instances' memory.
pub(crate) struct MeteredSink {
    pub(crate) sink: Arc<dyn GuestSink>,
    pub(crate) meter: Arc<Meter>,
}

impl GuestSink for MeteredSink {
    fn enabled(&self, level: LogLevel) -> bool {
        self.sink.enabled(level)
    }

    fn log(&self, level: LogLevel, message: &str) {
        self.sink.log(level, message);
    }

    fn lines_dropped(&self, count: u32) {
        self.sink.lines_dropped(count);
    }

    fn count(&self, name: &str, value: u64) {
        self.sink.count(name, value);
    }

    fn call_ended(&self, memory_bytes: usize) {
        let mut cost = self.meter.cost.lock();
        cost.memory_bytes = cost.memory_bytes.max(memory_bytes);
    }
}

fn thread_cpu() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(now.tv_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn burn(time: Duration) {
        let until = thread_cpu() + time;
        while thread_cpu() < until {}
    }

    #[tokio::test]
    async fn waiting_is_wall_time_and_no_processor_time() {
        let meter = Arc::new(Meter::default());
        let call = async {
            burn(Duration::from_millis(5));
            tokio::time::sleep(Duration::from_millis(30)).await;
            burn(Duration::from_millis(5));
            7
        };
        assert_eq!(Arc::clone(&meter).measure(call).await, 7);
        let cost = meter.take();
        assert!(cost.cpu >= Duration::from_millis(10) && cost.cpu < Duration::from_millis(30), "{cost:?}");
        assert!(cost.wall >= Duration::from_millis(40), "{cost:?}");
        assert_eq!(meter.take(), Cost::default());
    }
}
