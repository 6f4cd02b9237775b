//! What a new replica is still sent as entries once its snapshot is there.

use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use openraft::metrics::RaftServerMetrics;
use openraft::raft::AppendEntriesRequest;
use openraft::type_config::alias::WatchReceiverOf;
use tidemill_protocol::NodeId;
use tokio::time::Instant;

use crate::peer_network::PeerLinks;
use crate::types::TypeConfig;

/// Who is in the group, as the leader has it.
pub(crate) type Members = WatchReceiverOf<TypeConfig, RaftServerMetrics<TypeConfig>>;

/// Over this long the backlog is to shrink.
const PERIOD: Duration = Duration::from_secs(5);

/// Holds back what a learner lacks, at the rate of snapshots: what was written while its snapshot was on the way would else come all at once.
/// Voters wait for nothing, nor does a learner that has nearly all. However low the rate, a learner gets twice as many entries as are
/// committed meanwhile, or it would never arrive.
pub(crate) struct CatchUp {
    links: Arc<PeerLinks>,
    target: NodeId,
    period: Option<Period>,
}

/// Since when what is sent is compared with what is committed.
struct Period {
    begun: Instant,
    commit: u64,
    sent: u64,
}

impl CatchUp {
    pub(crate) fn new(links: Arc<PeerLinks>, target: NodeId) -> Self {
        Self { links, target, period: None }
    }

    /// Waits until an append of so many bytes may be sent.
    pub(crate) async fn admit(&mut self, append: &AppendEntriesRequest<TypeConfig>, bytes: usize) {
        let (Some(commit), Some(last)) = (append.leader_commit, append.entries.last()) else { return };
        let (commit, last) = (commit.index, last.log_id.index);
        if last >= commit || !self.is_learner() {
            self.period = None;
            return;
        }
        let before = append.prev_log_id.map_or(0, |id| id.index);
        let period = self.period.take().filter(|period| period.begun.elapsed() < PERIOD);
        let period = period.unwrap_or_else(|| Period { begun: Instant::now(), commit, sent: before });
        let (committed, sent) = (commit.saturating_sub(period.commit), before.saturating_sub(period.sent));
        self.period = Some(period);
        if sent >= committed.saturating_mul(2) {
            self.links.snapshot_limiter.take(bytes).await;
        }
    }

    fn is_learner(&self) -> bool {
        let Some(members) = self.links.members.get() else { return false };
        let members = members.borrow_watched();
        members.membership_config.membership().learner_ids().any(|learner| learner == self.target)
    }
}
