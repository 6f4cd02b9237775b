//! All tests, by one command.

use std::time::Instant;

use crate::plugins;
use crate::run::{Failed, cargo, step};

/// See `cargo xtask test`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Install system packages for the WebAssembly target where they are needed.
    #[arg(long)]
    pub(crate) install: bool,
    /// Also what takes minutes: a new plugin crate of each kind is written, tested and built.
    #[arg(long)]
    pub(crate) all: bool,
    /// Only tests whose name contains one of these.
    pub(crate) filter: Vec<String>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failed> {
    let started = Instant::now();
    println!(
        "This builds the workspace and its plugins (10 to 15 minutes the first time on two cores) and runs all tests."
    );
    let components = plugins::run(&plugins::Arguments { install: arguments.install })?;
    // One selection of packages for everything: another would build the dependencies again with other features. It
    // also builds the broker's binary, which the tests under tests/cluster start.
    let mut tests = cargo(&["test", "--workspace", "--locked", "--no-fail-fast", "--"]);
    tests.args(&arguments.filter).env("TIDEMILL_COMPONENTS", &components);
    if arguments.all {
        tests.env("TIDEMILL_TEST_COMPONENTS", "1");
    }
    step("tests", &mut tests)?;
    println!("All tests passed, in {:.0} s.", started.elapsed().as_secs_f64());
    Ok(())
}
