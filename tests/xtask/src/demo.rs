//! The worked example.

use crate::plugins;
use crate::run::{Failed, cargo, step};

/// See `cargo xtask demo`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Install system packages for the WebAssembly target where they are needed.
    #[arg(long)]
    install: bool,
    /// Leave the broker's directory behind, and say where it is.
    #[arg(long)]
    keep: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failed> {
    println!("This builds Tidemill and six plugins, then plays the worked example.");
    println!(
        "The first build takes about ten minutes on two cores, later ones seconds; the example itself one minute.\n"
    );
    let components = plugins::run(&plugins::Arguments { install: arguments.install })?;
    step(
        "build the broker and the command line",
        &mut cargo(&["build", "--package", "tidemill-cli", "--locked"]),
    )?;
    step(
        "build the example",
        &mut cargo(&["build", "--package", "tidemill-cluster-tests", "--bin", "demo", "--locked"]),
    )?;
    let mut demo =
        cargo(&["run", "--package", "tidemill-cluster-tests", "--bin", "demo", "--locked", "--quiet", "--"]);
    if arguments.keep {
        demo.arg("--keep");
    }
    step("the worked example", demo.env("TIDEMILL_COMPONENTS", &components))
}
