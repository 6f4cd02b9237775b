//! What tests need of the machine that they run on.

use std::process::Command;

use crate::skips::skipped;

/// The calling test can't run here, and is skipped where this machine does not let it. Where only a program is missing, a machine of
/// CI's must get it.
pub fn unable(programs: &[&str], reason: &str) {
    let in_ci = std::env::var_os("CI").is_some_and(|value| !value.is_empty() && value != "false");
    let is_missing = |program: &&&str| Command::new(**program).arg("--version").output().is_err();
    let missing: Vec<&&str> = programs.iter().filter(is_missing).collect();
    assert!(
        missing.is_empty() || !in_ci,
        "this test must run in CI, and these programs are missing: {missing:?}"
    );
    skipped(reason);
}
