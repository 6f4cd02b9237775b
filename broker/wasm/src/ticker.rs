//! The thread that advances the engine's epoch while plugins run.
//!
//! An idle broker should not wake a thousand times a second, so the thread parks once nothing has run for a while. A call
//! announces itself before it enters the guest; the two sides agree as in Dekker's algorithm: the call first counts itself, then
//! looks whether the thread is parked; the thread first says that it parks, then looks whether a call has been counted.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::{self, JoinHandle, Thread};
use std::time::Duration;

/// Ticks without a running call after which the thread parks.
const IDLE_TICKS_MAX: u32 = 64;

pub(crate) struct Ticker {
    shared: Arc<Shared>,
    handle: Option<JoinHandle<()>>,
    thread: Thread,
}

struct Shared {
    running: AtomicU32,
    parked: AtomicBool,
    stopped: AtomicBool,
}

/// A call that runs: the epoch advances as long as one of these lives.
pub(crate) struct Running<'a> {
    ticker: &'a Ticker,
}

impl Ticker {
    pub(crate) fn start(engine: wasmtime::Engine, tick: Duration) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            running: AtomicU32::new(0),
            parked: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
        });
        let of_thread = Arc::clone(&shared);
        let handle = thread::Builder::new()
            .name("wasm-epoch".to_owned())
            .spawn(move || of_thread.tick_until_stopped(&engine, tick))?;
        let thread = handle.thread().clone();
        Ok(Self { shared, handle: Some(handle), thread })
    }

    pub(crate) fn running(&self) -> Running<'_> {
        self.shared.running.fetch_add(1, Ordering::SeqCst);
        if self.shared.parked.load(Ordering::SeqCst) {
            self.thread.unpark();
        }
        Running { ticker: self }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.ticker.shared.running.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        self.thread.unpark();
        if let Some(handle) = self.handle.take() {
            // The thread holds no lock and runs no foreign code: it ends within a tick.
            let _ = handle.join();
        }
    }
}

impl Shared {
    fn tick_until_stopped(&self, engine: &wasmtime::Engine, tick: Duration) {
        let mut idle_ticks = 0;
        while !self.stopped.load(Ordering::SeqCst) {
            thread::sleep(tick);
            engine.increment_epoch();
            if self.running.load(Ordering::SeqCst) > 0 {
                idle_ticks = 0;
                continue;
            }
            idle_ticks += 1;
            if idle_ticks >= IDLE_TICKS_MAX {
                self.park();
                idle_ticks = 0;
            }
        }
    }

    fn park(&self) {
        self.parked.store(true, Ordering::SeqCst);
        while self.running.load(Ordering::SeqCst) == 0 && !self.stopped.load(Ordering::SeqCst) {
            thread::park();
        }
        self.parked.store(false, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    fn engine() -> wasmtime::Engine {
        wasmtime::Engine::new(&crate::config::code_config()).expect("an engine")
    }

    fn wait_until(what: impl Fn() -> bool) {
        let end = Instant::now() + Duration::from_secs(10);
        while !what() {
            assert!(Instant::now() < end, "did not happen within 10 s");
            thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn parks_when_nothing_runs_and_wakes_for_a_call() {
        let ticker = Ticker::start(engine(), Duration::from_micros(100)).expect("a thread");
        for _ in 0..3 {
            wait_until(|| ticker.shared.parked.load(Ordering::SeqCst));
            let running = ticker.running();
            wait_until(|| !ticker.shared.parked.load(Ordering::SeqCst));
            drop(running);
        }
    }

    #[test]
    fn ends_while_parked() {
        let ticker = Ticker::start(engine(), Duration::from_micros(100)).expect("a thread");
        wait_until(|| ticker.shared.parked.load(Ordering::SeqCst));
        drop(ticker);
    }
}
