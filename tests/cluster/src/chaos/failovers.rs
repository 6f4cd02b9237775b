use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Probes that wait at the most.
const WAITING_MAX: usize = 1_000;

/// Measures the time from a leader's kill to the next acknowledged write of each partition that it led.
#[derive(Debug, Default)]
pub(super) struct Failovers {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Partition, and when its leader was gone.
    waiting: Vec<(u32, Instant)>,
    times: Vec<Duration>,
}

impl Failovers {
    /// The leader of these partitions is gone as of now.
    pub(super) fn leader_is_gone(&self, partitions: &[u32]) {
        let now = Instant::now();
        let mut state = self.state();
        for partition in partitions {
            if state.waiting.len() < WAITING_MAX {
                state.waiting.push((*partition, now));
            }
        }
    }

    /// A record of a partition was acknowledged now. Those that had been sent before the leader was gone say nothing of it.
    pub(super) fn acknowledged(&self, partition: u32, sent: Instant) {
        let mut state = self.state();
        let State { waiting, times } = &mut *state;
        waiting.retain(|(of, since)| {
            let is_over = *of == partition && sent >= *since;
            if is_over {
                times.push(since.elapsed());
            }
            !is_over
        });
    }

    /// Something else has happened: what is waited for would not be measured by the kill alone.
    pub(super) fn forget(&self) {
        self.state().waiting.clear();
    }

    pub(super) fn times(&self) -> Vec<Duration> {
        self.state().times.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
