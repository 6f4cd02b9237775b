//! Units, entries, apply, checkpoints, snapshots: the state machine of one shard.
