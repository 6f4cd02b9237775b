//! The first calls of a component that nobody vouches for yet: `describe` at upload, `init` when a configuration is tried.
//!
//! Each may take a second of CPU time, and whoever may upload or subscribe may cause as many as he likes. So only some run at one time,
//! and one that overran or trapped is not tried again at once.

use std::collections::HashMap;
use std::future::Future;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Semaphore;

use crate::batch::Context;
use crate::error::CallError;
use crate::limits::PluginLimits;

/// Such calls at one time.
const CONCURRENT_MAX: usize = 4;
/// How long a failure is remembered.
const FAILURE_KEPT: Duration = Duration::from_secs(5);
/// Failures remembered; beyond them, none is until some are forgotten.
const FAILURES_MAX: usize = 1024;

pub(crate) struct FirstCalls {
    turns: Semaphore,
    failures: Mutex<HashMap<[u8; 32], (Instant, CallError)>>,
}

impl FirstCalls {
    pub(crate) fn new() -> Self {
        Self { turns: Semaphore::new(CONCURRENT_MAX), failures: Mutex::default() }
    }

    /// Waits for a turn and makes the call, unless the same has just failed.
    pub(crate) async fn run<T>(
        &self,
        key: [u8; 32],
        call: impl Future<Output = Result<T, CallError>>,
    ) -> Result<T, CallError> {
        if let Some(failure) = self.failure(&key) {
            return Err(failure);
        }
        let turn = self.turns.acquire().await;
        let _turn = turn.map_err(|_| CallError::HostFailed("plugins are being stopped".to_owned()))?;
        // Somebody else may have tried meanwhile.
        if let Some(failure) = self.failure(&key) {
            return Err(failure);
        }
        let answer = call.await;
        if let Err(failure) = &answer
            && failure.is_incident()
        {
            self.remember(key, failure.clone());
        }
        answer
    }

    fn failure(&self, key: &[u8; 32]) -> Option<CallError> {
        let failures = self.failures.lock();
        failures.get(key).filter(|(at, _)| at.elapsed() < FAILURE_KEPT).map(|(_, failure)| failure.clone())
    }

    fn remember(&self, key: [u8; 32], failure: CallError) {
        let mut failures = self.failures.lock();
        if failures.len() >= FAILURES_MAX {
            failures.retain(|_, (at, _)| at.elapsed() < FAILURE_KEPT);
        }
        if failures.len() < FAILURES_MAX {
            failures.insert(key, (Instant::now(), failure));
        }
    }
}

/// What two calls have in common that must come to the same: the component, what it is given and what it may use.
pub(crate) fn key_of(digest: &blake3::Hash, context: Option<&Context>, limits: &PluginLimits) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(digest.as_bytes());
    let mut part = |text: &str| {
        hasher.update(&(text.len() as u64).to_le_bytes()).update(text.as_bytes());
    };
    if let Some(Context { deployment, topics, targets, config }) = context {
        part(deployment);
        for list in [topics, targets] {
            part(&list.len().to_string());
            list.iter().for_each(|name| part(name));
        }
        for (key, value) in config {
            part(key);
            part(value);
        }
    }
    let (memory, time) = (limits.memory_bytes_max as u64, limits.init_time.as_nanos());
    hasher.update(&memory.to_le_bytes()).update(&time.to_le_bytes());
    *hasher.finalize().as_bytes()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn some_at_a_time() {
        let (calls, running, most) = (FirstCalls::new(), AtomicUsize::new(0), AtomicUsize::new(0));
        let call = |number: u8| {
            calls.run([number; 32], async {
                let now = running.fetch_add(1, Ordering::Relaxed) + 1;
                most.fetch_max(now, Ordering::Relaxed);
                tokio::task::yield_now().await;
                running.fetch_sub(1, Ordering::Relaxed);
                Ok(())
            })
        };
        let all = futures::future::join_all((0..20).map(call)).await;
        assert!(all.iter().all(Result::is_ok));
        assert_eq!(most.into_inner(), CONCURRENT_MAX);
    }

    #[tokio::test]
    async fn an_incident_is_not_repeated_at_once() {
        let (calls, tries) = (FirstCalls::new(), AtomicUsize::new(0));
        let call = |key: u8, error: CallError| {
            let tries = &tries;
            calls.run([key; 32], async move {
                tries.fetch_add(1, Ordering::Relaxed);
                Err::<(), _>(error)
            })
        };
        let overrun = CallError::TimedOut { limit_ms: 1000 };
        for _ in 0..3 {
            assert_eq!(call(1, overrun.clone()).await, Err(overrun.clone()));
        }
        assert_eq!(tries.load(Ordering::Relaxed), 1);
        call(2, overrun).await.unwrap_err();
        assert_eq!(tries.load(Ordering::Relaxed), 2, "another configuration is another matter");
        let busy = CallError::NoCapacity("none".to_owned());
        for _ in 0..2 {
            call(3, busy.clone()).await.unwrap_err();
        }
        assert_eq!(tries.load(Ordering::Relaxed), 4, "what is not the plugin's fault may pass");
    }
}
