//! Runs seeds, and says what was found.
//!
//! ```text
//! cargo run -p tidemill-sim --example sim -- cluster [first seed] [number of seeds]
//! cargo run -p tidemill-sim --example sim -- seed SEED [file for its trace] [number of a bug]
//! cargo run -p tidemill-sim --example sim -- bugs [most seeds for each] [number of a bug]
//! cargo run -p tidemill-sim --example sim -- edits                          numbers of the bugs that are changes of the sources
//! cargo run -p tidemill-sim --example sim -- edit NUMBER DIRECTORY          changes a copy of the sources
//! cargo run -p tidemill-sim --example sim -- edited NUMBER [most seeds]     built from such a copy: which seed finds it
//! cargo run -p tidemill-sim --example sim -- alone [first seed] [number of seeds] [file for the last trace]
//! ```
//!
//! Each seed of a cluster is run in a process of its own, and every tenth twice; of one broker alone each twice. Ends with 1 where two runs
//! of a seed differ, or where a promise was broken.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use tidemill_sim::{Bug, EDITS, Edit, Outcome, Seeds, Trace, run, run_if_child, run_seed, run_seeds};

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// One seed of a cluster in so many is run twice.
const TWICE_ONE_IN: u64 = 10;

fn main() -> Result<ExitCode, Failure> {
    if let Some(done) = run_if_child(runtime) {
        return Ok(done);
    }
    let mut arguments = std::env::args().skip(1);
    let what = arguments.next().unwrap_or_else(|| "cluster".to_owned());
    let mut number = |default: u64| arguments.next().map_or(Ok(default), |text| text.parse::<u64>());
    let good = match what.as_str() {
        "cluster" => clusters(number(1)?, number(10)?)?,
        "seed" => {
            let seed = number(1)?;
            let file = arguments.next().map(PathBuf::from);
            let bug = arguments.next().map(|text| text.parse()).transpose()?;
            one(seed, file, bug)?
        }
        "alone" => {
            let (first, count) = (number(1)?, number(10)?);
            alone(first, count, arguments.next())?
        }
        "bugs" => bugs(number(1_000)?, number(0)?)?,
        "edits" => {
            EDITS.iter().for_each(|edit| println!("{} {}", edit.number, edit.describe));
            true
        }
        "edit" => {
            let edit = edit(number(0)?)?;
            edit.make(Path::new(&arguments.next().ok_or("edit NUMBER DIRECTORY")?))?;
            true
        }
        "edited" => {
            let (number, most) = (number(0)?, number(1_000)?);
            row(number, edit(number)?.describe, most, None)?;
            true
        }
        other => return Err(format!("{other}: cluster, seed, bugs, edits, edit, edited or alone").into()),
    };
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build()
}

fn clusters(first: u64, count: u64) -> Result<bool, Failure> {
    let began = Instant::now();
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    let (mut bad, mut twice) = (0, 0);
    let twice_one_in = if count == 1 { 1 } else { TWICE_ONE_IN };
    let seeds = Seeds { first, count, bug: None, twice_one_in };
    run_seeds(seeds, |outcome| {
        if let Some(violation) = &outcome.violation {
            println!("seed {}: {violation}", outcome.seed);
            bad += 1;
        }
        for (name, times) in &outcome.counts {
            *counts.entry(name.clone()).or_default() += times;
        }
        twice += u64::from(seeds.twice(outcome.seed));
        true
    })?;
    println!("\n| what | how often |\n| --- | --- |");
    counts.iter().for_each(|(name, times)| println!("| {name} | {times} |"));
    println!("\n{count} seeds, {twice} of them twice, in {:.1} s: {bad} bad", began.elapsed().as_secs_f64());
    Ok(bad == 0)
}

fn one(seed: u64, file: Option<PathBuf>, bug: Option<u64>) -> Result<bool, Failure> {
    let bug = bug.and_then(|number| Bug::ALL.into_iter().find(|bug| bug.number() == number));
    let Outcome { violation, digest, counts, .. } = run_seed(seed, bug, file.as_deref())?;
    counts.iter().for_each(|(name, times)| println!("{name}: {times}"));
    println!("trace {digest}");
    println!("{}", violation.as_deref().unwrap_or("nothing was found"));
    Ok(violation.is_none())
}

/// How many seeds each bug takes that is put back.
fn bugs(most: u64, only: u64) -> Result<bool, Failure> {
    println!("| | bug | seeds until it was found | as |\n| --- | --- | --- | --- |");
    for bug in Bug::ALL.into_iter().filter(|bug| only == 0 || bug.number() == only) {
        row(bug.number(), bug.describe(), most, Some(bug))?;
    }
    Ok(true)
}

/// The bug of that number, of those that are changes of the sources.
fn edit(number: u64) -> Result<Edit, Failure> {
    Ok(EDITS.into_iter().find(|edit| edit.number == number).ok_or("`edits` tells the numbers")?)
}

/// Runs seeds until one finds something, and says which.
fn row(number: u64, describe: &str, most: u64, bug: Option<Bug>) -> Result<(), Failure> {
    let mut first: Option<Outcome> = None;
    run_seeds(Seeds { first: 1, count: most, bug, twice_one_in: 0 }, |outcome| {
        let earlier = first.as_ref().is_none_or(|first| outcome.seed < first.seed);
        if outcome.violation.is_some() && earlier {
            first = Some(outcome);
        }
        first.is_none()
    })?;
    let found = match first {
        Some(Outcome { seed, violation, .. }) => {
            let text: String = violation.unwrap_or_default().chars().take(160).collect();
            format!("{seed} | {text}")
        }
        None => format!("not in {most} |"),
    };
    println!("| {number} | {describe} | {found} |");
    Ok(())
}

fn alone(first: u64, count: u64, file: Option<String>) -> Result<bool, Failure> {
    let began = Instant::now();
    let (mut lines, mut acknowledged, mut power_losses, mut bad) = (0, 0, 0, 0);
    for seed in first..first.saturating_add(count) {
        let (once, twice) = (run(&runtime()?, seed), run(&runtime()?, seed));
        if let Some(difference) = first_difference(&once.trace, &twice.trace) {
            println!("seed {seed}: two runs differ\n{difference}");
            bad += 1;
        }
        if let Some(violation) = &once.violation {
            println!("seed {seed}: {violation}");
            bad += 1;
        }
        lines += once.trace.lines().len();
        acknowledged += once.acknowledged;
        power_losses += once.power_losses;
        if let Some(file) = file.as_ref().filter(|_| seed + 1 == first + count) {
            std::fs::write(file, once.trace.lines().join("\n"))?;
        }
    }
    println!(
        "{count} seeds of one broker, each twice, in {:.1} s: {lines} lines, {acknowledged} batches acknowledged, \
         {power_losses} power losses, {bad} bad",
        began.elapsed().as_secs_f64()
    );
    Ok(bad == 0)
}

fn first_difference(once: &Trace, twice: &Trace) -> Option<String> {
    const BEFORE: usize = 5;
    let (once, twice) = (once.lines(), twice.lines());
    let both = once.len().max(twice.len());
    let at = (0..both).find(|line| once.get(*line) != twice.get(*line))?;
    let before = once[at.saturating_sub(BEFORE)..at].join("\n");
    Some(format!("{before}\n- {:?}\n+ {:?}", once.get(at), twice.get(at)))
}
