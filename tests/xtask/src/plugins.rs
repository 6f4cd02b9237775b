//! The plugins that ship, as components.

use std::fs;
use std::path::PathBuf;

use tidemill_plugin_build::{Options, build_shipped_plugins};

use crate::run::{Failed, root, target};

/// See `cargo xtask plugins`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Install system packages for the WebAssembly target where they are needed.
    #[arg(long)]
    pub(crate) install: bool,
}

/// Builds the plugins and answers the directory of their components, `NAME.wasm` each.
pub(crate) fn run(arguments: &Arguments) -> Result<PathBuf, Failed> {
    println!("==> build the plugins in plugins/ to WebAssembly components");
    let mut options = Options::from_env();
    options.install |= arguments.install;
    options.target_dir = Some(target().join("plugins"));
    let build = build_shipped_plugins(&root(), &options, &mut |line| println!("    {line}"))
        .map_err(|error| Failed(error.to_string()))?;
    let components = target().join("plugins").join("components");
    fs::create_dir_all(&components).map_err(|error| Failed(format!("{}: {error}", components.display())))?;
    for component in &build.components {
        let path = components.join(format!("{}.wasm", component.name));
        fs::write(&path, &component.bytes).map_err(|error| Failed(format!("{}: {error}", path.display())))?;
    }
    println!("    {} components in {:.0} s", build.components.len(), build.elapsed.as_secs_f64());
    Ok(components)
}
