//! Clusters of several broker processes: formed, failed over, grown.

mod command_line;
mod components;
mod disk_fails;
mod failover;
mod forming;
mod growing;
mod hosted;
mod lanes;
mod load;
mod members;
mod pushes;
mod quorum;
#[allow(dead_code, reason = "most of it is what tests of one broker send")]
#[path = "../end_to_end/raw.rs"]
mod raw;
mod recover;
mod remote;
mod repair;
mod room;
mod state_hash;
mod strangers;
