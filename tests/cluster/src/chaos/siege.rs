//! A cluster under fire: one fault after the other, and some at once.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tidemill_client::{BrokerId, Client};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::damage;
use super::faults::FaultKind;
use super::findings::Findings;
use super::fires::Fires;
use super::fleet::Several;
use super::hashes::StateHashes;
use super::load::DIRECT;
use super::members::Members;
use super::producers::Watch;
use super::proxy::Weather;
use super::recording::Recording;
use crate::fixtures::Random;
use crate::loop_disk::LoopDisk;
use crate::{Outcome, WorldError};

/// Between two faults.
const CALM_MS: std::ops::Range<u64> = 300..4_000;
/// A broker that was killed or stopped stays away for so long at most.
const AWAY_MS_MAX: u64 = 2_500;
const PAUSED_MS: std::ops::Range<u64> = 200..6_000;
const CUT_MS: std::ops::Range<u64> = 500..8_000;
const WEATHER_MS: std::ops::Range<u64> = 2_000..15_000;
const BROKEN_DISK_MS: std::ops::Range<u64> = 200..4_000;
/// Kills of a storm; each broker is killed while it starts for so many times at most, within this time.
const STORM_KILLS: std::ops::Range<u64> = 2..6;
const STARTS_MAX: u64 = 3;
const STARTING_MS_MAX: u64 = 1_500;
/// How often a fault waits until writes are acknowledged again after the one before, and how many follow at once at the most.
const PATIENT_PERCENT: u64 = 60;
const IMPATIENT_MAX: u32 = 3;
/// Kills that are to hit a leader.
const LEADER_PERCENT: u64 = 60;
/// While all brokers run and the network is whole, something is acknowledged within this time.
const WRITE_DEADLINE: Duration = Duration::from_secs(90);
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// Between two brokers of a rolling restart, at the most.
const ROLLING_PATIENCE: Duration = Duration::from_secs(30);
/// Of a disk that is nearly full: below what a broker wants to have free.
const NEARLY_FULL_BYTES: u64 = 40 << 20;
/// Of one that is full: what the file system itself may want.
const FULL_BYTES: u64 = 256 << 10;

pub(super) struct Siege<'a> {
    pub(super) several: &'a mut Several,
    pub(super) client: Client,
    pub(super) random: Random,
    pub(super) kinds: Vec<FaultKind>,
    pub(super) watch: Arc<Watch>,
    pub(super) recording: Recording,
    pub(super) fires: Fires,
    /// What is found meanwhile.
    pub(super) findings: &'a mut Findings,
    pub(super) hashes: StateHashes,
    /// Bad weather ends then.
    pub(super) weather_until: Option<Instant>,
    /// Who comes and goes.
    pub(super) members: Members,
}

