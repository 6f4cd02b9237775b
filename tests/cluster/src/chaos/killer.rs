use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::faults::FaultKind;
use super::findings::Findings;
use super::fires::Fires;
use super::fleet::ALONE;
use super::lives;
use crate::fixtures::Random;
use crate::{TestBroker, WorldError};

/// A broker serves for this long at least and at most before it is killed.
const SERVES_MS: std::ops::Range<u64> = 100..7_000;
/// It stays away for so long at most.
const AWAY_MS_MAX: u64 = 800;
/// Killed again within this time after it was started, it has not served yet, or has just begun to.
const STARTING_MS_MAX: u64 = 700;
const KILLED_WHILE_STARTING_PERCENT: u64 = 25;
/// Now and then it is stopped in an orderly way: that must lose nothing either.
const STOPPED_PERCENT: u64 = 8;

/// What can be done to a broker that is alone.
pub(super) const FAULTS: [FaultKind; 3] = [FaultKind::Kill, FaultKind::Storm, FaultKind::Stop];
/// Why nothing else is.
pub(super) const WHY_NO_OTHERS: &str = "a broker that is alone is only killed and stopped";

/// Kills a broker that is alone at random moments until the time is up; it serves then. `progress` hears of each start.
pub(super) async fn kill_until(
    deadline: Instant,
    broker: &mut TestBroker,
    kinds: &[FaultKind],
    random: &mut Random,
    findings: &mut Findings,
    mut progress: impl FnMut(&Fires),
) -> Result<Fires, WorldError> {
    let mut fires = Fires { kinds: kinds.to_vec(), ..Fires::default() };
    loop {
        let serves = SERVES_MS.start + random.below(SERVES_MS.end - SERVES_MS.start);
        let until = Instant::now() + Duration::from_millis(serves);
        if until >= deadline {
            tokio::time::sleep_until(deadline).await;
            return Ok(fires);
        }
        tokio::time::sleep_until(until).await;
        let must_stop = kinds.len() == 1 || fires.is_overdue(FaultKind::Stop);
        let must_storm = fires.is_overdue(FaultKind::Storm);
        if kinds.contains(&FaultKind::Stop) && (random.chance(STOPPED_PERCENT) || must_stop) {
            lives::stop(ALONE, broker, findings).await?;
            fires.count(FaultKind::Stop);
        } else {
            fires.kills += u64::from(lives::kill(ALONE, broker, findings).await?);
            fires.count(FaultKind::Kill);
        }
        sleep(Duration::from_millis(random.below(AWAY_MS_MAX))).await;
        let mut again = 0;
        while kinds.contains(&FaultKind::Storm)
            && (random.chance(KILLED_WHILE_STARTING_PERCENT) || (must_storm && again == 0))
        {
            broker.restart_and_kill(Duration::from_millis(random.below(STARTING_MS_MAX))).await?;
            again += 1;
        }
        if again > 0 {
            fires.count(FaultKind::Storm);
            fires.kills += again;
            fires.kills_while_starting += again;
        }
        fires.starts.push(broker.restart().await?);
        progress(&fires);
    }
}
