//! What a broker says while most of those who hold the controller are away: nothing is written down, and shards find no leaders.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tidemill_controller::Controller;
use tidemill_protocol::{BrokerId, ShardId};
use tokio::time::Instant;

use super::forming::names;
use crate::context::Context;

/// Brokers that are restarted together find each other within this time, and elections are over: nothing needs to be said.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often it is looked who is there.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// Tells in the log that a majority is missing, and who, once it has been so for some seconds; and once more when it is over.
pub(crate) async fn tell(context: Arc<Context>) {
    let mut watch = Watch::default();
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
            () = context.stopping.cancelled() => return,
        }
        let missing = missing_now(&context);
        match watch.look(!missing.is_empty(), Instant::now()) {
            Some(Word::Lacking) => {
                let troubles = context.peers.as_ref().map(|peers| peers.troubles(&missing));
                let troubles = troubles.unwrap_or_default().join("; ");
                tracing::warn!(troubles, "waiting for {}", words(&missing));
            }
            Some(Word::Back) => tracing::info!("a majority of the brokers that decide is there again"),
            None => {}
        }
    }
}

/// Who is waited for, and why, as people name them; `None` where a majority is there, or comes within `patience`.
pub(super) async fn awaited(context: &Context, patience: Duration) -> Option<String> {
    let until = Instant::now() + patience;
    loop {
        let missing = missing_now(context);
        if missing.is_empty() {
            return None;
        }
        if Instant::now() >= until {
            return Some(words(&missing));
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

fn words(missing: &[BrokerId]) -> String {
    format!("{}: until a majority of the brokers is there, nothing can be written", names(missing))
}

fn missing_now(context: &Context) -> Vec<BrokerId> {
    missing(context.view.now().controller(), &context.reached())
}

/// Those who vote in the controller's group and are not reached, where the others are no majority of it; nobody where they are.
fn missing(controller: &Controller, reached: &BTreeSet<BrokerId>) -> Vec<BrokerId> {
    let voters = controller.shard(ShardId::CONTROLLER).map(|record| record.voters()).unwrap_or_default();
    let voters: BTreeSet<BrokerId> = voters.iter().map(|node| node.broker()).collect();
    let missing: Vec<BrokerId> = voters.difference(reached).copied().collect();
    if 2 * missing.len() < voters.len() { Vec::new() } else { missing }
}

/// What is to be said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Word {
    Lacking,
    Back,
}

/// Since when a majority is missing, and whether that was said.
#[derive(Debug, Default)]
struct Watch {
    since: Option<Instant>,
    has_told: bool,
}

impl Watch {
    fn look(&mut self, is_lacking: bool, now: Instant) -> Option<Word> {
        if !is_lacking {
            self.since = None;
            return std::mem::take(&mut self.has_told).then_some(Word::Back);
        }
        let since = *self.since.get_or_insert(now);
        let is_due = !self.has_told && now.saturating_duration_since(since) >= PATIENCE;
        self.has_told |= is_due;
        is_due.then_some(Word::Lacking)
    }
}

#[cfg(test)]
mod tests {
    use tidemill_controller::{ClusterIdentity, ControllerCommand, Durability};
    use tidemill_protocol::{ClusterId, Timestamp};
    use uuid::Uuid;

    use super::*;

    fn brokers(numbers: &[u32]) -> Vec<BrokerId> {
        numbers.iter().copied().map(BrokerId::new).collect()
    }

    fn missing_of(formed: &[u32], reached: &[u32]) -> Vec<BrokerId> {
        let mut controller = Controller::default();
        let cluster = ClusterId::new(Uuid::from_u128(1));
        let identity = ClusterIdentity { cluster, data_shards: 1, durability: Durability::Fsync };
        let form = ControllerCommand::FormCluster { identity, brokers: brokers(formed) };
        controller.apply(&form, Timestamp::new(1_700_000_000_000)).expect("formed");
        missing(&controller, &brokers(reached).into_iter().collect())
    }

    #[test]
    fn who_is_away_is_missed_where_the_others_are_no_majority() {
        assert_eq!(missing_of(&[1], &[1]), []);
        assert_eq!(missing_of(&[1, 2, 3], &[1]), brokers(&[2, 3]));
        assert_eq!(missing_of(&[1, 2, 3], &[1, 3]), []);
        assert_eq!(missing_of(&[1, 2], &[2]), brokers(&[1]));
        // A fourth follows, and decides nothing.
        assert_eq!(missing_of(&[1, 2, 3], &[3, 4]), brokers(&[1, 2]));
        assert_eq!(missing(&Controller::default(), &BTreeSet::new()), [], "nothing is known of a cluster");
        assert!(words(&brokers(&[2, 3])).starts_with("brokers 2 and 3: until a majority"));
    }

    #[test]
    fn it_is_said_once_and_when_it_is_over() {
        let begun = Instant::now();
        let mut watch = Watch::default();
        let mut look = |is_lacking, seconds| watch.look(is_lacking, begun + Duration::from_secs(seconds));
        assert_eq!(look(true, 0), None);
        assert_eq!(look(true, 4), None, "others may be starting");
        assert_eq!(look(false, 5), None, "nothing was said");
        assert_eq!(look(true, 6), None);
        assert_eq!(look(true, 11), Some(Word::Lacking));
        assert_eq!(look(true, 100), None);
        assert_eq!(look(false, 101), Some(Word::Back));
        assert_eq!(look(false, 102), None);
    }
}
