//! Side-by-side measurements: a real broker beside what the machine gives without it, as ratios within one run.
//!
//! `cargo xtask bench single` builds everything for release and runs the binary `bench`. Numbers depend on the machine and on what else it
//! does; ratios of legs that were run in turn depend on it much less. What each row means is in docs/benchmarks.md.
//!
//! - [`run`]: the command; `rows/`: one file per family of rows; `legs`: rounds of legs in turn, medians, spreads;
//! - `peer/`: the bare quinn peer, a process of its own; `disk`: bare writes with fdatasync;
//! - `broker`: the broker under measurement; `usage`: what a process uses; `report`: the table and the JSON document.

mod arguments;
mod broker;
mod disk;
mod legs;
mod peer;
mod report;
mod rows;
mod scale;
mod single;
mod space;
mod stats;
mod usage;
mod work;

use std::process::ExitCode;

use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};

/// What a row or a part of one comes to; any error ends the run.
pub(crate) type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// The program.
#[must_use]
pub fn run() -> ExitCode {
    let arguments = arguments::Arguments::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("bench: the runtime can't be started: {error}");
            return ExitCode::FAILURE;
        }
    };
    let outcome = runtime.block_on(async {
        match arguments.command {
            // Ended in good order, so that the processes which it started end with it.
            arguments::Command::Single(single) => tokio::select! {
                outcome = single::run(&single) => outcome,
                interrupted = interrupted() => interrupted.and(Err("interrupted".into())),
            },
            arguments::Command::Peer(peer) => peer::serve(&peer.tls_dir).await,
        }
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn interrupted() -> Outcome<()> {
    let mut terminated = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminated.recv() => {}
    }
    Ok(())
}
