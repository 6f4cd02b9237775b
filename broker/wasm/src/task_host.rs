//! What a hosted consumer's task can reach, as a port: the hosting room implements it.

use futures::future::BoxFuture;

use crate::answer::Records;
use crate::blobs::Blobs;

/// What the contract's `emit`, `state` and `timers` do for one task. What a call did is kept by the implementation until the call is
/// over, and thrown away unless it succeeded. Reads see the call's own writes.
///
/// Everything has been checked as far as it can be here: lists of byte strings are well formed and of equal lengths, emitted
/// records lie within their data, keys are as short as a shard wants them, and one call's emitted and written bytes are bounded.
pub trait TaskHost: Send + Sync + 'static {
    /// Records for the target of this place in the context. Partition numbers are not checked against the target.
    fn emit(&mut self, target: u32, records: Records) -> Result<EmitAnswer, HostError>;

    /// The keys' values, absent ones included, as many as there are keys. A key that comes twice counts twice; values beyond
    /// `bytes_max` are not collected.
    fn read_state(&mut self, keys: Blobs, bytes_max: usize) -> BoxFuture<'_, Result<ReadAnswer, HostError>>;

    /// An absent value deletes. `ttl_ms` 0 is for ever.
    fn write_state(&mut self, keys: Blobs, values: Blobs, ttl_ms: u64) -> Result<WriteAnswer, HostError>;

    /// Entries from `start` on, and before `end`, within the bounds.
    fn scan_state(
        &mut self,
        start: Vec<u8>,
        end: Option<Vec<u8>>,
        bounds: ScanBounds,
    ) -> BoxFuture<'_, Result<ScanAnswer, HostError>>;

    /// Sets a timer, or moves the one of this key.
    fn set_timer(&mut self, key: Vec<u8>, at: i64) -> Result<(), HostError>;

    /// Cancels a timer, if it is set.
    fn cancel_timer(&mut self, key: Vec<u8>) -> Result<(), HostError>;
}

/// Why the host did not do what the plugin asked: the call ends.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    /// The broker could not, through no fault of the plugin: [`CallError::HostFailed`](crate::CallError::HostFailed).
    #[error("{0}")]
    Broker(String),
    /// The plugin asked for what nobody can have: [`CallError::BadAnswer`](crate::CallError::BadAnswer).
    #[error("{0}")]
    Plugin(String),
}

/// What the plugin is told about records that it emits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EmitAnswer {
    /// Taken.
    Taken,
    /// The context names no such target.
    NoSuchTarget,
    /// More than this call may emit.
    OverBudget,
    /// The records do not fit the target, with the reason.
    Malformed(String),
}

/// What the plugin is told about state that it writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WriteAnswer {
    /// Taken.
    Taken,
    /// More than this call, or this task, may keep.
    OverBudget,
    /// Not usable, with the reason.
    Malformed(String),
}

/// What became of a read of keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReadAnswer {
    /// A value for each key.
    Values(Blobs),
    /// They are larger than was allowed.
    TooLarge,
}

/// Where a page of a scan ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScanBounds {
    /// Entries at most.
    pub entries_max: u32,
    /// With the entry that brings it to as many bytes.
    pub bytes_max: usize,
    /// Bytes that may be read for it, those of entries included that the call itself deleted or changed.
    pub read_bytes_max: usize,
}

/// What became of a scan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ScanAnswer {
    /// The entries found.
    Page(StatePage),
    /// More had to be read for it than was allowed.
    TooLarge,
}

/// Entries of a state, in the order of their keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StatePage {
    /// The keys.
    pub keys: Blobs,
    /// As many values.
    pub values: Blobs,
    /// Whether there are more behind the last key.
    pub more: bool,
    /// What was read for it, and not only what it holds.
    pub read_bytes: usize,
}
