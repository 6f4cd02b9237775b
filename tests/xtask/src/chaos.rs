//! Brokers under fire and under load, and the checks.

use std::process::Command;

use crate::plugins;
use crate::run::{Failed, cargo, root, step, target};

/// See `cargo xtask chaos`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// How long.
    #[arg(long, default_value_t = 15.0)]
    minutes: f64,
    /// Of the random choices; printed at the start, so that a run can be repeated.
    #[arg(long)]
    seed: Option<u64>,
    /// Brokers; one is a broker alone.
    #[arg(long, default_value_t = 3)]
    brokers: u32,
    /// Only these faults, by their names with commas between; a wrong name lists them.
    #[arg(long, value_name = "KIND", value_delimiter = ',')]
    faults: Vec<String>,
    /// Faults that can't be done on this machine are a failure, instead of SKIPPED, and so are brokers that join and get no disk for them;
    /// and what was never done by the time each fault has had its turn.
    #[arg(long)]
    require_all: bool,
    /// Install system packages for the WebAssembly target where they are needed.
    #[arg(long)]
    install: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failed> {
    let components = plugins::run(&plugins::Arguments { install: arguments.install })?;
    step("build the broker", &mut cargo(&["build", "--workspace", "--bins", "--locked"]))?;
    let minutes = arguments.minutes.to_string();
    let mut chaos = Command::new(target().join("debug").join("chaos"));
    chaos.current_dir(root()).args(["--minutes", &minutes]).env("TIDEMILL_COMPONENTS", &components);
    chaos.args(["--brokers", &arguments.brokers.to_string()]);
    if !arguments.faults.is_empty() {
        chaos.args(["--faults", &arguments.faults.join(",")]);
    }
    if arguments.require_all {
        chaos.arg("--require-all");
    }
    if let Some(seed) = arguments.seed {
        chaos.args(["--seed", &seed.to_string()]);
    }
    step("chaos", &mut chaos)
}
