//! Puts known bugs back, one at a time, and says which seed of the simulation finds each.
//!
//! ```text
//!   bugs around the code    target/sim/examples/sim bugs
//!   bugs in the code        what git knows --copied--> target/bugs/tree --edited, built--> target/bugs/target/sim/examples/sim edited N
//! ```
//! The copy is kept, and of it only what changes is written: what was built there before is built no second time. It has a target directory
//! of its own: cargo can't tell the crates of two copies of a workspace apart, and would take an edited one for the right one.

use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;

use crate::run::{Failed, cargo, root, step, target};

const SIMULATION: [&str; 8] =
    ["build", "--profile", "sim", "--package", "tidemill-sim", "--example", "sim", "--locked"];

/// Runs the seeds from 1 on with each bug put back, or with the one of that number.
pub(crate) fn run(seeds: u64, only: Option<u64>) -> Result<(), Failed> {
    step("build the simulation", &mut cargo(&SIMULATION))?;
    let simulation = target().join("sim/examples/sim");
    let edits = edits(&simulation)?;
    let is_wanted = |number: u64| only.is_none_or(|only| only == number);
    if only.is_none_or(|only| !edits.contains(&only)) {
        let mut bugs = Command::new(&simulation);
        step(
            "bugs around the code",
            bugs.args(["bugs", &seeds.to_string(), &only.unwrap_or(0).to_string()]),
        )?;
    }
    for number in edits.into_iter().filter(|number| is_wanted(*number)) {
        let tree = target().join("bugs/tree");
        copy_sources(&tree).map_err(|error| Failed(format!("{}: {error}", tree.display())))?;
        let what = format!("bug {number} in the code");
        step(&what, Command::new(&simulation).args(["edit", &number.to_string()]).arg(&tree))?;
        let mut build = cargo(&SIMULATION);
        let own_target = target().join("bugs/target");
        step("build it", build.current_dir(&tree).env("CARGO_TARGET_DIR", &own_target))?;
        step(
            &what,
            Command::new(own_target.join("sim/examples/sim")).args([
                "edited",
                &number.to_string(),
                &seeds.to_string(),
            ]),
        )?;
    }
    Ok(())
}

/// The numbers of the bugs that are changes of the sources.
fn edits(simulation: &Path) -> Result<Vec<u64>, Failed> {
    let listed = output(Command::new(simulation).arg("edits"))?;
    let numbers = listed.lines().filter_map(|line| line.split(' ').next()?.parse().ok());
    Ok(numbers.collect())
}

fn output(command: &mut Command) -> Result<String, Failed> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|error| Failed(format!("{program} can't be started: {error}")))?;
    if !output.status.success() {
        return Err(Failed(format!("{program} ended with {}", output.status)));
    }
    String::from_utf8(output.stdout).map_err(|error| Failed(format!("{program}: {error}")))
}

/// Brings `tree` to what the files of the workspace are that git knows.
fn copy_sources(tree: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let listed = output(Command::new("git").current_dir(root()).args(["ls-files", "-z"]))
        .map_err(|Failed(reason)| reason)?;
    for file in listed.split_terminator('\0') {
        let (from, to) = (root().join(file), tree.join(file));
        let text = match fs::read(&from) {
            Ok(text) => text,
            // Deleted, and not committed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error.into()),
        };
        if fs::read(&to).is_ok_and(|there| there == text) {
            continue;
        }
        if let Some(dir) = to.parent() {
            fs::create_dir_all(dir)?;
        }
        fs::write(&to, text)?;
    }
    Ok(())
}
