//! Whether there is room on the disk, and who has to wait where there is not.
//!
//! ```text
//!   room beside the least      everything is taken, as far as it is admitted: see `admission`
//!   none, until twice the      nearly full: no records, no tasks' steps; positions, retention and deleting go on, what
//!   least is free              retention lets go leaves the disk at once, and the write-ahead log does not grow
//!   less than retention may    full: the reserve is given up for it, and positions wait too
//!     need to free anything
//! ```
//!
//! What fills the disk between two looks finds the reserve behind every write: see `ReservedStorage`.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tidemill_log::fs::{DiskReserve, Space, Storage};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::admission::DiskLook;
use crate::config::BrokerConfig;
use crate::shards::Shards;

/// How often the disk's free space is looked at.
const DISK_INTERVAL: Duration = Duration::from_secs(1);
/// Room that must be back, as a multiple of what is the least, before everything is taken again.
const DISK_RELIEF: u64 = 2;
/// What a checkpoint of every shard writes beside records: pages of the state files, indexes.
const CHECKPOINT_ROOM_BYTES: u64 = 16 << 20;

/// Room as the watch saw it last.
#[derive(Debug)]
pub(crate) struct DiskState {
    nearly_full: watch::Sender<bool>,
    full: AtomicBool,
    space: Mutex<Option<Space>>,
}

impl Default for DiskState {
    fn default() -> Self {
        Self { nearly_full: watch::Sender::new(false), full: AtomicBool::new(false), space: Mutex::default() }
    }
}

impl DiskState {
    /// As it was looked at last.
    pub(crate) fn space(&self) -> Option<Space> {
        *self.space.lock()
    }

    /// Whether records have to wait.
    pub(crate) fn is_nearly_full(&self) -> bool {
        *self.nearly_full.borrow()
    }

    /// Whether even what takes next to nothing has to wait: the reserve is given up.
    pub(crate) fn is_full(&self) -> bool {
        self.full.load(Ordering::Relaxed)
    }

    /// Follows [`Self::is_nearly_full`].
    pub(crate) fn watch(&self) -> watch::Receiver<bool> {
        self.nearly_full.subscribe()
    }

    /// Waits until records are taken.
    pub(crate) async fn room(&self) {
        // The sender is this state's own: it does not go while somebody waits here.
        let _ = self.watch().wait_for(|nearly_full| !nearly_full).await;
    }

    fn set(&self, level: Level) {
        self.full.store(level == Level::Full, Ordering::Relaxed);
        let nearly_full = level != Level::Room;
        self.nearly_full.send_if_modified(|known| std::mem::replace(known, nearly_full) != nearly_full);
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    Room,
    NearlyFull,
    Full,
}

/// What the watch goes by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DiskBounds {
    /// Below this the disk is nearly full.
    pub(crate) free_min_bytes: u64,
    /// Below this the reserve is given up. What it takes to let records go: a unit in the write-ahead log, perhaps in a
    /// new segment of it, and a checkpoint, before which goes what waits to be written to segments.
    pub(crate) work_bytes: u64,
}

impl DiskBounds {
    /// `waiting_bytes`: as much as waits for segments while nothing is wrong.
    pub(crate) fn new(config: &BrokerConfig, waiting_bytes: u64) -> Self {
        Self {
            free_min_bytes: config.storage.disk_free_min_bytes,
            work_bytes: config
                .wal
                .segment_bytes
                .saturating_add(waiting_bytes)
                .saturating_add(CHECKPOINT_ROOM_BYTES),
        }
    }

    /// What must stay free; more where the disk was nearly full.
    fn least(&self, was: bool) -> u64 {
        self.free_min_bytes.saturating_mul(if was { DISK_RELIEF } else { 1 })
    }

    /// `room` for anything beside what must stay free; `reserve_bytes` where the reserve is held, else 0.
    fn level(&self, room: bool, free: u64, reserve_bytes: u64) -> Level {
        if room {
            Level::Room
        } else if free >= self.work_bytes && (reserve_bytes > 0 || free >= self.free_min_bytes) {
            Level::NearlyFull
        } else {
            Level::Full
        }
    }

    /// Whether there is room for a reserve that does not make the disk nearly full by itself.
    fn has_room_for(&self, reserve_bytes: u64, free: u64) -> bool {
        free >= self.free_min_bytes.saturating_add(reserve_bytes)
    }
}

/// Where the reserve lies.
pub(crate) fn reserve(storage: &Arc<dyn Storage>, bytes: u64) -> DiskReserve {
    DiskReserve::new(Arc::clone(storage), Path::new("reserve"), bytes)
}

/// Watches the free space; gives the reserve up when there is nothing left, takes it back later.
pub(crate) struct DiskWatch {
    pub(crate) storage: Arc<dyn Storage>,
    pub(crate) state: Arc<DiskState>,
    pub(crate) bounds: DiskBounds,
    pub(crate) reserve: Arc<DiskReserve>,
}

