//! The `tidemill` binary: the broker and every client command, one file per command.

#![allow(clippy::disallowed_methods, reason = "the command line is where wall time and files come from")]

// First: its `println!` is the one that all others use.
#[macro_use]
mod output;

mod arguments;
mod commands;
mod connect;
mod contexts;
#[cfg(test)]
mod documentation;
mod error;
mod logging;
mod text;
mod waiting;

use std::process::ExitCode;

use arguments::{Arguments, Command};
use error::CliError;

/// The system's allocator took 6 to 8 percent of a loaded broker's time: docs/decisions/0013.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let arguments = Arguments::of(std::env::args_os()).unwrap_or_else(|error| error.exit());
    let is_server = matches!(arguments.command, Command::Server(_) | Command::Dev(_));
    logging::start(is_server, arguments.connection.json);
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", error.with_advice());
            ExitCode::from(error.exit_code())
        }
    }
}

fn run(arguments: Arguments) -> Result<(), CliError> {
    // Commands that need no runtime, and the worker, which must not have one.
    match &arguments.command {
        Command::CompileWorker => {
            let code = tidemill_wasm::compile_worker_main();
            std::process::exit(if code == ExitCode::SUCCESS { 0 } else { 1 });
        }
        Command::Completions { shell } => {
            return commands::completions::run(*shell, arguments.connection.json);
        }
        Command::Inspect(inspect) => return commands::inspect::run(inspect, arguments.connection.json),
        _ => {}
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| CliError::other(format!("the runtime can't be started: {error}")))?;
    runtime.block_on(commands::run(arguments))
}
