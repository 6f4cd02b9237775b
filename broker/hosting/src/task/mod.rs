//! Tasks: one per deployment and partition number.
//!
//! ```text
//! wait -> due timers, else records of a source -> call -> effects -> one step -> committed? -> wait
//!                       ^                          |                     | no
//!                       '-- fewer records, later --+-- failure policy    '-> look again, new instance
//! ```

mod ahead;
mod attempts;
mod effects;
mod instance;
mod notes;
mod outputs;
mod policy;
mod reading;
mod runner;
mod sources;

pub(crate) use ahead::KeptBytes;
pub(crate) use notes::Given;
pub(crate) use reading::{CALL_RECORDS_MAX, ENOUGH_BYTES};
pub(crate) use runner::{Progress, Setback, TaskParts, TaskRunner};
