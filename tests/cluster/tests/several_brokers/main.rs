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
mod quorum;
mod recover;
mod remote;
mod repair;
mod room;
mod state_hash;
mod strangers;
