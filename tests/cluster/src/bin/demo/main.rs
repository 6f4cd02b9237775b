//! The worked example: three brokers, plugins, producers, readers, a crash; explained and measured while it runs.

mod chapters;
mod counts;
mod crash;
mod facts;
mod narrator;
mod readers;

use std::process::ExitCode;

use clap::Parser;

use narrator::Narrator;

/// Plays the worked example on three brokers of its own.
#[derive(Parser)]
struct Arguments {
    /// Leave the brokers' directories behind, and say where they are.
    #[arg(long)]
    keep: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let mut narrator = Narrator::default();
    let played = chapters::play(&mut narrator, arguments.keep).await;
    match played {
        Ok(()) if narrator.all_hold() => ExitCode::SUCCESS,
        Ok(()) => {
            eprintln!("demo: {} of {} checks failed", narrator.failed(), narrator.checks());
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("demo: {error}");
            ExitCode::FAILURE
        }
    }
}
