//! What openraft runs on: tokio, with randomness that can be handed in, and a way to do what blocks.

use std::cell::RefCell;
use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use openraft::impls::TokioRuntime;
use openraft::{AsyncRuntime, OptionalSend};
use rand::rngs::{StdRng, ThreadRng};
use rand::{Rng, SeedableRng, TryRng};
use tidemill_log::background::Background;

thread_local! {
    static SEEDED: RefCell<Option<StdRng>> = const { RefCell::new(None) };
}

/// From now on the replicas' tasks on this thread draw their election time-outs from this seed rather than from the
/// system's randomness. For whoever owns the thread and all that happens on it: a simulation.
pub fn seed_thread(seed: u64) {
    SEEDED.with(|rng| *rng.borrow_mut() = Some(StdRng::seed_from_u64(seed)));
}

/// Does what blocks on the disk: on a thread for that, so that no task is held up by it, or where callers and workers share
/// one thread, at once.
pub(crate) async fn blocking<T: Send + 'static>(
    background: &Arc<dyn Background>,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    let Some(one_thread) = background.one_thread() else {
        return tokio::task::spawn_blocking(work).await.map_err(io::Error::other);
    };
    let done = work();
    one_thread.pause().await;
    Ok(done)
}

/// tokio, but for the randomness.
#[derive(Debug)]
pub(crate) struct Runtime(TokioRuntime);

impl AsyncRuntime for Runtime {
    type JoinError = <TokioRuntime as AsyncRuntime>::JoinError;
    type JoinHandle<T: OptionalSend + 'static> = <TokioRuntime as AsyncRuntime>::JoinHandle<T>;
    type Sleep = <TokioRuntime as AsyncRuntime>::Sleep;
    type Instant = <TokioRuntime as AsyncRuntime>::Instant;
    type TimeoutError = <TokioRuntime as AsyncRuntime>::TimeoutError;
    type Timeout<R, T: Future<Output = R> + OptionalSend> = <TokioRuntime as AsyncRuntime>::Timeout<R, T>;
    type ThreadLocalRng = Randomness;
    type Mpsc = <TokioRuntime as AsyncRuntime>::Mpsc;
    type Watch = <TokioRuntime as AsyncRuntime>::Watch;
    type Oneshot = <TokioRuntime as AsyncRuntime>::Oneshot;
    type Mutex<T: OptionalSend + 'static> = <TokioRuntime as AsyncRuntime>::Mutex<T>;

    #[inline]
    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        TokioRuntime::spawn(future)
    }

    #[inline]
    fn sleep(duration: Duration) -> Self::Sleep {
        TokioRuntime::sleep(duration)
    }

    #[inline]
    fn sleep_until(deadline: Self::Instant) -> Self::Sleep {
        TokioRuntime::sleep_until(deadline)
    }

    #[inline]
    fn timeout<R, F: Future<Output = R> + OptionalSend>(
        duration: Duration,
        future: F,
    ) -> Self::Timeout<R, F> {
        TokioRuntime::timeout(duration, future)
    }

    #[inline]
    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(
        deadline: Self::Instant,
        future: F,
    ) -> Self::Timeout<R, F> {
        TokioRuntime::timeout_at(deadline, future)
    }

    #[inline]
    fn is_panic(join_error: &Self::JoinError) -> bool {
        TokioRuntime::is_panic(join_error)
    }

    #[inline]
    fn thread_rng() -> Randomness {
        let seeded = SEEDED.with(|rng| rng.borrow().is_some());
        if seeded { Randomness::Seeded } else { Randomness::System(TokioRuntime::thread_rng()) }
    }

    fn new(threads: usize) -> Self {
        Self(TokioRuntime::new(threads))
    }

    fn block_on<F, T>(&mut self, future: F) -> T
    where
        F: Future<Output = T>,
    {
        self.0.block_on(future)
    }
}

/// Where openraft's randomness comes from.
pub(crate) enum Randomness {
    /// The system.
    System(ThreadRng),
    /// What [`seed_thread`] was given.
    Seeded,
}

impl Randomness {
    fn with<T>(&mut self, draw: impl FnOnce(&mut dyn Rng) -> T) -> T {
        match self {
            Self::System(rng) => draw(rng),
            Self::Seeded => SEEDED.with(|seeded| {
                // Never taken back once it is there.
                draw(seeded.borrow_mut().get_or_insert_with(|| StdRng::seed_from_u64(0)))
            }),
        }
    }
}

impl TryRng for Randomness {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok(self.with(|rng| rng.next_u32()))
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(self.with(|rng| rng.next_u64()))
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        self.with(|rng| rng.fill_bytes(bytes));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use rand::RngExt;

    use super::*;

    fn draw() -> [u64; 4] {
        std::array::from_fn(|_| Runtime::thread_rng().random())
    }

    #[test]
    fn a_seeded_thread_draws_the_same_again_and_others_do_not() {
        let seeded = std::thread::spawn(|| {
            seed_thread(7);
            let first = draw();
            seed_thread(7);
            assert_eq!(draw(), first);
            seed_thread(8);
            assert_ne!(draw(), first);
            first
        });
        assert_ne!(draw(), seeded.join().unwrap());
    }
}
