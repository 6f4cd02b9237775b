//! The families of rows of one command, one after the other.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tidemill_cluster_tests::tidemill_binary;

use crate::arguments::Options;
use crate::report::Row;
use crate::rows::{self, Bench, Family, Measured, choose};
use crate::scale::Scale;
use crate::{Outcome, report, space};

/// Where a run is known to take longer than it should, by longer legs or more rounds, it may take so many times as long as was said.
const OVERRUN: f64 = 1.25;

/// What one command measures.
pub(crate) struct Suite {
    /// Of its document.
    name: &'static str,
    families: &'static [Family],
    scale: fn(&Options) -> Scale,
    /// What is measured, for people.
    brokers: &'static str,
    /// A family that takes so many times as long as it should, and this much more, is stuck.
    patience_factor: f64,
    patience: Duration,
    /// What all families together may take.
    most: fn(&Scale) -> Duration,
}

pub(crate) const SINGLE: Suite = Suite {
    name: "single",
    families: rows::SINGLE,
    scale: Scale::single,
    brokers: "in its own process",
    patience_factor: 4.0,
    patience: Duration::from_secs(600),
    most: |_| Duration::MAX,
};

pub(crate) const CLUSTER: Suite = Suite {
    name: "cluster",
    families: rows::CLUSTER,
    scale: Scale::cluster,
    brokers: "in three processes",
    patience_factor: 1.5,
    patience: Duration::from_secs(60),
    most: |scale| Duration::from_secs(if scale.quick { 360 } else { 1_800 }),
};

impl Suite {
    pub(crate) async fn run(&self, arguments: &Options) -> Outcome<()> {
        let scale = (self.scale)(arguments);
        if arguments.list {
            list(self.families, &scale);
            return Ok(());
        }
        let families = choose(self.families, &arguments.rows)?;
        let target = target_dir()?;
        let parent = arguments.dir.clone().unwrap_or_else(|| target.join("bench"));
        std::fs::create_dir_all(&parent)?;
        self.introduce(&scale, &families)?;
        let needed = families.iter().map(|family| (family.disk_bytes)(&scale)).max().unwrap_or(0);
        space::check(&parent, needed)?;

        let expected: f64 = families.iter().map(|family| (family.seconds)(&scale)).sum();
        let most = match (self.most)(&scale) {
            most if expected > most.as_secs_f64() => Duration::from_secs_f64(expected * OVERRUN),
            most => most,
        };
        let started = Instant::now();
        let (mut rows, mut notes, mut failures) = (Vec::new(), Vec::new(), Vec::new());
        for family in &families {
            println!("\n{}: {}", family.name, family.about);
            let begun = Instant::now();
            match self.measure(family, scale, &parent, most.saturating_sub(started.elapsed())).await {
                Ok(measured) => {
                    let seconds = begun.elapsed().as_secs_f64();
                    println!("{}\n  took {seconds:.0} s", report::table(&measured.rows));
                    rows.extend(measured.rows);
                    notes.push((family.name, measured.notes));
                }
                // The others are worth their time all the same.
                Err(error) => {
                    println!("  failed: {error}");
                    failures.push(family.name);
                }
            }
        }
        conclude(&rows, &notes, &scale);
        self.write(arguments, &scale, &rows, &failures, &target.join("bench"))
    }

    fn write(
        &self,
        arguments: &Options,
        scale: &Scale,
        rows: &[Row],
        failures: &[&str],
        dir: &Path,
    ) -> Outcome<()> {
        let kind = match (failures.is_empty(), scale.quick) {
            // What was measured is kept, and does not take the place of a whole result.
            (false, _) => "-partial",
            (true, true) => "-quick",
            (true, false) => "",
        };
        let path = dir.join(format!("{}{kind}.json", self.name));
        // Nor does a choice of the rows.
        if arguments.rows.is_empty() || scale.quick {
            report::write(rows, &path)?;
            println!("Written to {}.", path.display());
        } else {
            println!("Not written to {}: not all rows were run.", path.display());
        }
        if failures.is_empty() {
            return Ok(());
        }
        Err(format!("no whole result: {} failed, see above", failures.join(", ")).into())
    }

    /// One family, in a directory of its own, within a time that only something stuck needs.
    async fn measure(
        &self,
        family: &Family,
        scale: Scale,
        parent: &Path,
        left: Duration,
    ) -> Outcome<Measured> {
        let dir = tempfile::Builder::new().prefix("tidemill-bench-").tempdir_in(parent)?;
        let bench = Bench { scale, dir: dir.path().to_owned() };
        let expected = Duration::from_secs_f64((family.seconds)(&scale) * self.patience_factor);
        let patience = left.min(self.patience + expected);
        let outcome = match tokio::time::timeout(patience, (family.run)(bench)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(format!("it did not end within {:.0} s", patience.as_secs_f64()).into()),
        };
        if outcome.is_err() {
            keep_logs(family, dir.path(), parent);
        }
        dir.close()?;
        outcome
    }

    fn introduce(&self, scale: &Scale, families: &[&Family]) -> Outcome<()> {
        let seconds: f64 = families.iter().map(|family| (family.seconds)(scale)).sum();
        let minutes = Duration::from_secs_f64(seconds).as_secs().div_ceil(60);
        let quick = if scale.quick { "Quick run: short legs, few rounds; no measurement. " } else { "" };
        println!(
            "{quick}{} rows or groups of rows, {} rounds, legs of {} s: about {minutes} min.",
            families.len(),
            scale.rounds,
            scale.leg.as_secs_f64()
        );
        println!("Broker: {}, {}, with the settings that ship.", tidemill_binary()?.display(), self.brokers);
        println!("Let the machine do nothing else meanwhile.");
        Ok(())
    }
}

/// Everything once more, at the end, where people look.
fn conclude(rows: &[Row], notes: &[(&str, Vec<String>)], scale: &Scale) {
    println!("\nMedians, and the least and the most of all rounds:");
    for (family, notes) in notes {
        for note in notes {
            println!("  {family}: {note}");
        }
    }
    if scale.quick {
        println!("\nThis was a quick run: short legs, few rounds. Its numbers are no measurement.");
    }
    println!("{}", report::table(rows));
}

/// What brokers logged is all that is worth keeping of a family that failed.
fn keep_logs(family: &Family, dir: &Path, parent: &Path) {
    for home in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let kept = parent.join(format!("failed-{}-{}.log", family.name, home.file_name().to_string_lossy()));
        if std::fs::copy(home.path().join("broker.log"), &kept).is_ok() {
            println!("  the broker's log is kept in {}", kept.display());
        }
    }
}

fn list(families: &[Family], scale: &Scale) {
    for family in families {
        let hint = if family.by_default { "" } else { " (only by name)" };
        println!("{:12} {:>5.0} s  {}{hint}", family.name, (family.seconds)(scale), family.about);
    }
}

/// Where this program lies: target/PROFILE/bench.
fn target_dir() -> Outcome<PathBuf> {
    let here = std::env::current_exe()?;
    here.ancestors()
        .nth(2)
        .map(Path::to_owned)
        .ok_or_else(|| "this program lies in no target directory".into())
}
