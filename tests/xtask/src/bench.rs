//! Measurements.

use std::fs;
use std::process::Command;

use tidemill_plugin_build::{Options, build_crate};

use crate::plugins;
use crate::run::{Failed, cargo, root, step, target};

/// See `cargo xtask bench`.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  cargo xtask bench single                                  one broker, all rows; about 40 minutes
  cargo xtask bench cluster                                 three brokers, all rows; about 25 minutes
  cargo xtask bench single --quick --rows produce,latency   a look at some rows
  cargo xtask bench single --help                           what else it takes")]
pub(crate) struct Arguments {
    /// Install system packages for the WebAssembly target where they are needed.
    #[arg(long)]
    install: bool,
    /// What to measure, and how: `single` is one broker, `cluster` are three.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true, value_name = "WHAT")]
    what: Vec<String>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failed> {
    println!(
        "This builds Tidemill for release (about twenty minutes the first time on two cores), then measures it.\n"
    );
    let components = plugins::run(&plugins::Arguments { install: arguments.install })?;
    println!("==> build the benchmark's own filter");
    let mut options = Options::from_env();
    options.install |= arguments.install;
    options.target_dir = Some(target().join("plugins"));
    let build = build_crate(&root().join("tests/bench/filter"), &options, &mut |line| println!("    {line}"))
        .map_err(|error| Failed(error.to_string()))?;
    for component in &build.components {
        let path = components.join(format!("{}.wasm", component.name));
        fs::write(&path, &component.bytes).map_err(|error| Failed(format!("{}: {error}", path.display())))?;
    }
    step(
        "build the broker and the benchmark for release",
        &mut cargo(&["build", "--release", "--workspace", "--bins", "--locked"]),
    )?;
    let mut bench = Command::new(target().join("release").join("bench"));
    bench.current_dir(root()).args(&arguments.what).env("TIDEMILL_COMPONENTS", &components);
    step("the benchmark", &mut bench)
}
