//! What may be proposed: there must be room for it in the write-ahead log and on the disk before anything is promised.
//!
//! What is proposed cannot be called back: a disk that is found full when the bytes are on their way stops the shard for good.
//! So every unit of clients and tasks is admitted first, and counts as under way:
//!
//! ```text
//! log:   segments in use + segments that all admitted units may begin   <= wal.bytes_max - 1 segment, else it waits
//! disk:  free - storage.disk_free_min_bytes - admitted and under way - applied and not in segments
//!             - what the log's files may grow by for it                 >  0, else it is refused
//! ```
//!
//! Batches of producers, and what other brokers propose here, are under way until they are applied or certainly never will be: the shard
//! has their room with them ([`UnitRoom`]) and lets go of it then, although their outcome may have been given up as unknown before, or the
//! client be gone. A routed batch is until that is so of all its parts; of those that another broker writes until it has answered, or the
//! way to it broke off. The room of groups' positions, of tasks' steps and of what outboxes deliver is with whoever proposes them: they are under
//! way until their answer is there, or is not waited for any more.
//!
//! The segment that is left over is for what is not admitted: Raft's votes and how far it has committed, what the cluster tells itself.
//! Free space is looked at once a second, and at once when what the last look allowed is used up.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tidemill_log::wal::Wal;
use tokio::sync::Notify;

use crate::config::WalSettings;

/// How long a unit waits for the log to become smaller.
const LOG_PATIENCE: Duration = Duration::from_secs(5);
/// How often it looks whether it has.
const LOG_INTERVAL: Duration = Duration::from_millis(20);
/// What one entry may leave unused at a segment's end is less than this part of the segment.
const SEGMENT_SHARE_UNUSED: u64 = 2;

/// Counts what was admitted against the room that there is.
pub(crate) struct Admission {
    wal: Wal,
    segment_bytes: u64,
    log_bytes_max: u64,
    log_patience: Duration,
    counts: Mutex<Counts>,
    /// Of those who wait for the log.
    turn: tokio::sync::Mutex<()>,
    /// Room was given back.
    given_back: Notify,
    /// The log grows large: checkpoints make it smaller.
    log_pressure: Mutex<Option<Arc<Notify>>>,
    /// The room on the disk that was known of is used up: it is to be looked at.
    disk_pressure: Notify,
}

struct Counts {
    /// Bytes of units that may still be written.
    under_way: u64,
    /// Units whose answer somebody waits for.
    unanswered: usize,
    /// Bytes of all units ever admitted.
    admitted: u64,
    /// What that may rise to until the disk is looked at again.
    admitted_max: u64,
}

/// Why nothing was admitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoRoom {
    /// The write-ahead log is at its bound, and no checkpoint came in time.
    Log,
    /// The disk is nearly full.
    Disk,
}

/// What a unit that was admitted is counted by; dropped as a whole where it is not proposed, or with its answer.
#[must_use = "room that is given back at once is none"]
pub(crate) struct Admitted {
    pub(crate) room: UnitRoom,
    pub(crate) unanswered: Unanswered,
}

/// A unit's room, until it is dropped: goes with the unit.
#[must_use = "room that is given back at once is none"]
pub(crate) struct UnitRoom {
    all: Arc<Admission>,
    bytes: u64,
}

/// That a unit's answer is waited for, until this is dropped.
#[must_use = "it is waited for as long as this is there"]
pub(crate) struct Unanswered(Arc<Admission>);

/// What a look at the disk found.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DiskLook {
    /// Bytes that are free.
    pub(crate) free: u64,
    /// Bytes that must stay free.
    pub(crate) least: u64,
    /// Bytes that are applied and not in segments yet. Taken before `free`: what moves meanwhile must not count as neither.
    pub(crate) unwritten: u64,
}

impl Admission {
    pub(crate) fn new(wal: Wal, settings: &WalSettings) -> Self {
        Self {
            wal,
            segment_bytes: settings.segment_bytes,
            log_bytes_max: settings.bytes_max.saturating_sub(settings.segment_bytes),
            log_patience: LOG_PATIENCE,
            counts: Mutex::new(Counts { under_way: 0, unanswered: 0, admitted: 0, admitted_max: u64::MAX }),
            turn: tokio::sync::Mutex::new(()),
            given_back: Notify::new(),
            log_pressure: Mutex::new(None),
            disk_pressure: Notify::new(),
        }
    }

