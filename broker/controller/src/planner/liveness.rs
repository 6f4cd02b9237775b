//! Who is alive, by what the controller's leader hears.

use std::collections::BTreeMap;

use tidemill_protocol::BrokerId;

use crate::brokers::BrokerRecord;
use crate::command::ControllerCommand;
use crate::state::Controller;

/// A broker that was silent for so long counts as dead. Shards elect without waiting for that; what it decides is
/// who is given something.
pub(crate) const DEAD_AFTER_MS: u64 = 6_000;
/// A dead broker that was heard of so lately is alive again. Less than the other, so that one who is hard to hear
/// does not come and go.
pub(crate) const ALIVE_WITHIN_MS: u64 = 2_000;

/// Whom the controller's leader hears, in milliseconds of its own clock that never goes back.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Liveness {
    /// When this was written down.
    pub now_ms: u64,
    /// Since when it leads and listens: who was never heard of is silent since then.
    pub listening_since_ms: u64,
    /// When it heard last of each broker, itself included.
    pub heard_at_ms: BTreeMap<BrokerId, u64>,
}

impl Liveness {
    fn alive(&self, record: &BrokerRecord) -> bool {
        let heard = self.heard_at_ms.get(&record.broker).copied();
        let silence_ms = |since_ms: u64| self.now_ms.saturating_sub(since_ms);
        match record.alive {
            // A new leader gives everybody time to be heard.
            true => silence_ms(heard.unwrap_or(0).max(self.listening_since_ms)) <= DEAD_AFTER_MS,
            false => heard.is_some_and(|heard| silence_ms(heard) <= ALIVE_WITHIN_MS),
        }
    }
}

pub(super) fn plan(controller: &Controller, liveness: &Liveness) -> Vec<ControllerCommand> {
    controller
        .brokers()
        // One that is expected has nothing to be alive with before it registers.
        .filter(|record| record.is_member() && record.starts > 0)
        .map(|record| (record, liveness.alive(record)))
        .filter(|(record, alive)| record.alive != *alive)
        .map(|(record, alive)| ControllerCommand::SetAlive {
            broker: record.broker,
            starts: record.starts,
            alive,
        })
        .collect()
}
