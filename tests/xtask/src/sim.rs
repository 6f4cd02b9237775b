//! Brokers on one thread, from seeds.

use std::path::PathBuf;

use crate::bugs;
use crate::run::{Failed, cargo, step};

/// See `cargo xtask sim`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// How many seeds.
    #[arg(long, default_value_t = 1_000)]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 1, conflicts_with = "bugs")]
    first: u64,
    /// Only this one, to see it again.
    #[arg(long, conflicts_with_all = ["seeds", "first", "bugs", "alone"])]
    seed: Option<u64>,
    /// Where what happened in that seed is written.
    #[arg(long, requires = "seed")]
    trace: Option<PathBuf>,
    /// Put each known bug back, one at a time, and say which seed is the first to find it.
    #[arg(long)]
    bugs: bool,
    /// Only this one of them, by its number.
    #[arg(long, requires = "bugs")]
    bug: Option<u64>,
    /// One broker alone instead of clusters.
    #[arg(long, conflicts_with = "bugs")]
    alone: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failed> {
    if arguments.bugs {
        return bugs::run(arguments.seeds, arguments.bug);
    }
    let (first, seeds) = (arguments.first.to_string(), arguments.seeds.to_string());
    // An example, because it alone is built with a clock that can be stopped; not a plain release build, in which openraft would not check
    // what it asserts.
    let mut command = cargo(&[
        "run",
        "--profile",
        "sim",
        "--package",
        "tidemill-sim",
        "--example",
        "sim",
        "--locked",
        "--",
    ]);
    match arguments.seed {
        Some(seed) => {
            command.args(["seed", &seed.to_string()]);
            command.args(arguments.trace.iter());
        }
        None => drop(command.args([if arguments.alone { "alone" } else { "cluster" }, &first, &seeds])),
    }
    step("simulate", &mut command)
}
