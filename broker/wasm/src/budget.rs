//! A call's running time, as the processor counts it.
//!
//! The epoch only says that a tick has passed; it says nothing of how long the guest ran. A bulk fill runs for many ticks without
//! looking at the epoch, and on a busy machine a guest stands still for many. So the guest is charged for its thread's CPU time
//! between coming back and the next look. A call that is done within its first tick never asks for that clock, which costs a
//! system call: its first stretch is charged as one tick.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use wasmtime::UpdateDeadline;

use crate::error::Overrun;

#[derive(Default)]
pub(crate) struct Budget {
    time: Duration,
    tick: Duration,
    used: Duration,
    mark: Arc<Mark>,
}

/// The CPU time of the guest's thread when the guest came back to it, in nanoseconds; 0 is not known. Shared with the future that the
/// guest gives way with: it is polled when, and on the thread where, the guest comes back.
#[derive(Default)]
struct Mark(AtomicU64);

impl Budget {
    pub(crate) fn begin(&mut self, time: Duration, tick: Duration) {
        self.time = time;
        self.tick = tick;
        self.used = Duration::ZERO;
        self.mark.clear();
    }

    pub(crate) fn time(&self) -> Duration {
        self.time
    }

    /// The guest has looked at the epoch: it gives way for others, or ends.
    pub(crate) fn look(&mut self) -> wasmtime::Result<UpdateDeadline> {
        self.used += self.mark.take().map_or(self.tick, ran_since);
        if self.used >= self.time {
            return Err(wasmtime::Error::new(Overrun));
        }
        let way = GiveWay { mark: Arc::clone(&self.mark), gave_way: false };
        Ok(UpdateDeadline::YieldCustom(1, Box::pin(way)))
    }

    /// The guest is about to wait, perhaps to go on on another thread, whose clock is another. Gives what to hand to
    /// [`Budget::resume`].
    pub(crate) fn pause(&mut self) -> Paused {
        let mark = self.mark.take();
        self.used += mark.map_or(Duration::ZERO, ran_since);
        Paused { clocked: mark.is_some() }
    }

    pub(crate) fn resume(&mut self, paused: &Paused) {
        if paused.clocked {
            self.mark.set();
        }
    }
}

/// Whether the guest was on the clock when it began to wait.
pub(crate) struct Paused {
    clocked: bool,
}

impl Mark {
    fn set(&self) {
        self.0.store(thread_cpu_nanos().max(1), Ordering::Relaxed);
    }

    fn clear(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    fn take(&self) -> Option<u64> {
        Some(self.0.swap(0, Ordering::Relaxed)).filter(|&mark| mark != 0)
    }
}

struct GiveWay {
    mark: Arc<Mark>,
    gave_way: bool,
}

impl Future for GiveWay {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.gave_way {
            self.mark.set();
            return Poll::Ready(());
        }
        self.gave_way = true;
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

fn ran_since(mark: u64) -> Duration {
    Duration::from_nanos(thread_cpu_nanos().saturating_sub(mark))
}

fn thread_cpu_nanos() -> u64 {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(u64::try_from(now.tv_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::Waker;

    fn burn(time: Duration) {
        let until = thread_cpu_nanos() + u64::try_from(time.as_nanos()).unwrap();
        while thread_cpu_nanos() < until {}
    }

    /// Looks, gives way and comes back; false at the end of the budget.
    fn look_and_return(budget: &mut Budget) -> bool {
        let Ok(UpdateDeadline::YieldCustom(1, mut way)) = budget.look() else { return false };
        let mut context = Context::from_waker(Waker::noop());
        assert!(way.as_mut().poll(&mut context).is_pending());
        assert!(way.as_mut().poll(&mut context).is_ready());
        true
    }

    fn budget_of_ms(ms: u64) -> Budget {
        let mut budget = Budget::default();
        budget.begin(Duration::from_millis(ms), Duration::from_millis(1));
        budget
    }

    #[test]
    fn the_first_stretch_is_one_tick() {
        assert!(!look_and_return(&mut budget_of_ms(1)));
        assert!(look_and_return(&mut budget_of_ms(2)));
    }

    #[test]
    fn a_long_stretch_is_charged_as_what_it_was() {
        let mut budget = budget_of_ms(10);
        assert!(look_and_return(&mut budget));
        burn(Duration::from_millis(10));
        assert!(!look_and_return(&mut budget));
    }

    #[test]
    fn standing_still_and_waiting_are_free() {
        let mut budget = budget_of_ms(10);
        assert!(look_and_return(&mut budget));
        std::thread::sleep(Duration::from_millis(12));
        assert!(look_and_return(&mut budget));
        let paused = budget.pause();
        burn(Duration::from_millis(12));
        budget.resume(&paused);
        assert!(look_and_return(&mut budget));
        burn(Duration::from_millis(12));
        let paused = budget.pause();
        budget.resume(&paused);
        assert!(!look_and_return(&mut budget), "what ran before the wait is charged");
    }

    #[test]
    fn each_call_has_its_own() {
        let mut budget = budget_of_ms(2);
        assert!(look_and_return(&mut budget));
        burn(Duration::from_millis(2));
        budget.begin(Duration::from_millis(2), Duration::from_millis(1));
        assert!(look_and_return(&mut budget));
    }
}
