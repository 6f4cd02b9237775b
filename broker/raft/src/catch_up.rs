//! What a new replica is still sent as entries once its snapshot is there.

use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use openraft::metrics::RaftMetrics;
use openraft::raft::AppendEntriesRequest;
use openraft::type_config::alias::WatchReceiverOf;
use parking_lot::Mutex;
use tidemill_protocol::NodeId;
use tokio::time::Instant;

use crate::peer_network::PeerLinks;
use crate::types::TypeConfig;

/// Who is in the group, and where its log ends, as the leader has it.
pub(crate) type Metrics = WatchReceiverOf<TypeConfig, RaftMetrics<TypeConfig>>;

/// For so long an append waits at the most.
const WAIT_MAX: Duration = Duration::from_secs(2);
/// Over so long what is sent is compared with what is written: several waits, and less than the time of most snapshots, before which nothing is sent.
const PERIOD: Duration = Duration::from_secs(10);

/// Holds back what a learner lacks, at the rate of snapshots: what was written while its snapshot was on the way would else come all at once.
/// Voters wait for nothing, nor does a learner that has nearly all. However low the rate, a learner gets a quarter more entries than are
/// written meanwhile, and an append every few seconds, or it would never arrive. Where the log of this broker has grown large nobody waits: what
/// a learner lacks can't be let go.
#[derive(Clone)]
pub(crate) struct CatchUp {
    links: Arc<PeerLinks>,
    target: NodeId,
    /// Over all sessions of appends.
    period: Arc<Mutex<Option<Period>>>,
}

/// Where the leader's log ended and what was sent when a period began.
#[derive(Clone, Copy)]
struct Period {
    begun: Instant,
    end: u64,
    sent: u64,
}

impl CatchUp {
    pub(crate) fn new(links: Arc<PeerLinks>, target: NodeId) -> Self {
        Self { links, target, period: Arc::default() }
    }

    /// Waits until an append of so many bytes may be sent.
    pub(crate) async fn admit(&self, append: &AppendEntriesRequest<TypeConfig>, bytes: usize) {
        let Some(last) = append.entries.last().map(|entry| entry.log_id.index) else { return };
        // What the append says of the leader's log was so when openraft began to read for it.
        let Some(end) = self.end_while_learner().filter(|end| last < *end) else {
            *self.period.lock() = None;
            return;
        };
        let before = append.prev_log_id.map_or(0, |id| id.index);
        let period = self.period(end, before);
        let (written, sent) = (end.saturating_sub(period.end), before.saturating_sub(period.sent));
        if sent >= written.saturating_add(written / 4) && !self.is_log_large() {
            let turn = self.links.snapshot_limiter.take(bytes);
            let _in_time = tokio::time::timeout(WAIT_MAX, turn).await;
        }
    }

    /// Entries that somebody lacks stay in the log, and with them what the other shards wrote since.
    fn is_log_large(&self) -> bool {
        self.links.log.as_ref().is_some_and(|(wal, high)| wal.bytes() > *high)
    }

    fn period(&self, end: u64, sent: u64) -> Period {
        let mut period = self.period.lock();
        let now = match *period {
            Some(now) if now.begun.elapsed() < PERIOD => now,
            _ => Period { begun: Instant::now(), end, sent },
        };
        *period = Some(now);
        now
    }

    /// Where the leader's log ends, if it is a learner that is sent to.
    fn end_while_learner(&self) -> Option<u64> {
        let metrics = self.links.metrics.get()?.borrow_watched();
        let mut learners = metrics.membership_config.membership().learner_ids();
        learners.any(|learner| learner == self.target).then_some(metrics.last_log_index?)
    }
}
