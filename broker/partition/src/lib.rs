//! One partition's replicated state: offsets, leader epochs, segment boundaries, producer sequences. Pure: no I/O, no
//! clock, no randomness, so that the same appends give the same state on every replica.
//!
//! ```text
//!   log start                                     log end = high watermark = last stable offset
//!       |  segment 0  |  segment 1  |  active segment |
//! ```
//!
//! What is applied is committed, so the applied log's end *is* the high watermark; it is not stored a second time. The
//! last stable offset equals it until transactions come.
//!
//! [`Partition`] is changed by [`Partition::append`], [`Partition::refuse`] and [`Partition::advance_log_start`]; what
//! changed since the last checkpoint is handed out by [`Partition::take_changes`] as shared, immutable objects (apply
//! goes on by copying what it changes next).

// A core: see clippy.toml.
#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

mod append;
mod codec;
mod epochs;
mod partition;
mod producers;
mod segments;

pub use append::{AppendCheck, AppendError, AppendRequest, Appended, ProducerBatch};
pub use codec::CodecError;
pub use epochs::{EPOCHS_MAX, EpochStart, leader_epoch};
pub use partition::{LogStartError, Partition, PartitionChanges, PartitionHeader};
pub use producers::{
    BATCHES_IN_FLIGHT_MAX, BATCHES_REMEMBERED, KNOWN_PRODUCERS_BYTES_MAX, PRODUCER_EXPIRY_MS,
    PRODUCER_IDLE_MIN_MS, PRODUCERS_BYTES_MAX, ProducerState, RememberedBatch,
};
pub use segments::{RetentionRules, SegmentRules, SegmentSummary};
