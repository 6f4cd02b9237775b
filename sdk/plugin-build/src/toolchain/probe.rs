//! What is on this machine. Looks and changes nothing.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::TARGET;
use super::decide::{Compiler, Probes};
use crate::command::output_of;

/// Where distributions put their compiler.
const SYSTEM_RUSTC: &str = "/usr/bin/rustc";

/// Looks; `dir` is where the crate lies.
pub(super) fn probe(dir: &Path) -> Probes {
    let active = compiler(Path::new("rustc"), dir);
    let system = compiler(Path::new(SYSTEM_RUSTC), dir).filter(|system| {
        // Where rustup has no part in it, the distribution's compiler is the one that cargo uses.
        active.as_ref().is_none_or(|active| active.sysroot != system.sysroot)
    });
    Probes {
        cargo: output_of(Command::new("cargo").arg("--version").current_dir(dir)).is_some(),
        rustup: output_of(Command::new("rustup").arg("--version").current_dir(dir)).is_some(),
        active: active.map(|found| found.compiler),
        system: system.map(|found| found.compiler),
        wasm_linker: in_path("wasm-ld").or_else(|| in_path("rust-lld")),
        apt: in_path("apt-get").is_some(),
        root: output_of(Command::new("id").arg("-u")).is_some_and(|id| id == "0"),
    }
}

struct Found {
    compiler: Compiler,
    sysroot: PathBuf,
}

fn compiler(path: &Path, dir: &Path) -> Option<Found> {
    let ask = |arguments: &[&str]| output_of(Command::new(path).args(arguments).current_dir(dir));
    let verbose = ask(&["-vV"])?;
    let host = verbose.lines().find_map(|line| line.strip_prefix("host: "))?;
    let sysroot = PathBuf::from(ask(&["--print", "sysroot"])?);
    let rustlib = sysroot.join("lib/rustlib");
    let linker = rustlib.join(host).join("bin/rust-lld");
    let compiler = Compiler {
        path: path.to_owned(),
        version: verbose.lines().next()?.to_owned(),
        has_target: rustlib.join(TARGET).join("lib").is_dir(),
        has_sources: rustlib.join("src/rust/library/std/Cargo.toml").is_file(),
        linker: linker.is_file().then_some(linker),
    };
    Some(Found { compiler, sysroot })
}

fn in_path(program: &str) -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?).map(|dir| dir.join(program)).find(|path| path.is_file())
}
