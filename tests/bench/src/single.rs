//! `bench single`.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tidemill_cluster_tests::tidemill_binary;

use crate::arguments::Single;
use crate::rows::{Bench, FAMILIES, Family, Measured, choose};
use crate::scale::Scale;
use crate::{Outcome, report, space};

/// A family that takes so many times as long as it should, and this much more, is stuck.
const PATIENCE_FACTOR: f64 = 4.0;
const PATIENCE: Duration = Duration::from_secs(600);

pub(crate) async fn run(arguments: &Single) -> Outcome<()> {
    let scale = Scale::of(arguments);
    if arguments.list {
        list(&scale);
        return Ok(());
    }
    let families = choose(&arguments.rows)?;
    let target = target_dir()?;
    let parent = arguments.dir.clone().unwrap_or_else(|| target.join("bench"));
    std::fs::create_dir_all(&parent)?;
    introduce(&scale, &families)?;
    let needed = families.iter().map(|family| (family.disk_bytes)(&scale)).max().unwrap_or(0);
    space::check(&parent, needed)?;

    let (mut rows, mut notes, mut failures) = (Vec::new(), Vec::new(), Vec::new());
    for family in &families {
        println!("\n{}: {}", family.name, family.about);
        let begun = Instant::now();
        match measure(family, scale, &parent).await {
            Ok(measured) => {
                println!("{}\n  took {:.0} s", report::table(&measured.rows), begun.elapsed().as_secs_f64());
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

    println!("\nMedians, and the least and the most of all rounds:");
    for (family, notes) in &notes {
        for note in notes {
            println!("  {family}: {note}");
        }
    }
    if scale.quick {
        println!("\nThis was a quick run: short legs, few rounds. Its numbers are no measurement.");
    }
    println!("{}", report::table(&rows));
    if !failures.is_empty() {
        return Err(format!("no result, nothing written: {} failed, see above", failures.join(", ")).into());
    }
    let name = if scale.quick { "single-quick.json" } else { "single.json" };
    let path = target.join("bench").join(name);
    // A part of the rows does not take the place of all of them.
    if arguments.rows.is_empty() || scale.quick {
        report::write(&rows, &path)?;
        println!("Written to {}.", path.display());
    } else {
        println!("Not written to {}: not all rows were run.", path.display());
    }
    Ok(())
}

/// One family, in a directory of its own, within a time that only something stuck needs.
async fn measure(family: &Family, scale: Scale, parent: &Path) -> Outcome<Measured> {
    let dir = tempfile::Builder::new().prefix("tidemill-bench-").tempdir_in(parent)?;
    let bench = Bench { scale, dir: dir.path().to_owned() };
    let patience = PATIENCE + Duration::from_secs_f64((family.seconds)(&scale) * PATIENCE_FACTOR);
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

/// What brokers logged is all that is worth keeping of a family that failed.
fn keep_logs(family: &Family, dir: &Path, parent: &Path) {
    for home in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let kept = parent.join(format!("failed-{}-{}.log", family.name, home.file_name().to_string_lossy()));
        if std::fs::copy(home.path().join("broker.log"), &kept).is_ok() {
            println!("  the broker's log is kept in {}", kept.display());
        }
    }
}

fn list(scale: &Scale) {
    for family in FAMILIES {
        let hint = if family.by_default { "" } else { " (only by name)" };
        println!("{:12} {:>5.0} s  {}{hint}", family.name, (family.seconds)(scale), family.about);
    }
}

fn introduce(scale: &Scale, families: &[&Family]) -> Outcome<()> {
    let seconds: f64 = families.iter().map(|family| (family.seconds)(scale)).sum();
    let minutes = Duration::from_secs_f64(seconds).as_secs().div_ceil(60);
    let quick = if scale.quick { "Quick run: short legs, few rounds; no measurement. " } else { "" };
    println!(
        "{quick}{} rows or groups of rows, {} rounds, legs of {} s: about {minutes} min.",
        families.len(),
        scale.rounds,
        scale.leg.as_secs_f64()
    );
    println!("Broker: {}, in its own process, with the settings that ship.", tidemill_binary()?.display());
    println!("Let the machine do nothing else meanwhile.");
    Ok(())
}

/// Where this program lies: target/PROFILE/bench.
fn target_dir() -> Outcome<PathBuf> {
    let here = std::env::current_exe()?;
    here.ancestors()
        .nth(2)
        .map(Path::to_owned)
        .ok_or_else(|| "this program lies in no target directory".into())
}
