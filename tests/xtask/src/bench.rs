//! Measurements.

use clap::Subcommand;

use crate::plugins;
use crate::run::{Failed, cargo, step};

/// See `cargo xtask bench`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    which: Which,
}

#[derive(Subcommand)]
enum Which {
    /// One broker; writes target/bench/single.json.
    Single {
        /// Legs of this many seconds; 20 or more for figures that are reported.
        #[arg(long, default_value_t = 20.0)]
        seconds: f64,
        /// Medians of this many rounds.
        #[arg(long, default_value_t = 5)]
        rounds: u32,
        /// Only rows whose name contains one of these.
        #[arg(long)]
        row: Vec<String>,
    },
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failed> {
    let Which::Single { seconds, rounds, row } = &arguments.which;
    let components = plugins::run(&plugins::Arguments { install: false })?;
    step(
        "build for release (ten minutes the first time)",
        &mut cargo(&[
            "build",
            "--release",
            "--locked",
            "--package",
            "tidemill-cli",
            "--package",
            "tidemill-bench",
        ]),
    )?;
    let mut bench = cargo(&[
        "run",
        "--release",
        "--locked",
        "--quiet",
        "--package",
        "tidemill-bench",
        "--bin",
        "bench",
        "--",
    ]);
    bench.args(["single", "--seconds", &seconds.to_string(), "--rounds", &rounds.to_string()]);
    for name in row {
        bench.args(["--row", name]);
    }
    step("bench single", bench.env("TIDEMILL_COMPONENTS", &components))
}
