//! Starts the compiler's process, feeds it, and kills it when it takes too long.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

use crate::compile::CompileError;
use crate::text::cut;
use crate::worker::{DIGEST_BYTES, WorkerLimits};

/// Bytes of what the process says on standard error that are kept.
const REASON_BYTES_MAX: u64 = 4096;
/// Threads of one compilation: more would take address space and the broker's cores, and gain little.
const THREADS_MAX: usize = 4;

/// How to start the compiler's process: the program calls [`compile_worker_main`](crate::compile_worker_main).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerCommand {
    /// The program: mostly the running one.
    pub program: PathBuf,
    /// Its arguments: the hidden subcommand.
    pub args: Vec<OsString>,
}

pub(crate) struct WorkerProcess<'a> {
    pub(crate) command: &'a WorkerCommand,
    pub(crate) memory_bytes_max: u64,
    pub(crate) time: Duration,
    pub(crate) artifact_bytes_max: u64,
}

impl WorkerProcess<'_> {
    /// The artifact, if the process was of an engine that is compatible with this one.
    pub(crate) async fn compile(
        &self,
        component: &[u8],
        compatibility: &[u8; DIGEST_BYTES],
    ) -> Result<Vec<u8>, CompileError> {
        let run = tokio::time::timeout(self.time, self.run(component)).await;
        let time_ms = u64::try_from(self.time.as_millis()).unwrap_or(u64::MAX);
        let mut output = run.map_err(|_| CompileError::TimedOut { limit_ms: time_ms })??;
        if output.get(..DIGEST_BYTES) != Some(compatibility) {
            let reason = format!("{} makes code for another engine", self.command.program.display());
            return Err(CompileError::Worker(reason));
        }
        output.drain(..DIGEST_BYTES);
        Ok(output)
    }

    /// Dropping the future kills the process.
    async fn run(&self, component: &[u8]) -> Result<Vec<u8>, CompileError> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX);
        let cpu_seconds_max = self.time.as_secs().saturating_add(1).saturating_mul(threads as u64);
        let limits = WorkerLimits { memory_bytes_max: self.memory_bytes_max, cpu_seconds_max };
        let mut child = Command::new(&self.command.program)
            .args(&self.command.args)
            .env_clear()
            .env("RAYON_NUM_THREADS", threads.to_string())
            // Arenas reserve address space per thread, which is what the process is limited in.
            .env("MALLOC_ARENA_MAX", "2")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| self.worker_error(&error))?;
        let (Some(mut stdin), Some(stdout), Some(stderr)) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            return Err(CompileError::Worker("its pipes are missing".to_owned()));
        };
        let feed = async move {
            stdin.write_all(&limits.encode()).await?;
            stdin.write_all(component).await?;
            stdin.shutdown().await
        };
        let artifact = read_at_most(stdout, self.artifact_bytes_max + DIGEST_BYTES as u64);
        let said = read_at_most(stderr, REASON_BYTES_MAX);
        let (fed, artifact, said) = tokio::join!(feed, artifact, said);
        let status = child.wait().await.map_err(|error| self.worker_error(&error))?;
        if !status.success() {
            return Err(CompileError::Failed(self.why(status, &said.unwrap_or_default().bytes)));
        }
        fed.map_err(|error| self.worker_error(&error))?;
        let artifact = artifact.map_err(|error| self.worker_error(&error))?;
        if artifact.more {
            let most = self.artifact_bytes_max;
            return Err(CompileError::Failed(format!("the compiled plugin is larger than {most} bytes")));
        }
        Ok(artifact.bytes)
    }

    fn worker_error(&self, error: &std::io::Error) -> CompileError {
        CompileError::Worker(format!("{}: {error}", self.command.program.display()))
    }

    fn why(&self, status: ExitStatus, said: &[u8]) -> String {
        use std::os::unix::process::ExitStatusExt;
        let said = cut(String::from_utf8_lossy(said).trim().to_owned(), 1024);
        match status.signal() {
            None if status.code() == Some(1) && !said.is_empty() => said,
            None => format!("the compiler ended with {status}: {said}"),
            // A failed allocation aborts, and so does a stack overflow; the kernel ends what is over its time.
            Some(_) => {
                let memory = self.memory_bytes_max >> 20;
                let seconds = self.time.as_secs();
                format!(
                    "the compiler was ended by {status}: it may have {memory} MiB and {seconds} s. {said}"
                )
            }
        }
    }
}

#[derive(Default)]
struct Taken {
    bytes: Vec<u8>,
    more: bool,
}

/// Reads to the end, but keeps no more than so much: the process must not block on a full pipe.
async fn read_at_most(mut from: impl AsyncRead + Unpin, bytes_max: u64) -> std::io::Result<Taken> {
    let mut bytes = Vec::new();
    (&mut from).take(bytes_max).read_to_end(&mut bytes).await?;
    let more = tokio::io::copy(&mut from, &mut tokio::io::sink()).await? > 0;
    Ok(Taken { bytes, more })
}
