//! All tests, by one command.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::Instant;

use crate::plugins;
use crate::run::{Failed, cargo, step, target};

/// See `cargo xtask test`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Install system packages for the WebAssembly target where they are needed.
    #[arg(long)]
    pub(crate) install: bool,
    /// Also what takes minutes: a new plugin crate of each kind is written, tested and built.
    #[arg(long)]
    pub(crate) all: bool,
    /// Only tests whose name contains one of these.
    pub(crate) filter: Vec<String>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failed> {
    let started = Instant::now();
    let which =
        if arguments.all { "all tests" } else { "the tests; with --all also those that take minutes" };
    println!(
        "This builds the workspace and its plugins (20 to 40 minutes the first time on two cores) and runs {which}."
    );
    let components = plugins::run(&plugins::Arguments { install: arguments.install })?;
    // One selection of packages for everything: another would build the dependencies again with other features. It
    // also builds the broker's binary, which the tests under tests/cluster start.
    let mut tests = cargo(&["test", "--workspace", "--locked", "--no-fail-fast", "--"]);
    tests.args(&arguments.filter).env("TIDEMILL_COMPONENTS", &components);
    if arguments.all {
        tests.env("TIDEMILL_TEST_COMPONENTS", "1");
    }
    let skips = target().join("skipped-tests");
    fs::create_dir_all(target()).and_then(|()| fs::write(&skips, "")).map_err(|error| {
        Failed(format!("the list of skipped tests can't be written to {}: {error}", skips.display()))
    })?;
    tests.env("TIDEMILL_TEST_SKIPS", &skips);
    step("tests", &mut tests)?;
    let skipped = read_skips(&fs::read_to_string(&skips).unwrap_or_default());
    println!("{}", last_words(started.elapsed().as_secs_f64(), &skipped));
    Ok(())
}

/// Tests that said that they did not run, by reason.
type Skips = BTreeMap<String, BTreeSet<String>>;

/// Lines of a test's name, a tab, and why it was skipped.
fn read_skips(list: &str) -> Skips {
    let mut skips = Skips::new();
    for (name, reason) in list.lines().filter_map(|line| line.split_once('\t')) {
        skips.entry(reason.to_owned()).or_default().insert(name.to_owned());
    }
    skips
}

/// What was not run stands in the last line: nobody reads the others where all is well.
fn last_words(seconds: f64, skips: &Skips) -> String {
    if skips.is_empty() {
        return format!("All tests passed, in {seconds:.0} s.");
    }
    let mut words = String::new();
    for (reason, names) in skips {
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        words.push_str(&format!("SKIPPED: {reason}:\n  {}\n", names.join("\n  ")));
    }
    let count: usize = skips.values().map(BTreeSet::len).sum();
    format!("{words}All tests that ran passed, in {seconds:.0} s; {count} SKIPPED, as said above.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_skipped_is_said_last_with_its_reason() {
        assert_eq!(last_words(12.3, &Skips::new()), "All tests passed, in 12 s.");
        let skips = read_skips(
            "disk::full\tno mount\na\tasked for by --all\nb\tasked for by --all\na\tasked for by --all\n",
        );
        assert_eq!(
            last_words(12.3, &skips),
            "SKIPPED: asked for by --all:\n  a\n  b\nSKIPPED: no mount:\n  disk::full\n\
             All tests that ran passed, in 12 s; 3 SKIPPED, as said above."
        );
    }
}
