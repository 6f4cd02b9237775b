//! Tasks: one per deployment and partition number.
//!
//! ```text
//! wait -> due timers, else records of a source -> call -> effects -> one step -> committed? -> wait
//!                       ^                          |                     | no
//!                       '-- fewer records, later --+-- failure policy    '-> look again, new instance
//! ```

mod effects;
mod outputs;
mod reading;
mod runner;

pub(crate) use runner::{TaskParts, TaskRunner};
