//! What a replica may be told, and what openraft is told on its behalf.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use openraft::{Config, ConfigError, SnapshotPolicy, StepDownPolicy};
use tidemill_protocol::{NodeId, ShardId, Timestamp};

use crate::beat::Beat;
use crate::gate::Gate;
use crate::peers::PeerDialer;
use crate::rpc::APPEND_ENTRIES_MAX;
use crate::snapshot::SnapshotLimiter;

/// Everything that starting a replica depends on, beside its log and its shard.
#[derive(Clone)]
pub struct ReplicaConfig {
    /// The shard that this replica keeps.
    pub shard: ShardId,
    /// Under which id this broker takes part in the shard's group.
    pub node: NodeId,
    /// The broker's clock: stamped into each entry that this replica proposes.
    pub clock: Clock,
    /// What to do where the log is empty. Where it is not, this changes nothing.
    pub begin: Begin,
    /// The way to the other replicas of the group. `None`: this broker is alone.
    pub peers: Option<Arc<dyn PeerDialer>>,
    /// Whether what other brokers propose here may come in. `None`: it may.
    pub gate: Option<Arc<dyn Gate>>,
    /// How fast snapshots leave this broker: one limit for all of its replicas.
    pub snapshot_limiter: Arc<SnapshotLimiter>,
    /// This node id is new and has promised nothing, whatever an earlier life of the broker left in the log: that is cut to
    /// what the checkpoint holds, and its vote is forgotten. A doubtful tail, a lost log or a lost state are then no reason
    /// not to start. Once the replica has started, the same node id must not start so again.
    pub retired: bool,
    /// Start although entries or a vote that were once acknowledged may be lost (`--accept-data-loss`).
    ///
    /// Only ever right for a group of one whose operator has read what is lost: in a larger group the replica is
    /// retired and comes back under a new [`NodeId`] instead.
    pub accept_data_loss: bool,
    /// The largest unit that the log of every other broker takes, as far as is known: it changes as they come. What is larger is refused
    /// before it is in anybody's log.
    pub unit_bytes_elsewhere: Arc<AtomicUsize>,
    /// When a silent leader is given up.
    pub timing: RaftTiming,
    /// One for all replicas of this broker.
    pub beat: Beat,
    /// Bounds of everything that queues.
    pub limits: ReplicaLimits,
}

/// How a replica with an empty log begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Begin {
    /// Not at all: the log should be there.
    Existing,
    /// As a member of a new group of these nodes. Every one of them must be told the same.
    Form(BTreeSet<NodeId>),
    /// It waits until the leader of a group takes it in.
    Join,
}

/// The source of the time that entries carry.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

impl ReplicaConfig {
    /// A replica with the default bounds, for a group that exists already.
    #[must_use]
    pub fn new(shard: ShardId, node: NodeId, clock: Clock) -> Self {
        Self {
            shard,
            node,
            clock,
            begin: Begin::Existing,
            peers: None,
            gate: None,
            snapshot_limiter: Arc::new(SnapshotLimiter::new(None)),
            retired: false,
            accept_data_loss: false,
            unit_bytes_elsewhere: Arc::new(AtomicUsize::new(usize::MAX)),
            timing: RaftTiming::default(),
            beat: Beat::new(),
            limits: ReplicaLimits::default(),
        }
    }
}

impl fmt::Debug for ReplicaConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReplicaConfig")
            .field("shard", &self.shard)
            .field("node", &self.node)
            .field("begin", &self.begin)
            .field("retired", &self.retired)
            .field("accept_data_loss", &self.accept_data_loss)
            .field("timing", &self.timing)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

/// Timing of leadership, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RaftTiming {
    /// How often a leader tells its followers that it is there.
    pub heartbeat_interval_ms: u64,
    /// From the last word of a leader on, so long nobody helps to elect another. A leader that no majority answered for so long takes
    /// no proposals. More than twice the heartbeat interval.
    pub lease_ms: u64,
    /// A follower that hears nothing waits up to so long beyond the lease before it stands for election; each draws anew.
    pub election_spread_ms: u64,
}

