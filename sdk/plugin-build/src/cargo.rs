//! Building crates: one cargo call for all of them, into a target directory of its own.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, fs, io};

use crate::component::{Component, ComponentError, component_of, inspect};
use crate::toolchain::{Route, TARGET, Toolchain, ToolchainError};

/// The plugins in this repository's `plugins/`.
pub const SHIPPED_PLUGINS: [&str; 6] =
    ["key-hash", "field-hash", "json-filter", "redact", "count-by-field", "route-by-field"];

/// What makes components small and quick. Said here, so that a crate needs no profile of its own.
const PROFILE: [&str; 7] = [
    "profile.plugin.inherits=\"release\"",
    "profile.plugin.opt-level=3",
    "profile.plugin.lto=true",
    "profile.plugin.codegen-units=1",
    "profile.plugin.debug=false",
    "profile.plugin.panic=\"abort\"",
    "profile.plugin.strip=true",
];

/// Variables that mean the host's build, not the plugins', where one runs within the other.
const HOST_VARIABLES: [&str; 6] = [
    "RUSTFLAGS",
    "CARGO_ENCODED_RUSTFLAGS",
    "CARGO_BUILD_RUSTFLAGS",
    "CARGO_BUILD_TARGET",
    "CARGO_TARGET_DIR",
    "CARGO_BUILD_TARGET_DIR",
];

/// How to build.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// May install system packages, as root.
    pub install: bool,
    /// Where to build; `target/plugins` beside the crate or workspace where none.
    pub target_dir: Option<PathBuf>,
    /// Uses only crates that are there.
    pub offline: bool,
    /// Which toolchains may be taken.
    pub route: Route,
}

/// What was built.
#[derive(Clone, Debug)]
pub struct Build {
    /// The toolchain, for people.
    pub toolchain: String,
    /// A component for each plugin crate, by name.
    pub components: Vec<Component>,
    /// How long cargo and the encoding took.
    pub elapsed: Duration,
}

/// Why there are no components.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// No toolchain for WebAssembly.
    #[error(transparent)]
    Toolchain(#[from] ToolchainError),
    /// There is no crate.
    #[error("{} is not a crate: there is no Cargo.toml", .dir.display())]
    NoCrate {
        /// Where one was looked for.
        dir: PathBuf,
    },
    /// Cargo does not start.
    #[error("cargo can't be run: {0}")]
    Run(#[source] io::Error),
    /// The crate does not compile; cargo has said why.
    #[error("the crate does not build, see above")]
    Failed,
    /// The crate makes no module.
    #[error(
        "the crate makes no WebAssembly module: Cargo.toml needs [lib] crate-type = [\"cdylib\", \"rlib\"]"
    )]
    NoModule,
    /// The module is no plugin.
    #[error("{plugin}: {error}")]
    Component {
        /// Which plugin.
        plugin: String,
        /// Why not.
        #[source]
        error: ComponentError,
    },
    /// A file can't be read or written.
    #[error("{}: {error}", .path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// Why not.
        #[source]
        error: io::Error,
    },
}

impl Options {
    /// As the environment asks: where `CI` is set (and not to `false`), packages may be installed;
    /// `TIDEMILL_PLUGIN_TOOLCHAIN=target|sources` takes one route only.
    pub fn from_env() -> Self {
        let in_ci = env::var_os("CI").is_some_and(|value| !value.is_empty() && value != "false");
        let route = match env::var("TIDEMILL_PLUGIN_TOOLCHAIN").as_deref() {
            Ok("target") => Route::Target,
            Ok("sources") => Route::Sources,
            _ => Route::Auto,
        };
        Self { install: in_ci, route, ..Self::default() }
    }
}

/// Builds the plugin crate in `dir`. Cargo's own messages go to standard error; `say` is told the rest.
pub fn build_crate(dir: &Path, options: &Options, say: &mut dyn FnMut(&str)) -> Result<Build, BuildError> {
    build(dir, &[], options, say)
}

/// Builds the plugins that ship, in this repository's root `root`, with one cargo call.
pub fn build_shipped_plugins(
    root: &Path,
    options: &Options,
    say: &mut dyn FnMut(&str),
) -> Result<Build, BuildError> {
    let packages = SHIPPED_PLUGINS.map(|name| format!("tidemill-{name}"));
    build(root, &packages, options, say)
}

fn build(
    dir: &Path,
    packages: &[String],
    options: &Options,
    say: &mut dyn FnMut(&str),
) -> Result<Build, BuildError> {
    if !dir.join("Cargo.toml").is_file() {
        return Err(BuildError::NoCrate { dir: dir.to_owned() });
    }
    let target_dir = options.target_dir.clone().unwrap_or_else(|| dir.join("target/plugins"));
    let target_dir =
        std::path::absolute(&target_dir).map_err(|error| BuildError::File { path: target_dir, error })?;
    let toolchain = Toolchain::find(dir, &target_dir, options.install, options.route, say)?;
    let begun = Instant::now();
    let mut command = cargo(&toolchain, &target_dir, options.offline);
    command.current_dir(dir);
    packages.iter().for_each(|package| _ = command.args(["--package", package]));
    let modules = run(&mut command)?;
    if modules.is_empty() {
        return Err(BuildError::NoModule);
    }
    let mut components = Vec::new();
    for (name, module) in modules {
        components.push(wrap(&name, &module, &target_dir.join("components"))?);
    }
    components.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(Build { toolchain: toolchain.to_string(), components, elapsed: begun.elapsed() })
}

