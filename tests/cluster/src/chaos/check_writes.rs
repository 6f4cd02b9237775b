//! Each partition takes writes, once nothing happens to the brokers any more.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::config::ChaosConfig;
use super::findings::{Findings, ViolationKind};
use super::load::DIRECT;
use super::producers::Watch;

/// While all brokers run, hear each other, and have settled, each partition acknowledges something within this time.
const WITHIN: Duration = Duration::from_secs(30);
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// To be called while producers send to all partitions.
pub(super) async fn check_writes(watch: &Watch, findings: &mut Findings) {
    let (begun, before) = (Instant::now(), watch.of_direct());
    let silent = loop {
        // A producer that has sent all that it was to says nothing of the brokers.
        if watch.sending.load(Ordering::Relaxed) < ChaosConfig::PRODUCERS {
            return;
        }
        let silent = silent(&before, &watch.of_direct());
        if silent.is_empty() || begun.elapsed() >= WITHIN {
            break silent;
        }
        sleep(LOOK_INTERVAL).await;
    };
    findings.check(silent.is_empty(), ViolationKind::Stopped, || {
        format!(
            "partitions {silent:?} of {DIRECT} acknowledged nothing within {WITHIN:?}, though all brokers run and have settled"
        )
    });
}

/// The partitions of which nothing was acknowledged in between.
fn silent(before: &[u64], now: &[u64]) -> Vec<u32> {
    let all = (0u32..).zip(before.iter().zip(now));
    all.filter(|(_, (before, now))| now <= before).map(|(partition, _)| partition).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_is_silent_until_it_acknowledges_more() {
        assert_eq!(silent(&[3, 0, 5], &[4, 0, 5]), [1, 2]);
        assert!(silent(&[3, 0, 5], &[4, 1, 9]).is_empty());
    }
}
