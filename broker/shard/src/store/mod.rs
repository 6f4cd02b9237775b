//! The shard's state on disk: one table of rows in one redb file, changed by one durable commit per checkpoint.

mod backend;
mod rows;
mod state_file;

pub use backend::StillOpen;
pub(crate) use rows::{FrozenRows, Rows};
pub use state_file::StoreError;
pub(crate) use state_file::{BaseRows, StateFile};
