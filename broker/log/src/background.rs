//! What works beside the callers, and on what.
//!
//! The log's writer, the thread that prepares its files and a shard's write-behind are [`Worker`]s: state machines that
//! can be driven in two ways.
//!
//! ```text
//!   Threads            a named thread of the operating system each; a worker blocks while it has nothing to do
//!   one thread         whoever owns the thread calls step() for each piece of work, and decides what happens in between
//! ```
//!
//! Both run the same code on the same data. Which one it is comes as a parameter ([`WalConfig`](crate::wal::WalConfig),
//! the shard's configuration): a broker has threads, a simulation has one thread for whole clusters, on which nobody may
//! block. There whoever waits for a worker lends it a hand instead: [`OneThread::help`].

use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::Waker;
use std::thread::{self, JoinHandle};
use std::time::Instant;

/// Work that goes on beside the callers.
pub trait Worker: Send {
    /// Works until there will be nothing to do any more, and blocks while there is nothing.
    fn run(&mut self);

    /// Does one piece of work. It blocks on the disk at most: where there is nothing to do, `waker` is woken when there is.
    fn step(&mut self, waker: &Waker) -> Step;
}

/// What a worker's step came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Something was done; there may be more.
    Worked,
    /// There is nothing to do until the worker is woken, or until that moment.
    Idle {
        /// When there will be something to do in any case.
        until: Option<Instant>,
    },
    /// There will be nothing to do any more.
    Ended,
}

/// Runs workers, and tells them the time.
pub trait Background: fmt::Debug + Send + Sync + 'static {
    /// The time that intervals between a worker's steps are measured by.
    fn now(&self) -> Instant;

    /// Lets `worker` work until it has ended.
    ///
    /// # Errors
    /// Where that is impossible; then it never begins.
    fn start(&self, name: &str, worker: Box<dyn Worker>) -> io::Result<Box<dyn Running>>;

    /// What callers do who may not block. `None` where there are threads for that.
    fn one_thread(&self) -> Option<&dyn OneThread> {
        None
    }
}

/// A worker that was started.
pub trait Running: Send + Sync {
    /// Whether the caller is this very worker, and so must not wait for it.
    fn is_caller(&self) -> bool;

    /// Waits until the worker has ended; somebody must have told it to.
    ///
    /// # Errors
    /// It panicked.
    fn join(self: Box<Self>) -> thread::Result<()>;
}

/// Where callers and workers share one thread.
pub trait OneThread: Send + Sync {
    /// Lets the workers do a piece of work each. For callers that would block until a worker has done something, who
    /// call it until that is so, and hold no lock that a worker takes.
    fn help(&self);

    /// Passes the time that the disk took for what the caller has just done on a task rather than on a thread for what
    /// blocks.
    fn pause(&self) -> Pin<Box<dyn Future<Output = ()> + Send>>;
}

/// A thread of the operating system for each worker.
#[derive(Debug, Clone, Copy, Default)]
pub struct Threads;

impl Background for Threads {
    #[allow(clippy::disallowed_methods, reason = "somebody has to hand it in: this is what a broker has")]
    fn now(&self) -> Instant {
        Instant::now()
    }

    #[allow(clippy::disallowed_methods, reason = "whoever starts a worker joins it")]
    fn start(&self, name: &str, mut worker: Box<dyn Worker>) -> io::Result<Box<dyn Running>> {
        let handle = thread::Builder::new().name(name.to_owned()).spawn(move || worker.run())?;
        Ok(Box::new(RunningThread(handle)))
    }
}

struct RunningThread(JoinHandle<()>);

impl Running for RunningThread {
    fn is_caller(&self) -> bool {
        self.0.thread().id() == thread::current().id()
    }

    fn join(self: Box<Self>) -> thread::Result<()> {
        self.0.join()
    }
}
