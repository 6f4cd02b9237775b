//! Tests of several parts together.

mod catching_up;
mod cluster;
mod comparing;
mod fixture;
mod following;
mod format;
mod format_history;
mod forwarding;
mod full_disk;
mod full_log;
mod installing;
mod losing;
mod membership;
mod network;
mod proposing;
mod reading;
mod recovering;
mod replicas;
mod replicating;
mod slow_segments;
mod stopped_shard;
mod store;
mod strangers;
mod streaming;
mod suite;
mod wire;
