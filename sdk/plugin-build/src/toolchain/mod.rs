//! A Rust toolchain that builds for WebAssembly, found or made.

mod decide;
mod probe;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};
use std::{env, fs};

pub use decide::{Route, Toolchain};
use decide::{Step, Tried, next_step};

use crate::command::run_quietly;

/// What plugins are built for.
pub const TARGET: &str = "wasm32-unknown-unknown";

/// How long rustup may go without progress. Where its servers are out of reach it would try for minutes.
const RUSTUP_IDLE_MAX: Duration = Duration::from_secs(20);
/// How long the package manager may take.
const PACKAGES_MAX: Duration = Duration::from_secs(900);
/// How long it is remembered that rustup's servers were out of reach.
const RUSTUP_AGAIN_AFTER: Duration = Duration::from_secs(3_600);

/// Why there is no toolchain.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ToolchainError {
    /// No Rust at all.
    #[error("cargo and rustc are not found: install Rust from https://rustup.rs")]
    NoRust,
    /// The one thing to do.
    #[error("no Rust toolchain here builds for {TARGET}{}. Run: {command}", tried_words(.tried))]
    NoTarget {
        /// What makes it work.
        command: String,
        /// What was tried and what came of it.
        tried: Vec<String>,
    },
    /// There are compilers, and none is new enough.
    #[error(
        "the Rust compiler here is too old to build plugins: {found}, and the SDK needs {needed} or newer{}. Run: {command}",
        tried_words(.tried)
    )]
    TooOld {
        /// Which, and where.
        found: String,
        /// The least version.
        needed: String,
        /// What makes it work.
        command: String,
        /// What was tried and what came of it.
        tried: Vec<String>,
    },
}

fn tried_words(tried: &[String]) -> String {
    if tried.is_empty() { String::new() } else { format!(" ({})", tried.join("; ")) }
}

impl Toolchain {
    /// Finds a toolchain, or makes one. In this order:
    ///
    /// 1. one that has the target;
    /// 2. `rustup target add`;
    /// 3. one that has the standard library's sources, to build it from: rustup's `rust-src` or Debian's `rust-web-src`;
    /// 4. Debian's packages, where `install` allows it and this is root.
    ///
    /// `dir` is where the crate lies (a toolchain may be set there), `memory` a directory that outlives the call, `say` is told what
    /// is done and which one was taken.
    pub fn find(
        dir: &Path,
        memory: &Path,
        install: bool,
        route: Route,
        say: &mut dyn FnMut(&str),
    ) -> Result<Self, ToolchainError> {
        let unreachable_mark = memory.join("rustup-out-of-reach");
        let mut tried = Tried::default();
        if route == Route::Auto && is_recent(&unreachable_mark) {
            tried.rustup = Some("rustup could not get it less than an hour ago".to_owned());
        }
        loop {
            // Each step is tried once, so this ends after a few rounds.
            match next_step(&probe::probe(dir), &tried, install, route) {
                Step::Use(toolchain) => {
                    say(&format!("building plugins with {toolchain}"));
                    return Ok(toolchain);
                }
                Step::AddTarget => {
                    say(&format!("getting the WebAssembly target: rustup target add {TARGET} (some 25 MB)"));
                    tried.rustup = Some(match add_target(dir) {
                        Ok(()) => "rustup got it, but rustc does not see it".to_owned(),
                        Err(why) => {
                            say(&format!("rustup could not get it: {why}"));
                            remember(memory, &unreachable_mark);
                            format!("rustup target add: {why}")
                        }
                    });
                }
                Step::InstallPackages(packages) => {
                    say(&format!("installing packages: {}", packages.join(" ")));
                    tried.packages = Some(match install_packages(&packages) {
                        Ok(()) => "the packages are installed, but do not do".to_owned(),
                        Err(why) => format!("apt-get: {why}"),
                    });
                }
                Step::Fail(error) => return Err(error),
            }
        }
    }
}

fn add_target(dir: &Path) -> Result<(), String> {
    let downloads = rustup_home().map(|home| home.join("downloads"));
    run_quietly(
        Command::new("rustup").args(["target", "add", TARGET]).current_dir(dir),
        RUSTUP_IDLE_MAX,
        || downloads.as_deref().map_or(0, bytes_in),
    )
}

fn install_packages(packages: &[&str]) -> Result<(), String> {
    let apt = || {
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive");
        command
    };
    run_quietly(apt().arg("update"), PACKAGES_MAX, || 0)?;
    run_quietly(apt().args(["install", "-y", "--no-install-recommends"]).args(packages), PACKAGES_MAX, || 0)
}

fn rustup_home() -> Option<PathBuf> {
    env::var_os("RUSTUP_HOME").map(PathBuf::from).or_else(|| Some(env::home_dir()?.join(".rustup")))
}

/// Grows while something is downloaded.
fn bytes_in(dir: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    entries.filter_map(|entry| entry.ok()?.metadata().ok()).map(|metadata| metadata.len()).sum()
}

fn is_recent(mark: &Path) -> bool {
    let modified = fs::metadata(mark).and_then(|metadata| metadata.modified());
    modified.is_ok_and(|at| SystemTime::now().duration_since(at).is_ok_and(|age| age < RUSTUP_AGAIN_AFTER))
}

fn remember(memory: &Path, mark: &Path) {
    // Only saves time the next time: a directory that can't be written makes its own error soon enough.
    let _only_a_hint =
        fs::create_dir_all(memory).and_then(|()| fs::write(mark, "Remove this file to ask rustup again.\n"));
}