    /// Whom to tell when the log grows large.
    pub(crate) fn relieve_with(&self, pressure: Arc<Notify>) {
        *self.log_pressure.lock() = Some(pressure);
    }

    /// The log's size from which on checkpoints should make it smaller.
    pub(crate) const fn log_bytes_high(settings: &WalSettings) -> u64 {
        settings.bytes_max / 2
    }

    /// Admits a unit of `bytes`; waits for the log, not for the disk.
    ///
    /// # Errors
    /// [`NoRoom`] says where.
    pub(crate) async fn admit(self: &Arc<Self>, bytes: usize) -> Result<Admitted, NoRoom> {
        let admitted = self.admit_to_log(bytes).await?;
        let fits = {
            let counts = self.counts.lock();
            counts.admitted <= counts.admitted_max
        };
        if fits {
            return Ok(admitted);
        }
        // Dropped, and so not proposed. That it stays counted until the next look is on the safe side.
        self.disk_pressure.notify_one();
        Err(NoRoom::Disk)
    }

    /// The same without a look at the disk: for what must go on when it is nearly full.
    ///
    /// # Errors
    /// [`NoRoom::Log`].
    pub(crate) async fn admit_to_log(self: &Arc<Self>, bytes: usize) -> Result<Admitted, NoRoom> {
        let bytes = bytes as u64;
        let at_once = self.turn.try_lock().is_ok_and(|_turn| self.try_log(bytes));
        if !at_once {
            tokio::time::timeout(self.log_patience, self.wait_for_log(bytes))
                .await
                .map_err(|_| NoRoom::Log)?;
        }
        let room = UnitRoom { all: Arc::clone(self), bytes };
        Ok(Admitted { room, unanswered: Unanswered(Arc::clone(self)) })
    }

    /// Whoever came first is admitted first: many streams must not hold up one for ever.
    async fn wait_for_log(&self, bytes: u64) {
        let _turn = self.turn.lock().await;
        loop {
            let given_back = self.given_back.notified();
            if self.try_log(bytes) {
                return;
            }
            // The log itself tells nobody when it became smaller.
            let _ = tokio::time::timeout(LOG_INTERVAL, given_back).await;
        }
    }

    fn try_log(&self, bytes: u64) -> bool {
        let in_use = self.wal.bytes();
        let mut counts = self.counts.lock();
        let needed = in_use.saturating_add(self.log_growth(counts.under_way + bytes));
        let fits = needed <= self.log_bytes_max;
        if fits {
            counts.under_way += bytes;
            counts.unanswered += 1;
            counts.admitted += bytes;
        }
        drop(counts);
        if needed > self.log_bytes_max / 2
            && let Some(pressure) = &*self.log_pressure.lock()
        {
            pressure.notify_one();
        }
        fits
    }

    /// Segments that so many bytes may begin.
    fn log_growth(&self, bytes: u64) -> u64 {
        bytes.div_ceil(self.segment_bytes / SEGMENT_SHARE_UNUSED) * self.segment_bytes
    }

    /// Takes a look at the disk into account; `false` where it is nearly full.
    pub(crate) fn looked(&self, look: impl FnOnce() -> DiskLook) -> bool {
        let (admitted, under_way) = {
            let counts = self.counts.lock();
            (counts.admitted, counts.under_way)
        };
        // What is admitted from here on may count twice, never not at all.
        let DiskLook { free, least, unwritten } = look();
        let left = free.saturating_sub(least).saturating_sub(under_way).saturating_sub(unwritten);
        let spare = Wal::SPARE_FILES_MAX * self.segment_bytes;
        let files_max = self.log_bytes_max + self.segment_bytes + spare;
        let growth_max = files_max.saturating_sub(self.wal.files_bytes());
        // Either the log's files grow as far as they ever may, or by what is under way and what is admitted now.
        let beside_all = left.saturating_sub(growth_max);
        let beside_own = left.saturating_sub(spare + self.log_growth(under_way)) / (1 + SEGMENT_SHARE_UNUSED);
        // Less than the largest unit is as good as nothing: whether it is nearly full must not depend on who asks.
        let largest = self.segment_bytes / SEGMENT_SHARE_UNUSED;
        let more = Some(beside_all.max(beside_own)).filter(|more| *more >= largest).unwrap_or(0);
        self.counts.lock().admitted_max = admitted.saturating_add(more);
        more > 0
    }

    /// Whether everything that was admitted has its answer, or nobody waits for it. Some of it may still be under way: a leader without a
    /// majority keeps what it was told to write.
    pub(crate) fn is_idle(&self) -> bool {
        self.counts.lock().unanswered == 0
    }

