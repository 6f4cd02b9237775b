//! The compiler's process: a component on standard input, the artifact on standard output.
//!
//! ```text
//! in:   | magic 4 | memory bytes max u64 LE | cpu seconds max u64 LE | component ... |
//! out:  | compatibility digest 32 | artifact ... |        exit code 0
//!       or a reason on standard error, exit code 1
//! ```
//!
//! A compiler that a stranger's bytes drive may run for ever, or take all memory, or fall over. Here it has its limits from the
//! kernel, and falls over alone.

use std::io::{self, Read, Write};
use std::process::ExitCode;

use rustix::process::{Resource, Rlimit, nice, setrlimit};

use crate::compatibility::compatibility_digest;
use crate::config::code_config;

pub(crate) const MAGIC: [u8; 4] = *b"TMC1";
pub(crate) const HEADER_BYTES: usize = 20;
pub(crate) const DIGEST_BYTES: usize = 32;
/// The compiler gives way to the broker.
const NICENESS: i32 = 10;

/// The limits that the process gives itself, before it reads the component.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WorkerLimits {
    pub(crate) memory_bytes_max: u64,
    pub(crate) cpu_seconds_max: u64,
}

impl WorkerLimits {
    pub(crate) fn encode(self) -> [u8; HEADER_BYTES] {
        let mut header = [0; HEADER_BYTES];
        header[..4].copy_from_slice(&MAGIC);
        header[4..12].copy_from_slice(&self.memory_bytes_max.to_le_bytes());
        header[12..].copy_from_slice(&self.cpu_seconds_max.to_le_bytes());
        header
    }

    fn decode(header: [u8; HEADER_BYTES]) -> Result<Self, WorkerError> {
        let word = |at: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&header[at..at + 8]);
            u64::from_le_bytes(bytes)
        };
        if header[..4] != MAGIC {
            return Err(WorkerError::NotForPeople);
        }
        Ok(Self { memory_bytes_max: word(4), cpu_seconds_max: word(12) })
    }

    fn apply(self) -> io::Result<()> {
        let at_most = |most: u64| Rlimit { current: Some(most), maximum: Some(most) };
        setrlimit(Resource::As, at_most(self.memory_bytes_max))?;
        setrlimit(Resource::Cpu, at_most(self.cpu_seconds_max))?;
        setrlimit(Resource::Fsize, at_most(0))?;
        setrlimit(Resource::Core, at_most(0))?;
        nice(NICENESS)?;
        Ok(())
    }
}

#[derive(Debug, thiserror::Error)]
enum WorkerError {
    #[error(
        "this command is started by the broker to compile a plugin; it reads its own format on standard input"
    )]
    NotForPeople,
    #[error("the limits could not be set: {0}")]
    Limits(io::Error),
    #[error("the component could not be read: {0}")]
    Read(io::Error),
    #[error("the artifact could not be written: {0}")]
    Write(io::Error),
    #[error("{0}")]
    Compile(String),
}

/// The whole of the compiler's process: what the hidden subcommand calls that [`WorkerCommand`](crate::WorkerCommand) names. Sets its
/// own limits, reads a component, writes the artifact.
#[must_use]
pub fn compile_worker_main() -> ExitCode {
    match compile(&mut io::stdin().lock(), &mut io::stdout().lock()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody is left to tell if this fails too.
            let _ = writeln!(io::stderr(), "{error}");
            ExitCode::FAILURE
        }
    }
}

fn compile(input: &mut impl Read, output: &mut impl Write) -> Result<(), WorkerError> {
    let mut header = [0; HEADER_BYTES];
    input.read_exact(&mut header).map_err(|_| WorkerError::NotForPeople)?;
    WorkerLimits::decode(header)?.apply().map_err(WorkerError::Limits)?;
    let mut component = Vec::new();
    input.read_to_end(&mut component).map_err(WorkerError::Read)?;
    let failed = |error: wasmtime::Error| WorkerError::Compile(format!("{error:#}"));
    let engine = wasmtime::Engine::new(&code_config()).map_err(failed)?;
    let artifact = engine.precompile_component(&component).map_err(failed)?;
    output.write_all(&compatibility_digest(&engine)).map_err(WorkerError::Write)?;
    output.write_all(&artifact).map_err(WorkerError::Write)?;
    output.flush().map_err(WorkerError::Write)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_come_back_as_they_were_sent() {
        let limits = WorkerLimits { memory_bytes_max: 1 << 33, cpu_seconds_max: 77 };
        assert_eq!(WorkerLimits::decode(limits.encode()).unwrap(), limits);
    }

    #[test]
    fn a_person_at_the_keyboard_is_told_what_this_is() {
        for input in [&b""[..], b"help", b"what does this command do?"] {
            let error = compile(&mut &input[..], &mut Vec::new()).unwrap_err();
            assert!(matches!(error, WorkerError::NotForPeople));
        }
    }
}
