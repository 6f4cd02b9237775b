//! Clusters of several broker processes: formed, failed over, grown.

mod command_line;
mod components;
mod damaged;
mod disk_fails;
mod failover;
mod files;
mod forming;
mod growing;
mod hosted;
mod lanes;
mod left_behind;
mod load;
mod lost_follower;
mod members;
mod pushes;
mod quorum;
mod racks;
#[allow(dead_code, reason = "most of it is what tests of one broker send")]
#[path = "../end_to_end/raw.rs"]
mod raw;
mod recover;
mod remote;
mod repair;
mod replicated_durability;
mod retired;
mod room;
mod state_hash;
mod strangers;
mod transfers;
mod wal_files;
