//! Three brokers: one file per family.

mod failover;
mod follower;
mod idle;
mod rebuild;
mod replicated;
mod role_changes;

use super::Family;

/// Of three brokers.
pub(crate) const FAMILIES: &[Family] = &[
    failover::LEADER_KILLED,
    follower::FOLLOWER_KILLED,
    replicated::BESIDE_SINGLE,
    idle::MANY_PARTITIONS,
    rebuild::UNLOADED,
    rebuild::THROTTLED,
];

/// Room for what three brokers hold beside records: write-ahead logs, reserves, what they want to stay free.
const CLUSTER_BYTES: u64 = 12 << 30;
/// About how long it takes until three brokers have started and formed their cluster.
const START_SECONDS: f64 = 8.0;
/// About how long it takes until a broker that was killed or stopped is back, and the cluster is well.
const RETURN_SECONDS: f64 = 5.0;