    /// Waits until the disk is to be looked at.
    pub(crate) async fn disk_pressed(&self) {
        self.disk_pressure.notified().await;
    }
}

/// Perhaps on a thread that has a replica's queue locked.
impl Drop for UnitRoom {
    fn drop(&mut self) {
        self.all.counts.lock().under_way -= self.bytes;
        self.all.given_back.notify_waiters();
    }
}

impl Drop for Unanswered {
    fn drop(&mut self) {
        self.0.counts.lock().unanswered -= 1;
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use tidemill_log::fs::MemoryStorage;
    use tidemill_log::wal::WalConfig;

    use super::*;

    const SEGMENT: u64 = 4 << 20;
    const MIB: usize = 1 << 20;

    fn admission() -> Arc<Admission> {
        let settings =
            WalSettings { segment_bytes: SEGMENT, bytes_max: 6 * SEGMENT, ..WalSettings::default() };
        let config = WalConfig { segment_bytes: SEGMENT, ..WalConfig::new("wal") };
        let (wal, _) = Wal::open(Arc::new(MemoryStorage::new()), &config).expect("a log");
        let admission = Admission::new(wal, &settings);
        Arc::new(Admission { log_patience: Duration::from_millis(100), ..admission })
    }

    #[tokio::test]
    async fn what_is_admitted_never_fills_more_segments_than_the_log_may_have() {
        let admission = admission();
        // Five segments may be begun; each takes at least 2 MiB, whatever an entry leaves unused.
        let mut held = Vec::new();
        for _ in 0..5 {
            held.push(admission.admit(2 * MIB).now_or_never().expect("at once").expect("room"));
        }
        assert_eq!(admission.admit(1).await.err(), Some(NoRoom::Log), "after some patience");
        let waiting = tokio::spawn({
            let admission = Arc::clone(&admission);
            async move { admission.admit(2 * MIB).await.map(drop) }
        });
        tokio::task::yield_now().await;
        held.pop();
        assert_eq!(waiting.await.expect("no panic"), Ok(()));
    }

    #[tokio::test]
    async fn what_nobody_waits_for_counts_until_it_has_landed() {
        let admission = admission();
        let admitted = admission.admit(10 * MIB).now_or_never().expect("at once").expect("room");
        let Admitted { room, unanswered } = admitted;
        assert!(!admission.is_idle());
        drop(unanswered);
        assert!(admission.is_idle(), "a client that is gone keeps nobody from stopping");
        assert_eq!(admission.admit(1).await.err(), Some(NoRoom::Log), "it may still be written");
        // As the shard does when it is applied.
        drop(room);
        assert!(admission.admit(10 * MIB).now_or_never().expect("at once").is_ok());
        assert!(admission.is_idle());
    }

    #[tokio::test]
    async fn a_disk_takes_no_more_than_a_look_at_it_allows() {
        let admission = admission();
        let gib = 1u64 << 30;
        let look = |free| move || DiskLook { free, least: gib, unwritten: 0 };
        assert!(admission.looked(look(2 * gib)), "there is much more than the log may ever grow by");
        let one = admission.admit(MIB).now_or_never().expect("at once").expect("room");
        drop(one);
        assert!(!admission.looked(look(gib)), "nothing but what must stay free");
        assert_eq!(admission.admit(1).now_or_never().expect("at once").err(), Some(NoRoom::Disk));
        admission.disk_pressed().now_or_never().expect("the watch is told");
        assert!(admission.admit_to_log(MIB).await.is_ok());
        // Just enough for the log's spare files, and for the largest unit three times: its segment and twice its place in the log.
        let spare = Wal::SPARE_FILES_MAX * SEGMENT;
        assert!(!admission.looked(look(gib + spare + 6 * MIB as u64 - 3)));
        assert!(admission.looked(look(gib + spare + 6 * MIB as u64)));
        let held = admission.admit(2 * MIB).await.expect("room for one");
        assert_eq!(admission.admit(1).await.err(), Some(NoRoom::Disk));
        drop(held);
        assert_eq!(
            admission.admit(1).await.err(),
            Some(NoRoom::Disk),
            "answered, it may be on the disk by now"
        );
        // What waits to be written to segments is not free.
        let unwritten = move || DiskLook { free: 2 * gib, least: gib, unwritten: gib };
        assert!(!admission.looked(unwritten));
    }
}