impl Siege<'_> {
    /// Strikes until the time is up; all brokers serve and hear each other then, and there are as many as at first. `progress` hears
    /// of each fault.
    pub(super) async fn until(
        mut self,
        deadline: Instant,
        mut progress: impl FnMut(&Fires),
    ) -> Outcome<Fires> {
        let (mut impatient, mut is_first) = (0, true);
        self.kinds.retain(|kind| !self.several.skipped.contains_key(kind));
        self.fires.skipped.clone_from(&self.several.skipped);
        self.fires.kinds.clone_from(&self.kinds);
        if self.kinds.is_empty() {
            return Err("there is no fault that can be done here".into());
        }
        loop {
            let next = Instant::now() + self.some(CALM_MS);
            if next >= deadline {
                sleep_until(deadline).await;
                break;
            }
            sleep_until(next).await;
            self.look_at_the_sky();
            self.look_for_the_ended().await?;
            self.tend_members().await?;
            if impatient >= IMPATIENT_MAX || self.random.chance(PATIENT_PERCENT) {
                self.hear_of_a_write().await?;
                impatient = 0;
            } else {
                impatient += 1;
            }
            self.ask_for_hashes().await;
            // So that there is one in every run.
            let begins = is_first && self.kinds.contains(&FaultKind::Members);
            is_first = false;
            let kind = if begins { Some(FaultKind::Members) } else { self.draw() };
            let Some(kind) = kind else { continue };
            match self.strike(kind).await? {
                true => self.fires.count(kind),
                false => self.fires.count_in_vain(kind),
            }
            progress(&self.fires);
        }
        self.look_for_the_ended().await?;
        self.end_member_change().await?;
        self.ask_for_hashes().await;
        self.fires.state_hashes = self.hashes.counted();
        self.fires.members.without_disk = self.several.without_disk;
        self.fires.failovers = self.watch.failovers.times();
        self.fires.traffic = self.several.proxy.traffic();
        Ok(self.fires)
    }

    /// One of those that can be done just now.
    fn draw(&mut self) -> Option<FaultKind> {
        let kinds: Vec<FaultKind> =
            self.kinds.iter().copied().filter(|kind| self.members.allow(*kind)).collect();
        if let Some(kind) = self.fires.whose_turn(&kinds) {
            return Some(kind);
        }
        let all: u64 = kinds.iter().map(|kind| kind.weight()).sum();
        let mut drawn = self.random.below(all.max(1));
        for kind in kinds {
            if drawn < kind.weight() {
                return Some(kind);
            }
            drawn -= kind.weight();
        }
        None
    }

    /// Does it; `false`: it could not be done this time.
    async fn strike(&mut self, kind: FaultKind) -> Outcome<bool> {
        self.recording.note(format!("fault: {kind}"));
        if kind != FaultKind::Kill {
            self.watch.failovers.forget();
        }
        match kind {
            FaultKind::Kill => self.kill_one().await?,
            FaultKind::KillTwo => self.kill_many(2).await?,
            FaultKind::KillAll => self.kill_many(self.several.count()).await?,
            FaultKind::Storm => self.storm().await?,
            FaultKind::Stop => {
                let id = self.victim().await;
                self.stop(id).await?;
            }
            FaultKind::Rolling => self.roll().await?,
            FaultKind::Pause => self.pause().await?,
            FaultKind::Cut | FaultKind::CutOneWay => self.cut(kind == FaultKind::Cut).await,
            FaultKind::Isolate => self.isolate().await,
            FaultKind::Weather => self.bad_weather(),
            FaultKind::WalDamage | FaultKind::SegmentDamage => return self.damage(kind).await,
            FaultKind::DiskFull => return self.fill_a_disk().await,
            FaultKind::DiskFails => return self.break_a_disk().await,
            FaultKind::PowerLoss => {
                let id = self.victim().await;
                if !self.several.disks.contains_key(&id) {
                    return Ok(false);
                }
                self.lose_power(&[id]).await?;
            }
            FaultKind::PowerLossOfAll => {
                let all = self.several.ids();
                self.lose_power(&all).await?;
            }
            FaultKind::Members => self.begin_member_change().await?,
        }
        Ok(true)
    }

    /// Waits until a record is acknowledged: with all brokers there it must be.
    async fn hear_of_a_write(&mut self) -> Outcome<()> {
        let before = self.watch.acknowledged.load(Ordering::Relaxed);
        let mut begun = Instant::now();
        while self.watch.acknowledged.load(Ordering::Relaxed) == before {
            if self.watch.sending.load(Ordering::Relaxed) == 0 {
                // All that was to be sent has been.
                return Ok(());
            }
            if self.weather_until.is_some() {
                begun = Instant::now();
                self.look_at_the_sky();
            }
            if begun.elapsed() >= WRITE_DEADLINE {
                return Err(format!(
                    "nothing was acknowledged within {WRITE_DEADLINE:?}, though all brokers run; {}",
                    self.log_tails()
                )
                .into());
            }
            sleep(LOOK_INTERVAL).await;
        }
        Ok(())
    }

    /// How the logs of the brokers end, those of brokers that are gone too.
    pub(super) fn log_tails(&self) -> String {
        let logs: Vec<String> =
            self.several.cluster.brokers().iter().map(|broker| broker.log_tail()).collect();
        format!("the brokers' logs end:\n{}", logs.join("\n----\n"))
    }

    pub(super) fn some(&mut self, range_ms: std::ops::Range<u64>) -> Duration {
        Duration::from_millis(range_ms.start + self.random.below(range_ms.end - range_ms.start))
    }

    async fn ask_for_hashes(&mut self) {
        self.hashes.ask(self.several.present().map(|(id, _, broker)| (id, broker))).await;
    }

    pub(super) async fn away(&mut self) {
        sleep(Duration::from_millis(self.random.below(AWAY_MS_MAX))).await;
    }

    pub(super) fn any(&mut self) -> u32 {
        let ids = self.several.ids();
        self.random.pick(&ids)
    }

    /// All of them in a circle, from any of them on.
    fn circle(&mut self) -> Vec<u32> {
        let mut ids = self.several.ids();
        let first = self.random.below(ids.len() as u64) as usize;
        ids.rotate_left(first);
        ids
    }

    /// One, and another one.
    fn pair(&mut self) -> (u32, u32) {
        let ids = self.circle();
        let step = 1 + self.random.below(ids.len() as u64 - 1) as usize;
        (ids[0], ids[step])
    }

    /// Who leads which partitions of a topic, as far as is known.
    async fn leaders(&self) -> Vec<(u32, u32)> {
        let topic = timeout(Duration::from_secs(2), self.client.topic_metadata(DIRECT)).await;
        let Ok(Ok(topic)) = topic else { return Vec::new() };
        let led = topic.partitions.iter();
        led.filter_map(|known| Some((known.leader?.get(), known.partition.get()))).collect()
    }

    /// Often one that leads.
    async fn victim(&mut self) -> u32 {
        let (by_chance, wants_leader) = (self.any(), self.random.chance(LEADER_PERCENT));
        let leaders = if wants_leader { self.leaders().await } else { Vec::new() };
        let known: Vec<u32> =
            leaders.iter().map(|(broker, _)| *broker).filter(|id| self.several.ids().contains(id)).collect();
        if known.is_empty() { by_chance } else { self.random.pick(&known) }
    }

    async fn kill_one(&mut self) -> Outcome<()> {
        let id = self.victim().await;
        let leaders = self.leaders().await;
        let of_it = leaders.iter().filter(|(leader, _)| *leader == id);
        let led: Vec<u32> = of_it.map(|(_, partition)| *partition).collect();
        self.kill(id).await?;
        if self.weather_until.is_none() {
            self.watch.failovers.leader_is_gone(&led);
        }
        self.away().await;
        self.start(id).await
    }

    async fn kill_many(&mut self, count: u32) -> Outcome<()> {
        let mut ids = self.circle();
        ids.truncate(count as usize);
        for id in &ids {
            self.kill(*id).await?;
        }
        for id in &ids {
            self.away().await;
            self.start(*id).await?;
        }
        Ok(())
    }

    async fn storm(&mut self) -> Outcome<()> {
        let kills = STORM_KILLS.start + self.random.below(STORM_KILLS.end - STORM_KILLS.start);
        for _ in 0..kills {
            let id = self.any();
            self.kill(id).await?;
            for _ in 0..self.random.below(STARTS_MAX + 1) {
                let after = Duration::from_millis(self.random.below(STARTING_MS_MAX));
                self.several.cluster.broker(id).restart_and_kill(after).await?;
                self.fires.kills += 1;
                self.fires.kills_while_starting += 1;
            }
            self.start(id).await?;
        }
        Ok(())
    }

    async fn roll(&mut self) -> Outcome<()> {
        for id in self.several.ids() {
            self.stop(id).await?;
            // As an operator would; in bad weather it may not come to that, and the next one follows all the same.
            let _ = timeout(ROLLING_PATIENCE, self.several.cluster.settled(&self.client)).await;
        }
        Ok(())
    }

    async fn pause(&mut self) -> Outcome<()> {
        let (id, paused) = (self.victim().await, self.some(PAUSED_MS));
        self.several.cluster.broker(id).pause()?;
        sleep(paused).await;
        Ok(self.several.cluster.broker(id).resume()?)
    }

    async fn cut(&mut self, both_ways: bool) {
        let ((one, other), time) = (self.pair(), self.some(CUT_MS));
        let proxy = &self.several.proxy;
        proxy.cut(one, other, true);
        proxy.cut(other, one, both_ways);
        sleep(time).await;
        proxy.cut(one, other, false);
        proxy.cut(other, one, false);
    }

    async fn isolate(&mut self) {
        let (id, time, how) = (self.victim().await, self.some(CUT_MS), self.random.below(4));
        // Half of the time in both directions.
        let (goes_out, comes_in) = (how != 1, how != 2);
        let proxy = &self.several.proxy;
        let mut others = self.several.ids();
        others.retain(|other| *other != id);
        for other in &others {
            proxy.cut(id, *other, goes_out);
            proxy.cut(*other, id, comes_in);
        }
        sleep(time).await;
        for other in &others {
            proxy.cut(id, *other, false);
            proxy.cut(*other, id, false);
        }
    }

    /// Begins and stays while other things happen.
    fn bad_weather(&mut self) {
        let (time, weather) = (self.some(WEATHER_MS), Weather::random(&mut self.random));
        let everywhere = self.random.chance(50);
        let (one, other) = self.pair();
        self.recording.note(format!("weather: {weather}"));
        let ids = self.several.ids();
        for from in &ids {
            for to in ids.iter().filter(|to| *to != from) {
                let pair = (*from, *to);
                if everywhere || pair == (one, other) || pair == (other, one) {
                    self.several.proxy.change(*from, *to, weather);
                }
            }
        }
        self.weather_until = Some(Instant::now() + time);
    }

    fn look_at_the_sky(&mut self) {
        if self.weather_until.is_some_and(|until| Instant::now() >= until) {
            self.fair_weather();
        }
    }

    pub(super) fn fair_weather(&mut self) {
        self.several.proxy.clear();
        self.weather_until = None;
    }

    /// Damages files of one broker, with all others whole and up to date: what it has lost, they have.
    async fn damage(&mut self, kind: FaultKind) -> Outcome<bool> {
        self.fair_weather();
        if self.several.cluster.settled(&self.client).await.is_err() {
            return Ok(false);
        }
        let id = self.any();
        self.kill(id).await?;
        let data = self.several.cluster.broker(id).data_dir();
        let done = match kind {
            FaultKind::WalDamage => damage::damage_log(&data, &mut self.random)?,
            _ => damage::damage_segment(&data, &mut self.random)?,
        };
        self.recording.note(format!("broker {id}: {}", done.as_deref().unwrap_or("nothing to damage")));
        let restarted = self.several.cluster.broker(id).restart().await;
        match restarted {
            Ok(took) => self.fires.starts.push(took),
            Err(WorldError::Ended { log, .. }) => {
                let why = log.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
                self.recording.note(format!("broker {id} refuses to start: {why}"));
                self.join_again(id).await?;
            }
            Err(error) => return Err(error.into()),
        }
        self.several.cluster.settled(&self.client).await?;
        Ok(done.is_some())
    }

    /// With an empty directory and a token, as an operator would have it.
    async fn join_again(&mut self, id: u32) -> Outcome<()> {
        let token = self.client.create_join_token(Some(BrokerId::new(id)), None).await?;
        let options = self.several.joining(id, &token.token);
        let broker = self.several.cluster.broker(id);
        damage::empty(&broker.data_dir())?;
        broker.change(options);
        self.start(id).await?;
        self.fires.rejoined += 1;
        Ok(())
    }

    /// `false`: who was drawn has no disk of its own.
    async fn fill_a_disk(&mut self) -> Outcome<bool> {
        let (id, time, to_the_brim) = (self.any(), self.some(BROKEN_DISK_MS), self.random.chance(50));
        let Some(disk) = self.several.disks.get(&id) else { return Ok(false) };
        disk.fill(if to_the_brim { FULL_BYTES } else { NEARLY_FULL_BYTES })?;
        sleep(time).await;
        if to_the_brim {
            // Its shards may have stopped for good, until it starts again.
            self.kill_as_it_is(id).await?;
        }
        if let Some(disk) = self.several.disks.get(&id) {
            disk.clear()?;
        }
        if to_the_brim {
            self.start(id).await?;
        }
        Ok(true)
    }

    /// `false`: who was drawn has no disk of its own.
    async fn break_a_disk(&mut self) -> Outcome<bool> {
        let (id, time) = (self.victim().await, self.some(BROKEN_DISK_MS));
        let Some(disk) = self.several.disks.get(&id) else { return Ok(false) };
        disk.fail()?;
        sleep(time).await;
        self.kill_as_it_is(id).await?;
        self.mend_disk(id)?;
        self.start(id).await?;
        Ok(true)
    }

    fn mend_disk(&self, id: u32) -> Outcome<()> {
        self.several.disks.get(&id).map_or(Ok(()), LoopDisk::mend)
    }

    async fn lose_power(&mut self, ids: &[u32]) -> Outcome<()> {
        let ids: BTreeSet<u32> = ids.iter().copied().collect();
        for id in &ids {
            if let Some(disk) = self.several.disks.get(id) {
                disk.fail()?;
            }
        }
        for id in &ids {
            self.kill_as_it_is(*id).await?;
        }
        self.away().await;
        for id in &ids {
            self.mend_disk(*id)?;
            self.start(*id).await?;
        }
        Ok(())
    }
}