impl RaftTiming {
    /// How long a candidate waits for votes.
    pub(crate) const fn votes_patience_ms(&self) -> u64 {
        self.heartbeat_interval_ms.midpoint(self.lease_ms)
    }
}

impl Default for RaftTiming {
    /// Three heartbeats may be lost, or come late; a leader that died is replaced within a second.
    fn default() -> Self {
        Self { heartbeat_interval_ms: 200, lease_ms: 650, election_spread_ms: 250 }
    }
}

/// Bounds of everything that queues in a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplicaLimits {
    /// The largest unit. Must fit into an entry of the write-ahead log.
    pub unit_bytes_max: usize,
    /// The size up to which units are put into one entry; a larger one is alone in its entry.
    pub entry_bytes_max: usize,
    /// The most units in one entry.
    pub entry_units_max: usize,
    /// Entries in flight below which a unit is proposed the moment it arrives. Two keep the log's writer busy: one is
    /// being written while the next already waits.
    pub eager_entries: usize,
    /// With more in flight than that, units gather until they are this many bytes.
    pub gather_bytes: usize,
    /// The most entries proposed and not yet answered.
    pub in_flight_entries_max: usize,
    /// The most bytes proposed and not yet answered (one entry always may be). Over all shards they should fit into the
    /// queue of the write-ahead log: while that is full, replicas wait.
    pub in_flight_bytes_max: usize,
    /// The most bytes of units that are reserved, queued or in flight.
    pub pending_bytes_max: usize,
    /// The most bytes that are applied and not yet in segments before units with records wait. What was reserved before
    /// comes on top, so memory is bounded by this and `pending_bytes_max`.
    pub write_behind_bytes_max: u64,
    /// How long [`Replica::reserve`](crate::Replica::reserve) waits for room.
    pub reserve_deadline: Duration,
    /// How long a proposal may go without an answer; its outcome is unknown from then on.
    pub proposal_deadline: Duration,
    /// The most bytes of entries that are read from the log at once.
    pub read_bytes_max: usize,
    /// The most bytes of appends on the way to one follower, and of those that a follower takes from its leader without having
    /// answered; one append always may be. As many bytes of units may be on the way to the leader.
    pub append_in_flight_bytes_max: usize,
    /// The most bytes of entries that a follower knows to be committed and has not applied before it takes more.
    pub apply_backlog_bytes_max: usize,
    /// The most bytes of applied entries that stay decoded.
    pub decoded_cache_bytes_max: usize,
    /// With more than this in the broker's log nobody is held back who keeps entries in it.
    pub log_bytes_high: u64,
    /// How much a shard applies until it is due for a checkpoint.
    pub checkpoint_bytes: u64,
    /// How much is applied, and how long it takes at the least, until the leader has the replicas' states compared again. Where little is
    /// applied it takes six times as long, and less will do.
    pub state_hash_bytes: u64,
    /// See `state_hash_bytes`.
    pub state_hash_interval: Duration,
}

impl Default for ReplicaLimits {
    fn default() -> Self {
        Self {
            // The largest batch that a topic may allow, and what stands around it.
            unit_bytes_max: (16 << 20) + (64 << 10),
            entry_bytes_max: 4 << 20,
            entry_units_max: 4096,
            eager_entries: 2,
            gather_bytes: 128 << 10,
            in_flight_entries_max: 64,
            in_flight_bytes_max: 8 << 20,
            pending_bytes_max: 64 << 20,
            write_behind_bytes_max: 64 << 20,
            reserve_deadline: Duration::from_secs(5),
            proposal_deadline: Duration::from_secs(15),
            read_bytes_max: 8 << 20,
            append_in_flight_bytes_max: 8 << 20,
            apply_backlog_bytes_max: 16 << 20,
            decoded_cache_bytes_max: 1 << 20,
            log_bytes_high: 1 << 30,
            checkpoint_bytes: 256 << 20,
            state_hash_bytes: 64 << 20,
            state_hash_interval: Duration::from_secs(600),
        }
    }
}