impl DiskWatch {
    pub(crate) async fn run(self: Arc<Self>, shards: Shards, stopping: CancellationToken) {
        let mut ticks = tokio::time::interval(DISK_INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = shards.admission().disk_pressed() => {}
                () = stopping.cancelled() => return,
            }
            let (looking, shards) = (Arc::clone(&self), shards.clone());
            let _ = tokio::task::spawn_blocking(move || looking.look_at(&shards)).await;
        }
    }

    /// Looks once, before there are shards.
    pub(crate) fn look(&self) {
        match self.storage.free_space() {
            Ok(space) => self.seen(space, space.free >= self.bounds.least(self.state.is_nearly_full())),
            Err(error) => tracing::warn!(%error, "the free space can't be read"),
        }
    }

    /// Looks once, and tells admission what it may take.
    fn look_at(&self, shards: &Shards) {
        let least = self.bounds.least(self.state.is_nearly_full());
        let mut found = None;
        let room = shards.admission().looked(|| {
            let unwritten = shards.iter().map(|(_, replica)| replica.shard().write_behind_lag_bytes()).sum();
            let space = self.storage.free_space();
            let free = space.as_ref().map_or(u64::MAX, |space| space.free);
            found = Some(space);
            DiskLook { free, least, unwritten }
        });
        match found {
            Some(Ok(space)) => self.seen(space, room),
            Some(Err(error)) => tracing::warn!(%error, "the free space can't be read"),
            None => {}
        }
    }

    /// Does what follows from a look.
    fn seen(&self, space: Space, room: bool) {
        *self.state.space.lock() = Some(space);
        let free = space.free;
        metrics::gauge!("tidemill_disk_free_bytes").set(free as f64);
        let held = self.reserve.is_held().unwrap_or(false);
        let reserve_bytes = if held { self.reserve.bytes() } else { 0 };
        let was = self.state.is_nearly_full();
        let level = self.bounds.level(room, free, reserve_bytes);
        metrics::gauge!("tidemill_disk_nearly_full").set(if level == Level::Room { 0.0 } else { 1.0 });
        self.state.set(level);
        match (was, level) {
            (false, Level::NearlyFull | Level::Full) => tracing::error!(
                free,
                least = self.bounds.free_min_bytes,
                "the disk is nearly full: produce is refused and hosted consumers wait; free space, or let retention do it"
            ),
            (true, Level::Room) => tracing::info!(free, "the disk has room again: everything is taken"),
            _ => {}
        }
        match level {
            Level::Full if held => {
                if let Err(error) = self.reserve.give_up() {
                    tracing::error!(%error, "the disk reserve can't be given up");
                }
            }
            Level::Room if !held && self.bounds.has_room_for(self.reserve.bytes(), free) => {
                if let Err(error) = self.reserve.ensure() {
                    tracing::debug!(%error, "the disk reserve can't be taken yet");
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use tidemill_log::fs::{MemoryStorage, OpenMode};

    use super::*;

    const BOUNDS: DiskBounds = DiskBounds { free_min_bytes: 1_000, work_bytes: 300 };

    #[test]
    fn levels_have_room_between_them() {
        let level = |free, reserve_bytes, was| BOUNDS.level(free >= BOUNDS.least(was), free, reserve_bytes);
        assert_eq!(level(1_000, 400, false), Level::Room);
        assert_eq!(level(999, 400, false), Level::NearlyFull);
        assert_eq!(level(1_999, 400, true), Level::NearlyFull, "until there is clearly more");
        assert_eq!(level(2_000, 0, true), Level::Room);
        assert_eq!(level(299, 400, true), Level::Full);
        assert_eq!(level(700, 0, true), Level::Full, "there is no reserve any more");
        assert!(BOUNDS.has_room_for(400, 1_400) && !BOUNDS.has_room_for(400, 1_399));
    }

    fn watch_on(memory: &MemoryStorage) -> DiskWatch {
        let storage: Arc<dyn Storage> = Arc::new(memory.clone());
        let reserve = Arc::new(reserve(&storage, 400));
        DiskWatch { storage, state: Arc::default(), bounds: BOUNDS, reserve }
    }

    #[test]
    fn the_reserve_comes_and_goes_with_the_room() {
        let memory = MemoryStorage::with_capacity(10_000);
        let watch = watch_on(&memory);
        let file = memory.open(Path::new("data"), OpenMode::CREATE).expect("made");
        let mut seen = Vec::new();
        for taken in [0, 8_700, 9_400, 9_900, 8_100, 7_000] {
            file.set_len(taken).expect("there is room");
            watch.look();
            let held = watch.reserve.is_held().expect("can be told");
            seen.push((watch.state.is_nearly_full(), watch.state.is_full(), held));
        }
        let expected = [
            (false, false, true),
            (true, false, true),
            // 200 are free: less than retention needs.
            (true, true, false),
            (true, true, false),
            // 1,900 are free: more than the least, and not yet clearly.
            (true, false, false),
            (false, false, true),
        ];
        assert_eq!(seen, expected);
        assert_eq!(memory.free_space().expect("known").free, 2_600);
    }

    #[tokio::test]
    async fn whoever_waits_for_room_hears_of_it() {
        let memory = MemoryStorage::with_capacity(10_000);
        let watch = watch_on(&memory);
        let file = memory.open(Path::new("data"), OpenMode::CREATE).expect("made");
        watch.look();
        file.set_len(9_000).expect("there is room");
        watch.look();
        let mut room = Box::pin(watch.state.room());
        assert!(futures::poll!(room.as_mut()).is_pending());
        file.set_len(0).expect("cut");
        watch.look();
        room.await;
    }
}
