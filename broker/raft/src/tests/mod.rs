//! Tests of several parts together.

mod fixture;
mod following;
mod format;
mod format_history;
mod full_disk;
mod full_log;
mod proposing;
mod replicating;
mod slow_segments;
mod stopped_shard;
mod suite;
