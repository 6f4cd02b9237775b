//! Format, lints, dependencies, docs.

use crate::run::{Failed, cargo, in_ci, runs, step};

/// The release of cargo-deny that CI installs where there is none.
const CARGO_DENY_VERSION: &str = "0.20.2";

/// Changes nothing.
pub(crate) fn run() -> Result<(), Failed> {
    step("format", &mut cargo(&["fmt", "--all", "--check"]))?;
    dependencies()?;
    step(
        "lints",
        &mut cargo(&[
            "clippy",
            "--workspace",
            "--all-targets",
            "--locked",
            "--quiet",
            "--",
            "--deny",
            "warnings",
        ]),
    )?;
    // A workspace of its own. Fuzzing needs nightly Rust; that the targets still fit what they fuzz does not.
    step(
        "fuzz targets",
        &mut cargo(&["check", "--manifest-path", "tests/fuzz/Cargo.toml", "--locked", "--quiet"]),
    )?;
    let mut doc = cargo(&["doc", "--workspace", "--no-deps", "--locked", "--quiet"]);
    step("docs", doc.env("RUSTDOCFLAGS", "--deny warnings"))
}

/// Formats, and applies what clippy can apply.
pub(crate) fn fix() -> Result<(), Failed> {
    step(
        "lints",
        &mut cargo(&["clippy", "--workspace", "--all-targets", "--fix", "--allow-dirty", "--allow-staged"]),
    )?;
    step("format", &mut cargo(&["fmt", "--all"]))
}

fn dependencies() -> Result<(), Failed> {
    if !runs("cargo", &["deny", "--version"]) {
        if !in_ci() {
            return Err(Failed(format!(
                "cargo-deny is not installed; run: cargo install cargo-deny --locked --version {CARGO_DENY_VERSION}"
            )));
        }
        let mut install =
            cargo(&["install", "cargo-deny", "--locked", "--quiet", "--version", CARGO_DENY_VERSION]);
        step("install cargo-deny (about three minutes)", &mut install)?;
    }
    step(
        "dependencies: bans, licences, sources",
        &mut cargo(&["deny", "--log-level", "error", "check", "bans", "licenses", "sources"]),
    )?;
    // The advisory database is fetched from elsewhere; a closed network must not fail the build, and must not be silent.
    if cargo(&["deny", "--log-level", "off", "fetch", "db"]).status().is_ok_and(|status| status.success()) {
        return step(
            "dependencies: advisories",
            &mut cargo(&["deny", "--log-level", "error", "check", "--disable-fetch", "advisories"]),
        );
    }
    println!("==> dependencies: advisories SKIPPED: the advisory database can't be reached from here");
    Ok(())
}
