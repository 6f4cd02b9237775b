//! A whole cluster: four brokers with three shards, each kept by three of them, through all kinds of faults, then healed.
//!
//! ```text
//!   Director    draws faults and lets them happen: at disks, at the network, at processes; starts brokers again
//!   Life        one broker's life: log, shards, replicas, what serves others        (machine)
//!   controller  plays the cluster's controller: whoever lost its log comes back under a new id and is taken in
//!   Client      idempotent producers, plain ones, readers, at any broker            (clients)
//!               tasks that emit to the next shard, and who delivers that            (tasks)
//!               one whose batches go to two shards (router), one that lets records go (trimmer)
//!   Watcher     compares what brokers have applied, all the time
//! ```
//! At the end everything is mended: then all must come to the same state, and what was acknowledged must be there once.

mod bug;
mod clients;
mod controller;
mod director;
mod disks;
mod faults;
mod lives;
mod machine;
mod router;
mod settle;
mod tasks;
mod trimmer;
mod watcher;
mod world;

use std::collections::BTreeMap;

use tidemill_protocol::ShardId;
use tokio::runtime::Runtime;

pub use bug::Bug;
pub use faults::Fault;
pub use watcher::Checks;

use crate::ledger::Violation;
use crate::trace::Trace;
use director::Director;

/// The cluster's brokers.
pub(crate) const BROKERS: std::ops::RangeInclusive<u32> = 1..=4;
/// Its shards; the first is the controller's.
pub(crate) const SHARDS: [ShardId; 3] = [ShardId::new(0), ShardId::new(1), ShardId::new(2)];

/// What a run of a cluster came to.
#[derive(Debug)]
pub struct ClusterReport {
    /// Everything that happened.
    pub trace: Trace,
    /// Batches that were acknowledged.
    pub acknowledged: usize,
    /// What went wrong, how often each.
    pub faults: BTreeMap<Fault, u64>,
    /// What was looked at.
    pub checks: Checks,
    /// Replicas that came back under a new id.
    pub retired: u64,
    /// Snapshots that were put in a shard's place.
    pub snapshots: u64,
    /// How long it was, in simulated time.
    pub simulated_ms: u64,
    /// The broken promise that ended the run, if there was one.
    pub violation: Option<Violation>,
    /// Something that is none of ours ended the run before its time.
    pub cut_short: bool,
}

/// Runs the cluster of a seed on `runtime`: one with a single thread, whose clock was built `start_paused`. With a bug, if one is
/// to be put back.
#[must_use]
pub fn run_cluster(runtime: &Runtime, seed: u64, bug: Option<Bug>) -> ClusterReport {
    runtime.block_on(async { Director::new(seed, bug).run().await })
}
