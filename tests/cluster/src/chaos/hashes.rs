//! How often replicas take hashes of their states, which they compare.

use std::collections::BTreeMap;
use std::time::Duration;

use tidemill_client::Client;
use tokio::time::timeout;

use crate::metrics::metric;
use crate::{Outcome, TestBroker};

const HASHES: &str = "tidemill_state_hashes_total";
/// Who does not answer so soon is asked the next time.
const ANSWER_DEADLINE: Duration = Duration::from_secs(2);

/// Hashes of states over all lives of all brokers. What a broker counts between the last question and its end is missed.
#[derive(Debug, Default)]
pub(super) struct StateHashes {
    counted: u64,
    /// By broker: which life that was, and what it said last.
    last: BTreeMap<u32, (u32, u64)>,
}

impl StateHashes {
    /// Asks each of these brokers what it has counted.
    pub(super) async fn ask<'a>(&mut self, brokers: impl Iterator<Item = (u32, &'a TestBroker)>) {
        for (id, broker) in brokers {
            if let Ok(Ok(count)) = timeout(ANSWER_DEADLINE, counted_by(broker)).await {
                self.said(id, broker.starts(), count);
            }
        }
    }

    /// A broker has counted so many in one of its lives.
    fn said(&mut self, broker: u32, life: u32, count: u64) {
        let before = self.last.insert(broker, (life, count));
        let known = before.filter(|(of, _)| *of == life).map_or(0, |(_, count)| count);
        self.counted += count.saturating_sub(known);
    }

    pub(super) const fn counted(&self) -> u64 {
        self.counted
    }
}

async fn counted_by(broker: &TestBroker) -> Outcome<u64> {
    // A new client has a connection to this broker alone.
    let client = Client::connect(broker.client_config().client_id("chaos-hashes")).await?;
    let count = metric(&client, HASHES).await;
    client.close().await;
    Ok(count? as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_brokers_count_adds_up_over_their_lives() {
        let mut hashes = StateHashes::default();
        hashes.said(1, 1, 5);
        hashes.said(2, 1, 3);
        hashes.said(1, 1, 7);
        assert_eq!(hashes.counted(), 10);
        // It began anew, and has overtaken its former life meanwhile.
        hashes.said(1, 2, 8);
        assert_eq!(hashes.counted(), 18);
        hashes.said(1, 2, 8);
        assert_eq!(hashes.counted(), 18);
    }
}
