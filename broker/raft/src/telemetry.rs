//! What a replica counts.

use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};
use tidemill_protocol::ShardId;

/// Handles of a replica's metrics, looked up once.
pub(crate) struct Telemetry {
    /// Units submitted.
    pub(crate) proposals: Counter,
    /// Units refused for want of room.
    pub(crate) overloaded: Counter,
    /// Entries whose deadline passed without an answer.
    pub(crate) expired: Counter,
    entries: Counter,
    entry_bytes: Counter,
    entry_units: Histogram,
    commit_seconds: Histogram,
}

impl Telemetry {
    pub(crate) fn new(shard: ShardId) -> Self {
        let shard = shard.to_string();
        Self {
            proposals: counter!("tidemill_raft_proposals_total", "shard" => shard.clone()),
            overloaded: counter!("tidemill_raft_overloaded_total", "shard" => shard.clone()),
            expired: counter!("tidemill_raft_expired_total", "shard" => shard.clone()),
            entries: counter!("tidemill_raft_entries_total", "shard" => shard.clone()),
            entry_bytes: counter!("tidemill_raft_entry_bytes_total", "shard" => shard.clone()),
            entry_units: histogram!("tidemill_raft_entry_units", "shard" => shard.clone()),
            commit_seconds: histogram!("tidemill_raft_commit_seconds", "shard" => shard),
        }
    }

    /// An entry was proposed.
    pub(crate) fn entry(&self, units: usize, bytes: usize) {
        self.entries.increment(1);
        self.entry_bytes.increment(bytes as u64);
        self.entry_units.record(units as f64);
    }

    /// An entry was answered, this long after it was proposed.
    pub(crate) fn committed(&self, took: Duration) {
        self.commit_seconds.record(took);
    }
}

/// What the replica's role and checkpoints are, for whoever watches from outside.
pub(crate) struct StateTelemetry {
    pub(crate) leading: Gauge,
    pub(crate) term: Gauge,
    pub(crate) checkpoints: Counter,
    pub(crate) checkpoint_failures: Counter,
    pub(crate) checkpoint_seconds: Histogram,
    /// Bytes that are applied and not yet in segments.
    pub(crate) write_behind_lag: Gauge,
    /// Units that waited for segments, and for how long.
    pub(crate) stalls: Counter,
    pub(crate) stall_seconds: Histogram,
}

impl StateTelemetry {
    pub(crate) fn new(shard: ShardId) -> Self {
        let shard = shard.to_string();
        Self {
            leading: gauge!("tidemill_raft_leading", "shard" => shard.clone()),
            term: gauge!("tidemill_raft_term", "shard" => shard.clone()),
            checkpoints: counter!("tidemill_raft_checkpoints_total", "shard" => shard.clone()),
            checkpoint_failures: counter!("tidemill_raft_checkpoint_failures_total", "shard" => shard.clone()),
            checkpoint_seconds: histogram!("tidemill_raft_checkpoint_seconds", "shard" => shard.clone()),
            write_behind_lag: gauge!("tidemill_write_behind_lag_bytes", "shard" => shard.clone()),
            stalls: counter!("tidemill_write_behind_stalls_total", "shard" => shard.clone()),
            stall_seconds: histogram!("tidemill_write_behind_stall_seconds", "shard" => shard),
        }
    }
}
