//! Where guest code runs when it does not answer at once.
//!
//! A call of a partitioner or filter is polled once where it is made: most answer within microseconds. One that runs for
//! longer than an epoch tick gives way, and the same future goes on here, on threads that do not serve connections:
//! what a producer waits for on a lane of normal priority whose one thread is its quota of processor time, the rest on
//! niced threads. Tasks always run on the niced ones.

use std::future::Future;
use std::pin::Pin;
use std::task::Poll;

use tokio::runtime::{Builder, Handle, Runtime};
use tokio::task::JoinHandle;

use crate::plan::Lane;

/// Niceness of threads that nobody waits for at once.
const NICENESS: i32 = 10;

/// The threads for guest code. Stops when dropped.
pub(crate) struct PluginRuntime {
    /// Taken when it is dropped.
    normal: Option<Runtime>,
    low: Option<Runtime>,
    normal_handle: Handle,
    low_handle: Handle,
}

/// The runtime stopped before the call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stopped;

impl PluginRuntime {
    pub(crate) fn start() -> std::io::Result<Self> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let normal = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("plugin-produce")
            .enable_all()
            .build()?;
        let low = Builder::new_multi_thread()
            .worker_threads(threads)
            .thread_name("plugin")
            .on_thread_start(lower_priority)
            .enable_all()
            .build()?;
        let (normal_handle, low_handle) = (normal.handle().clone(), low.handle().clone());
        Ok(Self { normal: Some(normal), low: Some(low), normal_handle, low_handle })
    }

    /// Polls here once, and moves what is not done.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        lane: Lane,
        future: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, Stopped> {
        let mut future: Pin<Box<dyn Future<Output = T> + Send>> = Box::pin(future);
        if let Poll::Ready(answer) = futures::poll!(&mut future) {
            return Ok(answer);
        }
        metrics::counter!("tidemill_plugin_calls_moved_total").increment(1);
        let handle = match lane {
            Lane::Produce => &self.normal_handle,
            Lane::Subscribe => &self.low_handle,
        };
        let mut moved = AbortOnDrop(handle.spawn(future));
        (&mut moved.0).await.map_err(|_| Stopped)
    }

    /// Starts a task on the niced threads.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) -> JoinHandle<()> {
        self.low_handle.spawn(task)
    }
}

impl Drop for PluginRuntime {
    fn drop(&mut self) {
        // Waiting would block whoever drops it, who may be on a runtime himself.
        self.normal.take().into_iter().chain(self.low.take()).for_each(Runtime::shutdown_background);
    }
}

/// A caller that goes away takes its call along.
struct AbortOnDrop<T>(JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn lower_priority() {
    // On Linux this is the thread's own niceness, not the process's.
    if let Err(error) = rustix::process::setpriority_process(None, NICENESS) {
        tracing::debug!(%error, "plugin threads run at normal priority");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn what_answers_at_once_stays_and_what_does_not_moves() {
        let runtime = PluginRuntime::start().expect("threads");
        let here = std::thread::current().id();
        let at_once = runtime.run(Lane::Produce, async { std::thread::current().id() }).await;
        assert_eq!(at_once, Ok(here));
        let later = runtime
            .run(Lane::Subscribe, async {
                tokio::task::yield_now().await;
                std::thread::current().name().map(str::to_owned)
            })
            .await;
        assert_eq!(later, Ok(Some("plugin".to_owned())));
    }

    #[tokio::test]
    async fn a_caller_that_goes_away_ends_its_call() {
        struct Flag(Arc<AtomicBool>);
        impl Drop for Flag {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Release);
            }
        }
        let runtime = PluginRuntime::start().expect("threads");
        let ended = Arc::new(AtomicBool::new(false));
        let flag = Flag(Arc::clone(&ended));
        let call = runtime.run(Lane::Subscribe, async move {
            let _flag = flag;
            std::future::pending::<()>().await;
        });
        assert!(tokio::time::timeout(Duration::from_millis(20), call).await.is_err());
        for _ in 0..500 {
            if ended.load(Ordering::Acquire) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        panic!("the call went on without its caller");
    }
}
