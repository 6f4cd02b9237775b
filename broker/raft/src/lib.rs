//! Replication by openraft, behind the broker's own trait.
