//! Consumer groups' committed positions, as a pure state machine.
//!
//! [`Groups`] is part of a shard's state; a group lives whole in its home shard, whatever topics it reads. Positions
//! are the next offset to read, as in Kafka. What changed is handed out by [`Groups::take_changes`] as key-value
//! objects for the shard's checkpoint and read back by [`Groups::restore`].

// A core: see clippy.toml.
#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

mod command;
mod groups;

pub use command::{GroupCommand, GroupRefusal, GroupReply, PositionCommit};
pub use groups::{Change, CommittedPosition, Groups, GroupsBounds, RestoreError};
