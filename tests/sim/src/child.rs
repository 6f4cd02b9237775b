//! A seed's run in a process of its own, which is what makes it the same each time, and keeps a hang or a panic to itself.
//!
//! The program that wants seeds run starts itself again for each, with the run in its environment; the run's report comes back as lines
//! of words.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;

use crate::chance::seed_process;
use crate::cluster::{Bug, ClusterReport, run_cluster};
use crate::ledger::Violation;

/// A panic that is none of ours, by words of it: openraft's assertion that a snapshot never goes back by the order of log ids, which it does
/// where a deposed leader's last entries, never committed, are of a later term (`LogIdList::purge` of 0.10.0-alpha.37). Only builds with its
/// assertions have it. What the replica does without is tested in `broker/raft/src/tests/installing.rs`.
const NOT_OURS: [&str; 2] = ["log_id_list.rs", "assertion failed: Some(upto) > self.last()"];

/// What such a panic leads to.
const STOPPED_BY_ITSELF: &str = "has stopped, and nothing is wrong with its disk";

const SEED: &str = "TIDEMILL_SIM_SEED";
const BUG: &str = "TIDEMILL_SIM_BUG";
const TRACE: &str = "TIDEMILL_SIM_TRACE";
/// How long a run may take, by the clock on the wall.
const PATIENCE: Duration = Duration::from_secs(240);

/// What a run in a process of its own came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    /// The seed.
    pub seed: u64,
    /// The broken promise, or how the process ended that broke down.
    pub violation: Option<String>,
    /// The digest of the trace.
    pub digest: String,
    /// Faults by name, and numbers of what was done and looked at.
    pub counts: BTreeMap<String, u64>,
}

/// Call this first in a program's main: where the process is a run's, it is done here.
pub fn run_if_child(runtime: impl FnOnce() -> io::Result<Runtime>) -> Option<ExitCode> {
    let seed: u64 = std::env::var(SEED).ok()?.parse().ok()?;
    let number = std::env::var(BUG).ok().and_then(|bug| bug.parse::<usize>().ok());
    let bug = number.and_then(|number| Bug::ALL.get(number).copied());
    seed_process(seed);
    // Whatever breaks its own assertions is found, though the cluster may get over it.
    let panics = Arc::new(Mutex::new(None));
    let noted = Arc::clone(&panics);
    std::panic::set_hook(Box::new(move |panic| {
        if let Ok(mut first) = noted.lock() {
            first.get_or_insert_with(|| panic.to_string());
        }
    }));
    let report = match runtime() {
        Ok(runtime) => {
            let mut report = run_cluster(&runtime, seed, bug);
            let panic: Option<String> = panics.lock().ok().and_then(|mut first| first.take());
            report.cut_short =
                panic.as_ref().is_some_and(|panic| NOT_OURS.iter().all(|word| panic.contains(word)));
            let came_of_it = |violation: &Violation| violation.to_string().contains(STOPPED_BY_ITSELF);
            report.violation = match report.cut_short {
                true => report.violation.filter(|violation| !came_of_it(violation)),
                false => panic.map(Violation::Cluster).or(report.violation),
            };
            report
        }
        Err(error) => {
            eprintln!("no runtime: {error}");
            return Some(ExitCode::FAILURE);
        }
    };
    if let Ok(path) = std::env::var(TRACE)
        && let Err(error) = std::fs::write(&path, report.trace.lines().join("\n"))
    {
        eprintln!("{path}: {error}");
    }
    print!("{}", describe(&report));
    Some(ExitCode::SUCCESS)
}

fn describe(report: &ClusterReport) -> String {
    let mut text = format!("digest {}\n", report.trace.digest());
    let checks = report.checks;
    let counts = [
        ("acknowledged", report.acknowledged as u64),
        ("retired", report.retired),
        ("simulated_ms", report.simulated_ms),
        ("entries", checks.entries),
        ("states", checks.states),
        ("leaders", checks.leaders),
        ("snapshots", report.snapshots),
        ("cut short by an assertion of openraft's that is too strict", report.cut_short.into()),
    ];
    let faults = report.faults.iter().map(|(fault, times)| (format!("fault:{fault:?}"), *times));
    let counts = counts.into_iter().map(|(name, count)| (name.to_owned(), count));
    for (name, count) in counts.chain(faults) {
        // Writing to a string does not fail.
        let _written = writeln!(text, "count {name} {count}");
    }
    if let Some(violation) = &report.violation {
        let _written = writeln!(text, "violation {}", violation.to_string().replace('\n', " "));
    }
    text
}

