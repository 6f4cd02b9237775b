//! Brokers on one thread, with simulated time and disks, from a seed.
//!
//! ```text
//!   seed --> scenario: clients, when the power goes
//!        --> SimDisk: what each call takes; what a power loss leaves      --> Trace
//!        --> openraft's election time-outs, the log's salts
//!
//!   one current_thread runtime whose clock stands still unless all wait
//!     tasks: openraft, proposers, clients
//!     tasks: the log's writer, its preparer, shards' write-behind (SimBackground), a step at a time
//! ```
//!
//! What runs is the broker's own code, as it is built for production; the seams are parameters
//! (`tidemill_log::background`, `tidemill_log::fs`). The clock is the caller's: hand in a runtime that was built with
//! `start_paused`. The first thing that a simulation must show is that a seed run twice leaves the same trace.

mod alone;
mod astray;
mod background;
mod chance;
mod child;
mod cluster;
mod disk;
mod edits;
mod host;
mod ledger;
mod network;
mod notes;
mod trace;

pub use alone::{Report, run};
pub use background::SimBackground;
pub use child::{Outcome, Seeds, run_if_child, run_seed, run_seeds};
pub use cluster::{Bug, Checks, ClusterReport, Fault, run_cluster};
pub use disk::SimDisk;
pub use edits::{Change, EDITS, Edit};
pub use host::{Host, HostError};
pub use ledger::Violation;
pub use network::{Accept, SimNetwork};
pub use trace::Trace;
