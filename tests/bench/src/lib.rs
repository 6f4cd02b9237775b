//! Side-by-side measurements: a real broker beside what the machine gives without it, as ratios within one run.
//!
//! `cargo xtask bench single` and `cargo xtask bench cluster` build everything for release and run the binary `bench`.
//! Numbers depend on the machine and on what else it does; ratios of legs that were run in turn depend on it much less. What each row means is in docs/benchmarks.md.
//!
//! - [`run`]: the command; `suite`: the families of rows of a command, one after the other; `rows/`: one file per family;
//!   `legs`: rounds of legs in turn, medians, spreads;
//! - `peer/`: the bare quinn peer, a process of its own; `disk`: bare writes with fdatasync;
//! - `broker`, `cluster`: what is under measurement; `steady`: a steady load, record by record; `usage`: what a process uses;
//!   `report`: the table and the JSON document.

mod arguments;
mod broker;
mod cluster;
mod disk;
mod legs;
mod peer;
mod report;
mod rows;
mod scale;
mod space;
mod stats;
mod steady;
mod suite;
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
            arguments::Command::Single(options) => measure(&suite::SINGLE, &options).await,
            arguments::Command::Cluster(options) => measure(&suite::CLUSTER, &options).await,
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

/// Ended in good order, so that the processes which it started end with it.
async fn measure(suite: &suite::Suite, options: &arguments::Options) -> Outcome<()> {
    tokio::select! {
        outcome = suite.run(options) => outcome,
        interrupted = interrupted() => interrupted.and(Err("interrupted".into())),
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