/// Every setting of openraft by name, so that an upgrade cannot change one unseen.
pub(crate) fn openraft_config(config: &ReplicaConfig) -> Result<Config, Box<ConfigError>> {
    let timing = config.timing;
    let limits = config.limits;
    // Messages in flight are proposals (bounded by us, far lower), RPCs and commands: this leaves each of them room, so
    // that handing over a proposal never waits.
    let channel = (limits.in_flight_entries_max as u64).saturating_mul(4).clamp(1024, 65_536);
    #[expect(deprecated, reason = "every field is named; the deprecated one must be among them")]
    let settings = Config {
        cluster_name: format!("shard-{}", config.shard),

        heartbeat_interval: timing.heartbeat_interval_ms,
        // The leader's lease is the longer of the two; the shorter one bounds the wait for votes. When to stand for election, and
        // when to send heartbeats, is decided by `pulse`.
        election_timeout_min: timing.votes_patience_ms(),
        election_timeout_max: timing.lease_ms,
        // A heartbeat to a follower that answered just now is redundant, but suppressing it eats into the election
        // time-out: not worth the risk at this interval.
        heartbeat_min_interval: Some(0),
        enable_tick: false,
        // Nothing of these two happens without the tick.
        enable_heartbeat: true,
        enable_elect: true,

        // A leader that restarts must be elected again: restored leadership trusts a `committed` that we save lazily.
        enable_leader_restore: Some(false),
        // A node that was cut off must not depose a healthy leader when it comes back.
        enable_pre_vote: Some(true),
        // A leader without a quorum keeps telling everyone that it leads: groups of three need to get away from it.
        quorum_loss_probe_interval: Some(timing.lease_ms.saturating_mul(2)),
        // A follower whose log went back has lost what it acknowledged. It is retired, never fed again.
        allow_log_reversion: Some(false),
        removed_leader_step_down: StepDownPolicy::After(timing.heartbeat_interval_ms),
        reset_backoff_on_transfer_leader: Some(true),

        // Checkpoints and purges go by bytes, which openraft cannot count: the checkpoint driver triggers both.
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: u64::MAX,
        purge_batch_size: 1,
        // How close a learner must be for "add and wait" to return. Whether it needs a snapshot is decided by what the
        // log still holds.
        replication_lag_threshold: 1024,
        // A snapshot is gigabytes of segments, of which a manifest names what is missing.
        install_snapshot_timeout: 3_600_000,
        send_snapshot_timeout: 0,
        snapshot_max_chunk_size: 4 << 20,

        // Counts, where we limit by bytes: reads stop at `read_bytes_max`, those for one append at `APPEND_BYTES_MAX`, entries
        // in flight at `in_flight_bytes_max`.
        max_payload_entries: APPEND_ENTRIES_MAX as u64,
        max_append_entries: Some(4096),
        api_batch_capacity: 4096,
        // Units are gathered before they become entries; to wait here as well would only add latency.
        api_batch_linger_ms: 0,
        api_channel_size: Some(channel),
        notification_channel_size: Some(65_536),
        state_machine_channel_size: Some(1024),
        log_stage_capacity: None,
        // Followers get an entry as soon as it is handed to the log, while the leader's own write is under way.
        broadcast_submitted_on_append: Some(true),

        // Of a peer that does not answer: first retries soon, then every second.
        backoff: "50ms 100ms 200ms ..1s".to_owned(),
    };
    settings.validate().map_err(Box::new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_accepted_and_nonsense_is_not() {
        let clock: Clock = Arc::new(|| Timestamp::new(0));
        let mut config = ReplicaConfig::new(ShardId::new(3), NodeId::from_raw(1), clock);
        let settings = openraft_config(&config).unwrap();
        assert_eq!(settings.cluster_name, "shard-3");
        assert_eq!(settings.snapshot_policy, SnapshotPolicy::Never);
        config.timing.lease_ms = config.timing.heartbeat_interval_ms;
        assert!(openraft_config(&config).is_err());
    }
}
