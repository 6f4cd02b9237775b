//! The project's own commands: what README tells a newcomer, and what CI runs.

mod bench;
mod bugs;
mod chaos;
mod check;
mod demo;
mod plugins;
mod run;
mod sim;
mod test;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use run::Failed;

/// Tidemill's own commands.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build everything and play the worked example: three brokers, plugins, producers, readers, a crash.
    Demo(demo::Arguments),
    /// Run the tests; with --all also those that take minutes.
    Test(test::Arguments),
    /// Run what CI runs: format, lints, dependencies, docs, tests. Changes no file.
    Ci,
    /// Format, lints, dependencies and docs; no tests. Changes no file.
    Check,
    /// Format the code and apply the lints' suggestions.
    Fix,
    /// Build the plugins in plugins/ to components in target/plugins/components.
    Plugins(plugins::Arguments),
    /// Strike brokers with faults under load for a while, let some join and leave, and check that nothing was lost, doubled or
    /// reordered.
    Chaos(chaos::Arguments),
    /// Run clusters on one thread with simulated time, disks and network, from seeds.
    Sim(sim::Arguments),
    /// Measure a release build beside what the machine gives without a broker.
    Bench(bench::Arguments),
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Test(arguments) => test::run(&arguments),
        Command::Ci => check::run()
            .and_then(|()| test::run(&test::Arguments { install: true, all: true, filter: Vec::new() })),
        Command::Check => check::run(),
        Command::Fix => check::fix(),
        Command::Plugins(arguments) => plugins::run(&arguments).map(|_| ()),
        Command::Chaos(arguments) => chaos::run(&arguments),
        Command::Sim(arguments) => sim::run(&arguments),
        Command::Bench(arguments) => bench::run(&arguments),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failed(reason)) => {
            eprintln!("xtask: {reason}");
            ExitCode::FAILURE
        }
    }
}
