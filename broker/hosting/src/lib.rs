//! Deployments at work: partitioners, filters and hosted consumers' tasks.
//!
//! The wasm room runs a plugin's call; this room decides which, where and what becomes of the answer. It reaches logs,
//! state and metadata through [`TaskPort`] alone.
//!
//! ```text
//! upload -> ComponentStore -> Compiled -> Filter       polled inline, moved when it takes longer
//!                                      -> Partitioner  the same
//!                                      -> task         on the plugin runtime, one per deployment and partition
//! ```
//!
//! Architecture invariant: no guest code runs on the task that reads a connection, or under a lock.
//!
//! Architecture invariant: what a task did is committed as one step, or not at all; an instance whose call did not
//! commit is thrown away.

mod batch_view;
mod components;
mod config;
mod failure;
mod filter;
mod hosting;
mod logs;
mod memory;
mod meter;
mod partitioner;
mod plan;
mod port;
mod recent;
mod rehearsal;
mod runtime;
mod task;

pub use batch_view::view_of;
pub use components::ComponentHold;
pub use config::HostingConfig;
pub use failure::{
    CallFailure, CallFailureKind, ComponentError, HostingStartError, OpenError, PluginProblem, UploadError,
};
pub use filter::{Filter, FilterOutcome, Kept};
pub use hosting::{CheckedUpload, Hosting};
pub use logs::{LogLine, LogPage};
pub use memory::{MemoryLimits, MemoryPort, MemoryTask};
pub use meter::Cost;
pub use partitioner::{Partitioner, Placement};
pub use plan::{BatchPlace, Lane, PluginKind, PluginPlan, TargetPlan, TaskPlan, TaskPolicy};
pub use port::{
    DueTimer, Fetched, PortError, PositionStep, StateChange, StateEntries, StepOutcome, StepRefusal, TaskKey,
    TaskOutput, TaskPort, TaskRunState, TaskStep, TaskView, TimerChange,
};
pub use rehearsal::{
    Answer, Cause, ComparedOutputs, Difference, DifferenceAt, EmittedRecord, FailedAt, FiredTimer,
    PlainRecord, Rehearsal, RehearsalError, Rehearsed, RehearsedCall, Run, RunFailure, Verdict,
};
pub use tidemill_wasm::{ConfigKey, WorkerCommand, compile_worker_main};