/// Runs one seed in a process of its own.
///
/// # Errors
/// The process can't be started.
pub fn run_seed(seed: u64, bug: Option<Bug>, trace: Option<&Path>) -> io::Result<Outcome> {
    let mut command = Command::new(std::env::current_exe()?);
    command.env(SEED, seed.to_string()).env_remove(BUG).env_remove(TRACE);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    if let Some(number) = bug.and_then(|bug| Bug::ALL.iter().position(|other| *other == bug)) {
        command.env(BUG, number.to_string());
    }
    if let Some(trace) = trace {
        command.env(TRACE, trace);
    }
    let mut child = command.spawn()?;
    let began = Instant::now();
    // Its report is small: the pipe holds it.
    while child.try_wait()?.is_none() {
        if began.elapsed() > PATIENCE {
            child.kill()?;
            child.wait()?;
            let violation = Some(format!("the run did not end within {PATIENCE:?}"));
            return Ok(Outcome { seed, violation, ..Outcome::default() });
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let output = child.wait_with_output()?;
    let mut outcome = Outcome { seed, ..Outcome::default() };
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let mut words = line.splitn(2, ' ');
        match (words.next(), words.next()) {
            (Some("digest"), Some(digest)) => outcome.digest = digest.to_owned(),
            (Some("violation"), Some(violation)) => outcome.violation = Some(violation.to_owned()),
            (Some("count"), Some(count)) => {
                if let Some((name, count)) = count.rsplit_once(' ') {
                    outcome.counts.insert(name.to_owned(), count.parse().unwrap_or(0));
                }
            }
            _ => {}
        }
    }
    if outcome.digest.is_empty() {
        outcome.violation = Some(format!("the run broke down: {}", output.status));
    }
    Ok(outcome)
}

/// Seeds to run.
#[derive(Debug, Clone, Copy)]
pub struct Seeds {
    /// The first of them.
    pub first: u64,
    /// How many.
    pub count: u64,
    /// What is put back.
    pub bug: Option<Bug>,
    /// Those that this divides are run twice, and must leave the same trace; 0 for none.
    pub twice_one_in: u64,
}

impl Seeds {
    /// Whether that one is run twice.
    #[must_use]
    pub fn twice(&self, seed: u64) -> bool {
        self.twice_one_in > 0 && seed.is_multiple_of(self.twice_one_in)
    }

    fn run(&self, seed: u64) -> io::Result<Outcome> {
        let mut outcome = run_seed(seed, self.bug, None)?;
        if self.twice(seed) && run_seed(seed, self.bug, None)?.digest != outcome.digest {
            outcome.violation.get_or_insert_with(|| "two runs differ".to_owned());
        }
        Ok(outcome)
    }
}

/// Runs seeds, as many at once as there are processors; `each` hears of every one, in the order in which they end, and says whether to go
/// on.
///
/// # Errors
/// A process can't be started.
pub fn run_seeds(seeds: Seeds, each: impl FnMut(Outcome) -> bool + Send) -> io::Result<()> {
    let next = AtomicU64::new(seeds.first);
    let end = seeds.first.saturating_add(seeds.count);
    let each = Mutex::new((each, true));
    let work = || -> io::Result<()> {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            let goes_on = each.lock().is_ok_and(|each| each.1);
            if seed >= end || !goes_on {
                return Ok(());
            }
            let outcome = seeds.run(seed)?;
            if let Ok(mut each) = each.lock() {
                let (hear, goes_on) = &mut *each;
                *goes_on = hear(outcome) && *goes_on;
            }
        }
    };
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        threads.into_iter().try_for_each(|thread| {
            thread.join().unwrap_or_else(|_panicked| Err(io::Error::other("a worker panicked")))
        })
    })
}
