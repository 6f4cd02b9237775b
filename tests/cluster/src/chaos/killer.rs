use std::time::Duration;

use tokio::time::{Instant, sleep};

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

/// What was done to the broker.
#[derive(Debug, Clone, Default)]
pub struct Kills {
    /// kill -9 while it served.
    pub serving: u32,
    /// kill -9 shortly after it was started.
    pub starting: u32,
    /// Stopped in an orderly way.
    pub stops: u32,
    /// How long each start took until it served.
    pub starts: Vec<Duration>,
}

impl Kills {
    /// kill -9, all told.
    #[must_use]
    pub const fn total(&self) -> u32 {
        self.serving + self.starting
    }

    /// The median and the longest start.
    #[must_use]
    pub fn start_times(&self) -> Option<(Duration, Duration)> {
        let mut starts = self.starts.clone();
        starts.sort_unstable();
        Some((*starts.get(starts.len() / 2)?, *starts.last()?))
    }
}

/// Kills the broker at random moments until the time is up; it serves then. `progress` hears of each start.
pub(super) async fn kill_until(
    deadline: Instant,
    broker: &mut TestBroker,
    random: &mut Random,
    mut progress: impl FnMut(&Kills),
) -> Result<Kills, WorldError> {
    let mut kills = Kills::default();
    loop {
        let serves = SERVES_MS.start + random.below(SERVES_MS.end - SERVES_MS.start);
        let until = Instant::now() + Duration::from_millis(serves);
        if until >= deadline {
            tokio::time::sleep_until(deadline).await;
            return Ok(kills);
        }
        tokio::time::sleep_until(until).await;
        if random.chance(STOPPED_PERCENT) {
            broker.stop().await?;
            kills.stops += 1;
        } else {
            broker.kill().await?;
            kills.serving += 1;
        }
        sleep(Duration::from_millis(random.below(AWAY_MS_MAX))).await;
        while random.chance(KILLED_WHILE_STARTING_PERCENT) {
            broker.restart_and_kill(Duration::from_millis(random.below(STARTING_MS_MAX))).await?;
            kills.starting += 1;
        }
        kills.starts.push(broker.restart().await?);
        progress(&kills);
    }
}
