//! How the room is set up.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tidemill_protocol::Timestamp;
use tidemill_wasm::WorkerCommand;

/// Settings of [`Hosting`](crate::Hosting).
#[derive(Clone)]
pub struct HostingConfig {
    /// Components and compiled code; mode 0700.
    pub artifacts_dir: PathBuf,
    /// File of the compiled code's digests, outside of `artifacts_dir`.
    pub digests_file: PathBuf,
    /// How the compiler's process is started.
    pub worker: WorkerCommand,
    /// Running time of one call of a partitioner or filter.
    pub call_time: Duration,
    /// Running time of one call of a task.
    pub task_call_time: Duration,
    /// Largest memory that a deployment may have.
    pub memory_bytes_max: u64,
    /// Time of one compilation.
    pub compile_time: Duration,
    /// Memory of the compiler's process.
    pub compile_memory_bytes_max: u64,
    /// Largest component.
    pub component_bytes_max: u64,
    /// Log lines kept per deployment, in bytes.
    pub log_bytes_max: usize,
    /// The broker's clock, for log lines.
    pub clock: Arc<dyn Fn() -> Timestamp + Send + Sync>,
}
