//! Waiting for what a broker does in its own time.

use std::time::Duration;

use tidemill_client::Client;
use tidemill_client::messages::{Deployment, DeploymentStatus};
use tokio::time::{Instant, sleep};

use crate::Outcome;

/// Between two looks.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// Looks until there is something to see. `None` is not yet.
///
/// # Errors
/// The deadline passed.
pub async fn eventually<T, F: Future<Output = Option<T>>>(
    what: &str,
    within: Duration,
    mut look: impl FnMut() -> F,
) -> Outcome<T> {
    let deadline = Instant::now() + within;
    loop {
        if let Some(seen) = look().await {
            return Ok(seen);
        }
        if Instant::now() >= deadline {
            return Err(format!("{what}: not within {within:?}").into());
        }
        sleep(LOOK_INTERVAL).await;
    }
}

/// Waits until each of `tasks` tasks of a hosted consumer has handled all that is there, and what they emitted has arrived.
///
/// # Errors
/// A task stopped, or the deadline passed.
pub async fn caught_up(
    client: &Client,
    deployment: &str,
    tasks: usize,
    within: Duration,
) -> Outcome<Deployment> {
    let deadline = Instant::now() + within;
    loop {
        let seen = client.deployments().describe(deployment).await;
        if let Ok(seen) = &seen {
            if let Some(stopped) = seen.tasks.iter().find(|task| task.status() != DeploymentStatus::Running) {
                return Err(format!(
                    "task {} of {deployment} stopped: {}",
                    stopped.partition, stopped.reason
                )
                .into());
            }
            if seen.tasks.len() == tasks && seen.tasks.iter().all(is_idle) {
                return Ok(seen.clone());
            }
        }
        if Instant::now() >= deadline {
            let tasks = seen.map(|seen| seen.tasks);
            return Err(format!("{deployment} has not caught up within {within:?}: {tasks:?}").into());
        }
        sleep(LOOK_INTERVAL).await;
    }
}

fn is_idle(task: &tidemill_client::messages::TaskStatus) -> bool {
    task.outbox_bytes == 0 && task.positions.iter().all(|source| source.position == source.high_watermark)
}
