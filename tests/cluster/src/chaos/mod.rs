//! Brokers under fire while they are used, and the checks of what is left.
//!
//! Producers send to three topics: `direct`, whose partitions they choose, `routed`, which the broker partitions by a field with a
//! plugin, and `trimmed`, of which retention keeps the newest records alone. Two hosted consumers work on the first two, each with targets on
//! several shards: one counts songs in its state and emits the counts, one sends each record on by its device. Readers read along, one of them through a filter, one from a broker that may
//! follow. All the while brokers are killed, stopped and held up, cut off from each other, their disks fail, and some join and leave
//! for good ([`FaultKind`] says each). A cluster's brokers talk to each other through a proxy that is the network between them (`proxy`), and have disks of their
//! own where this machine lets them ([`LoopDisk`](crate::loop_disk::LoopDisk)). One broker alone is killed with kill -9, sometimes again before it serves.
//!
//! What was sent follows from the seed, so that each record that is read back can be compared with what it must be. What clients did
//! and were told is recorded for the checker of histories (`tidemill_checker`), with what each broker by itself holds in the end. The
//! other checks are plain functions over what was acknowledged and what is in the log:
//!
//! - `check_log`: every acknowledged record is there once, where it was acknowledged, and in order; offsets have no gap;
//! - [`check_counts`], [`check_routes`]: a task's state and outputs equal a model's replay of the log;
//! - [`check_reader`]: a reader saw what it should, once, across all its reconnects;
//! - all replicas of all topics hold the same records, each as its own broker sends them (`check_replicas`);
//! - no broker ends by itself, stops badly, panics, or says that replicas' states differ (`lives`), and once nothing happens to them any more
//!   each partition takes writes (`check_writes`).

mod check_log;
mod check_readers;
mod check_replicas;
mod check_segments;
mod check_tasks;
mod check_writes;
mod config;
mod damage;
mod failovers;
mod faults;
mod findings;
mod fires;
mod fleet;
mod gather;
mod hashes;
mod history;
mod killer;
mod lives;
mod load;
mod members;
mod producers;
mod proxy;
mod readers;
mod recording;
mod report;
mod run;
mod setup;
mod siege;

pub use check_log::check_log;
pub use check_readers::{check_positions, check_reader};
pub use check_tasks::{RouteTarget, check_counts, check_routes};
pub use config::ChaosConfig;
pub use faults::FaultKind;
pub use findings::{Findings, Violation, ViolationKind};
pub use fires::{Fires, MemberChanges};
pub use history::{Fate, Logged, RecordId};
pub use proxy::Traffic;
pub use report::Report;
pub use run::run;
