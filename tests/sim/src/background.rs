//! Workers as tasks of the one thread.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Wake, Waker};
use std::thread;
use std::time::Instant;

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tidemill_log::background::{Background, OneThread, Running, Step, Worker};
use tokio::sync::Notify;

use crate::disk::SimDisk;

/// Steps after which a worker that was told to end must have ended.
const STEPS_TO_END_MAX: usize = 100_000;

/// Drives a host's workers: each is a task that does a step, passes the time that its disk took for it, and does the next.
/// Clones share them.
#[derive(Clone)]
pub struct SimBackground(Arc<Host>);

struct Host {
    disk: SimDisk,
    /// In the order in which they were started.
    slots: Mutex<Vec<Arc<Slot>>>,
    killed: AtomicBool,
    /// One time in so many a worker is not woken any more, from a seed: a bug that is put back.
    loses_wakes: Option<(u32, Mutex<StdRng>)>,
}

/// A worker, taken out once it has ended.
struct Slot {
    worker: Mutex<Option<Box<dyn Worker>>>,
    woken: Arc<Woken>,
    waker: Waker,
}

#[derive(Default)]
struct Woken(Notify);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.notify_one();
    }
}

impl SimBackground {
    /// Workers of a host with that disk.
    #[must_use]
    pub fn new(disk: SimDisk) -> Self {
        Self::losing_wakes(disk, None)
    }

    /// The same, with workers that now and then are not woken.
    pub(crate) fn losing_wakes(disk: SimDisk, one_in: Option<(u32, u64)>) -> Self {
        let loses_wakes = one_in.map(|(one_in, seed)| (one_in, Mutex::new(StdRng::seed_from_u64(seed))));
        Self(Arc::new(Host { disk, slots: Mutex::default(), killed: AtomicBool::new(false), loses_wakes }))
    }

    /// Ends all workers where they are, as the end of their process does.
    pub fn kill(&self) {
        self.0.killed.store(true, Ordering::Relaxed);
        let slots = std::mem::take(&mut *self.0.slots.lock());
        for slot in slots {
            drop(slot.worker.lock().take());
            slot.waker.wake_by_ref();
        }
    }
}

impl fmt::Debug for SimBackground {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimBackground").field("disk", &self.0.disk).finish_non_exhaustive()
    }
}

impl Background for SimBackground {
    fn now(&self) -> Instant {
        tokio::time::Instant::now().into_std()
    }

    fn start(&self, _name: &str, worker: Box<dyn Worker>) -> io::Result<Box<dyn Running>> {
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(Arc::clone(&woken));
        let slot = Arc::new(Slot { worker: Mutex::new(Some(worker)), woken, waker });
        self.0.slots.lock().push(Arc::clone(&slot));
        tokio::spawn(drive(Arc::clone(&slot), Arc::clone(&self.0)));
        Ok(Box::new(RunningSlot { slot, host: Arc::clone(&self.0) }))
    }

    fn one_thread(&self) -> Option<&dyn OneThread> {
        Some(&*self.0)
    }
}

impl OneThread for Host {
    fn help(&self) {
        let slots = self.slots.lock().clone();
        let mut worked = false;
        for slot in slots {
            worked |= matches!(slot.step(), Some(Step::Worked));
        }
        if !worked && self.killed.load(Ordering::Relaxed) {
            // A process that was killed does not wait: what it had under way ends here.
            std::panic::resume_unwind(Box::new("killed"));
        }
        // Whoever waits would wait for ever: nothing else runs until it goes on.
        assert!(worked, "the one thread waits for what nobody does");
    }

    fn pause(&self) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let disk = self.disk.clone();
        Box::pin(async move { disk.settle().await })
    }
}

impl Host {
    fn loses_wake(&self) -> bool {
        self.loses_wakes.as_ref().is_some_and(|(one_in, rng)| rng.lock().random_ratio(1, *one_in))
    }
}

impl Slot {
    /// Lets the worker do a piece of work; `None` where it is doing one, further up this thread's stack.
    fn step(&self) -> Option<Step> {
        let mut held = self.worker.try_lock()?;
        let Some(worker) = held.as_mut() else { return Some(Step::Ended) };
        let step = worker.step(&self.waker);
        if step == Step::Ended {
            let worker = held.take();
            drop(held);
            drop(worker);
            // Its task may be waiting for what comes no more.
            self.waker.wake_by_ref();
            return Some(Step::Worked);
        }
        Some(step)
    }
}

async fn drive(slot: Arc<Slot>, host: Arc<Host>) {
    loop {
        match slot.step() {
            Some(Step::Worked) => host.disk.settle().await,
            Some(Step::Idle { .. }) if host.loses_wake() => return,
            Some(Step::Idle { until: None }) => slot.woken.0.notified().await,
            Some(Step::Idle { until: Some(until) }) => {
                drop(tokio::time::timeout_at(until.into(), slot.woken.0.notified()).await);
            }
            Some(Step::Ended) | None => return,
        }
    }
}

struct RunningSlot {
    slot: Arc<Slot>,
    host: Arc<Host>,
}

impl Running for RunningSlot {
    fn is_caller(&self) -> bool {
        self.slot.worker.try_lock().is_none()
    }

    fn join(self: Box<Self>) -> thread::Result<()> {
        for _ in 0..STEPS_TO_END_MAX {
            if self.host.killed.load(Ordering::Relaxed) {
                break;
            }
            match self.slot.step() {
                Some(Step::Worked) => {}
                // What it waits for may be another worker's work.
                Some(Step::Idle { .. }) => self.host.help(),
                Some(Step::Ended) | None => break,
            }
        }
        self.host.slots.lock().retain(|slot| !Arc::ptr_eq(slot, &self.slot));
        Ok(())
    }
}