/// The cargo call, but for its packages.
fn cargo(toolchain: &Toolchain, target_dir: &Path, offline: bool) -> Command {
    let mut command = Command::new("cargo");
    HOST_VARIABLES.iter().for_each(|name| _ = command.env_remove(name));
    command.args(["build", "--lib", "--profile", "plugin", "--target", TARGET]);
    command.args(["--message-format", "json-render-diagnostics"]).arg("--target-dir").arg(target_dir);
    PROFILE.iter().for_each(|setting| _ = command.args(["--config", setting]));
    if offline {
        command.arg("--offline");
    }
    let (rustc, linker) = match toolchain {
        Toolchain::Target { rustc, linker, .. } => (rustc, linker.as_ref()),
        Toolchain::Sources { rustc, linker, .. } => {
            // Building the standard library is a nightly feature of cargo, and its sources use the compiler's own.
            command.env("RUSTC_BOOTSTRAP", "1").arg("-Zbuild-std=std,panic_abort");
            (rustc, Some(linker))
        }
    };
    if let Some(rustc) = rustc {
        command.env("RUSTC", rustc);
    }
    if let Some(linker) = linker {
        command.env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER", linker);
    }
    command
}

/// Runs cargo, and answers the modules that it made, by plugin name.
fn run(command: &mut Command) -> Result<Vec<(String, PathBuf)>, BuildError> {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().map_err(BuildError::Run)?;
    let mut modules = Vec::new();
    for line in child.stdout.take().into_iter().flat_map(|stdout| BufReader::new(stdout).lines()) {
        modules.extend(module_of(&line.map_err(BuildError::Run)?));
    }
    let status = child.wait().map_err(BuildError::Run)?;
    if status.success() { Ok(modules) } else { Err(BuildError::Failed) }
}

/// The module that a message of cargo tells of.
fn module_of(message: &str) -> Option<(String, PathBuf)> {
    let message: serde_json::Value = serde_json::from_str(message).ok()?;
    if message["reason"] != "compiler-artifact" {
        return None;
    }
    let files = message["filenames"].as_array()?;
    let module = files.iter().filter_map(|file| file.as_str()).find(|file| file.ends_with(".wasm"))?;
    Some((plugin_name(message["target"]["name"].as_str()?), PathBuf::from(module)))
}

/// A plugin is called as its crate, with dashes and without `tidemill-`.
fn plugin_name(library: &str) -> String {
    let name = library.replace('_', "-");
    name.strip_prefix("tidemill-").unwrap_or(&name).to_owned()
}

fn wrap(name: &str, module: &Path, components_dir: &Path) -> Result<Component, BuildError> {
    let file = |path: &Path| {
        let path = path.to_owned();
        move |error| BuildError::File { path, error }
    };
    let refused = |error| BuildError::Component { plugin: name.to_owned(), error };
    let module_bytes = fs::read(module).map_err(file(module))?;
    let bytes = component_of(&module_bytes).map_err(refused)?;
    let shape = inspect(&bytes).map_err(refused)?;
    fs::create_dir_all(components_dir).map_err(file(components_dir))?;
    let path = components_dir.join(format!("{name}.wasm"));
    // What is there already may be in use by another build: a new file takes its place whole.
    let fresh = components_dir.join(format!("{name}.wasm.{}", std::process::id()));
    fs::write(&fresh, &bytes).map_err(file(&fresh))?;
    fs::rename(&fresh, &path).map_err(file(&path))?;
    Ok(Component { name: name.to_owned(), world: shape.world, path, bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargo_tells_of_modules() {
        let message = r#"{"reason":"compiler-artifact","target":{"name":"tidemill_key_hash","kind":["cdylib","rlib"]},"filenames":["/t/libkey.rlib","/t/key.wasm"]}"#;
        assert_eq!(module_of(message), Some(("key-hash".to_owned(), PathBuf::from("/t/key.wasm"))));
        for other in [
            "",
            "not json",
            r#"{"reason":"build-finished","success":true}"#,
            r#"{"reason":"compiler-artifact","filenames":["a.rlib"]}"#,
        ] {
            assert_eq!(module_of(other), None, "{other}");
        }
    }

    #[test]
    fn building_the_standard_library_takes_its_compiler_and_linker() {
        let toolchain =
            Toolchain::Sources { rustc: Some("/r".into()), version: "rustc".into(), linker: "/l".into() };
        let command = cargo(&toolchain, Path::new("/t"), true);
        let arguments: Vec<_> = command.get_args().filter_map(|argument| argument.to_str()).collect();
        assert!(arguments.contains(&"-Zbuild-std=std,panic_abort") && arguments.contains(&"--offline"));
        let set: Vec<_> =
            command.get_envs().filter_map(|(name, value)| Some((name.to_str()?, value?.to_str()?))).collect();
        assert!(set.contains(&("RUSTC", "/r")) && set.contains(&("RUSTC_BOOTSTRAP", "1")), "{set:?}");
        assert!(set.contains(&("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER", "/l")));
    }

    #[test]
    fn a_directory_without_a_crate_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let error = build_crate(dir.path(), &Options::default(), &mut |_| {}).unwrap_err();
        assert!(matches!(error, BuildError::NoCrate { .. }), "{error}");
    }
}
