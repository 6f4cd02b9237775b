//! The WebAssembly room: compiles plugins in a process of their own, keeps the artifacts, and calls partitioners, filters and hosted
//! consumers under limits. The only room that names wasmtime. The contract that plugins are written against is `wit/plugin.wit`.
//!
//! ```text
//! component bytes -- inspect --> CompileService -- child process, ArtifactCache --> Compiled
//! Compiled -- describe, validate_config
//!          -- PartitionerPool::partition(batch)   a fresh instance per call
//!          -- FilterPool::apply(batch)            instances wait for the next call
//!          -- ConsumerInstance::handle(batch)     one per task, with a TaskHost
//! ```
//!
//! What a plugin answers is checked here, before anybody else sees it. What runs where is not decided here: a call is a future that
//! gives way after at most one epoch tick of running, that may be moved between runtimes in between, and that ends when dropped.
//!
//! Architecture invariant: no guest runs without an epoch deadline, a memory cap and a bound on what it may copy out.
//!
//! Architecture invariant: compiled code is loaded only if its digest, kept apart from it, matches: wasmtime believes what it loads.

mod answer;
mod artifact_cache;
mod batch;
mod bindings;
mod blobs;
mod budget;
mod call;
mod capacity;
mod check;
mod compatibility;
mod compile;
mod compiled;
mod config;
mod consumer;
mod deployment;
mod description;
mod digest_index;
mod engine;
mod error;
mod filter;
mod first_calls;
mod guest_state;
mod headers;
mod host_log;
mod host_task;
mod inspect;
mod limits;
mod linkers;
mod partitioner;
mod sink;
mod task_host;
mod task_use;
mod text;
mod ticker;
mod worker;
mod worker_process;

pub use answer::{
    ANY_PARTITION, Bitmap, MadeRecord, OUTPUT_ENTRY_BYTES, Outcome, Part, Placement, Records, Rejection,
    Selection, Verdict,
};
pub use artifact_cache::{ArtifactCache, ArtifactKey};
pub use batch::{Batch, Context, Fields, INDEX_ENTRY_BYTES, LENGTH_ABSENT, LENGTH_NULL, Timer};
pub use blobs::Blobs;
pub use capacity::Claim;
pub use compile::{CompileError, CompileLimits, CompileService, WorkerCommand};
pub use compiled::{Compiled, ConfigError, WrongKind};
pub use config::EngineConfig;
pub use consumer::ConsumerInstance;
pub use description::{ConfigKey, Description};
pub use digest_index::{DigestIndex, FileDigestIndex};
pub use engine::{Engine, EngineError, LoadError};
pub use error::{CallError, Failure};
pub use filter::FilterPool;
pub use inspect::{ComponentInfo, ComponentKind, InvalidComponent, inspect};
pub use limits::{PluginLimits, TASK_KEY_BYTES_MAX};
pub use partitioner::PartitionerPool;
pub use sink::{GuestSink, LogLevel, NullSink};
pub use task_host::{
    EmitAnswer, HostError, ReadAnswer, ScanAnswer, ScanBounds, StatePage, TaskHost, WriteAnswer,
};
pub use worker::compile_worker_main;
