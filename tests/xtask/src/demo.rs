//! The worked example.

use std::process::Command;

use crate::plugins;
use crate::run::{Failed, cargo, root, step, target};

/// See `cargo xtask demo`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Install system packages for the WebAssembly target where they are needed.
    #[arg(long)]
    install: bool,
    /// Leave the brokers' directories behind, and say where they are.
    #[arg(long)]
    keep: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failed> {
    println!("This builds Tidemill and six plugins, then plays the worked example.");
    println!("The first build takes 10 to 30 minutes on two cores, later ones seconds.\n");
    let components = plugins::run(&plugins::Arguments { install: arguments.install })?;
    step(
        "build the broker, the command line and the example",
        &mut cargo(&["build", "--workspace", "--bins", "--locked"]),
    )?;
    let mut demo = Command::new(target().join("debug").join("demo"));
    demo.current_dir(root());
    if arguments.keep {
        demo.arg("--keep");
    }
    step("the worked example", demo.env("TIDEMILL_COMPONENTS", &components))
}
