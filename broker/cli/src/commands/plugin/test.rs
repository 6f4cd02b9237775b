//! `tidemill plugin test`: a component against a file of records, in the broker's own engine.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use clap::{Args, ValueEnum};
use tidemill_hosting::{
    CheckedUpload, ComparedOutputs, ConfigKey, Hosting, OpenError, PlainRecord, PluginKind, PluginPlan,
    PluginProblem, Rehearsal, RehearsalError, UploadError,
};
use tidemill_protocol::{DeploymentId, Timestamp};
use tidemill_server::{BrokerConfig, hosting_config, system_clock};

use super::report::Report;
use crate::commands::produce::RecordFormat;
use crate::error::CliError;
use crate::text;

/// Records of a file that are taken, since they are all kept.
const INPUT_BYTES_MAX: u64 = 256 << 20;
/// Partitions of a topic where none are named.
const PARTITIONS_DEFAULT: u32 = 3;

/// Run a component against a file of records
#[derive(Debug, Args)]
#[command(after_help = "\
The records are read as `tidemill produce` reads them. They go through the engine, the
limits and the checks of a broker with default settings, compiled in a process of its own;
no broker is needed. Then everything runs a second time, with the records cut into other
calls and a fresh instance for each: the answers must be the same.

A hosted consumer runs as one task with all of its state, timers and outputs. The log's time
is at each record's timestamp when the record comes (records without one: now), and timers
fire on the way. Records that it rejects are left out, as by `--policy skip`.

Exit codes: 5 the plugin failed, and at which record; 6 the second run differs, and from
which record on.

Examples:
  tidemill plugin test only-phones.wasm --input plays.jsonl --set device=phone
  tidemill plugin test field-hash.wasm --input plays.jsonl --set field=user_id --partitions 12 --show 5
  tidemill plugin test count-by-field.wasm --input plays.jsonl --set field=song_id --target top-songs --outputs last")]
pub(crate) struct Test {
    /// The component: what `tidemill plugin build` made.
    component: PathBuf,
    /// File of records, all of one partition; - is standard input.
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    #[command(flatten)]
    format: RecordFormat,
    /// Configuration; may be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = text::key_value)]
    settings: Vec<(String, String)>,
    /// Show so many records, and outputs, timers and keys of state.
    #[arg(long, value_name = "COUNT", default_value_t = 20)]
    show: usize,
    /// Records of one call in the first run.
    #[arg(long, value_name = "RECORDS", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=1000))]
    batch: u64,
    /// Partitioners: partitions of the topic; 3 where none are named.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    partitions: Option<u32>,
    /// Consumers: a topic that it may emit to, and its partitions (1 where none are named); may be repeated.
    #[arg(long = "target", value_name = "TOPIC[:PARTITIONS]", value_parser = target)]
    targets: Vec<(String, u32)>,
    /// Consumers: let so much of the log's time pass after the last record; timers that come due fire.
    #[arg(long, value_name = "TIME", value_parser = text::duration)]
    run_timers_for: Option<Duration>,
    /// Consumers: which outputs must be the same in both runs.
    #[arg(long, value_enum)]
    outputs: Option<Outputs>,
    /// Name of the topic that the plugin is told it reads.
    #[arg(long, default_value = "input")]
    topic: String,
    /// Memory of one instance.
    #[arg(long, value_name = "SIZE", value_parser = text::size)]
    memory: Option<u64>,
    /// Running time of one call, instead of a broker's.
    #[arg(long, value_name = "TIME", value_parser = text::duration)]
    call_time: Option<Duration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Outputs {
    /// Every one, in order.
    All,
    /// The last one of each key: for plugins that emit results as they come, once per call.
    Last,
}

impl Test {
    /// What the grammar can't say.
    pub(super) fn check(&self) -> Result<(), String> {
        self.format.check()
    }
}

pub(crate) async fn run(test: Test, json: bool) -> Result<(), CliError> {
    let records = read_records(&test)?;
    let (hosting, broker, _artifacts) = engine(&test)?;
    let component = std::fs::read(&test.component)
        .map_err(|error| CliError::usage(format!("{}: {error}", test.component.display())))?;
    let of_component = |error: UploadError| {
        let reason = format!("{}: {error}", test.component.display());
        match error {
            UploadError::Compile(_) => CliError::Usage(reason),
            UploadError::Describe(_) => CliError::Failed(reason),
            UploadError::Store(_) => CliError::Other(reason),
        }
    };
    let checked = hosting.check_upload(component.into()).await.map_err(of_component)?;
    let rehearsal = rehearsal(test_fits(&test, &checked)?, &checked, &broker, records);
    hosting.validate(&rehearsal.plugin).await.map_err(|error| refused(&error, &checked.config))?;
    let rehearsed = hosting.rehearse(&rehearsal).await.map_err(|error| match error {
        RehearsalError::Record { .. } => CliError::Usage(error.to_string()),
        RehearsalError::Open(_) | RehearsalError::TooMuchOutput { .. } => CliError::Failed(error.to_string()),
    })?;
    let report = Report {
        rehearsal: &rehearsal,
        rehearsed: &rehearsed,
        checked: &checked,
        component: &test.component,
    };
    if json {
        super::show::json(&report, &mut std::io::BufWriter::new(std::io::stdout().lock()))?;
    } else {
        super::show::tables(&report, test.show);
    }
    report.outcome()
}

/// The broker's engine by itself, and the directory that it keeps what it compiles in.
fn engine(test: &Test) -> Result<(Hosting, BrokerConfig, tempfile::TempDir), CliError> {
    let other = |error: &dyn std::fmt::Display| CliError::other(error.to_string());
    let broker = BrokerConfig::default();
    // Its mode is 0700.
    let directory = tempfile::tempdir()
        .map_err(|error| CliError::other(format!("no temporary directory for what is compiled: {error}")))?;
    let at = |name: &str| directory.path().join(name);
    let mut config = hosting_config(&broker, at("artifacts"), at("digests"), &system_clock())
        .map_err(|error| other(&error))?;
    if let Some(time) = test.call_time {
        (config.call_time, config.task_call_time) = (time, time);
    }
    let hosting = Hosting::start(config).map_err(|error| other(&error))?;
    Ok((hosting, broker, directory))
}

/// What only some kinds of plugins have is not asked of others.
fn test_fits<'t>(test: &'t Test, checked: &CheckedUpload) -> Result<&'t Test, CliError> {
    let consumer = checked.kind == PluginKind::Consumer;
    let partitioner = checked.kind == PluginKind::Partitioner;
    let misplaced = [
        ("--partitions", "partitioners", test.partitions.is_some() && !partitioner),
        ("--target", "consumers", !test.targets.is_empty() && !consumer),
        ("--run-timers-for", "consumers", test.run_timers_for.is_some() && !consumer),
        ("--outputs", "consumers", test.outputs.is_some() && !consumer),
    ];
    match misplaced.into_iter().find(|(_, _, misplaced)| *misplaced) {
        None => Ok(test),
        Some((option, kinds, _)) => Err(CliError::usage(format!(
            "{option} is for {kinds}, and {} is a {}",
            test.component.display(),
            super::report::kind(checked.kind)
        ))),
    }
}

fn rehearsal(
    test: &Test,
    checked: &CheckedUpload,
    broker: &BrokerConfig,
    records: Vec<PlainRecord>,
) -> Rehearsal {
    let name = test.component.file_stem().map(|name| name.to_string_lossy().into_owned());
    Rehearsal {
        plugin: PluginPlan {
            deployment: name.unwrap_or_else(|| "test".to_owned()),
            deployment_id: Some(DeploymentId::new(1)),
            digest: checked.digest,
            kind: checked.kind,
            config: test.settings.iter().cloned().collect(),
            topics: vec![test.topic.clone()],
            targets: test.targets.iter().map(|(topic, _)| topic.clone()).collect(),
            memory_bytes_max: test.memory.unwrap_or(broker.plugins.memory_bytes_default),
        },
        records,
        records_per_call: usize::try_from(test.batch).unwrap_or(usize::MAX),
        partitions: test.partitions.unwrap_or(PARTITIONS_DEFAULT),
        target_partitions: test.targets.iter().map(|(_, partitions)| *partitions).collect(),
        state_bytes_max: broker.plugins.state_bytes_max,
        run_timers_for_ms: test
            .run_timers_for
            .map_or(0, |time| i64::try_from(time.as_millis()).unwrap_or(i64::MAX)),
        compared_outputs: match test.outputs {
            Some(Outputs::Last) => ComparedOutputs::LastOfKey,
            Some(Outputs::All) | None => ComparedOutputs::All,
        },
    }
}

/// The configuration is refused: with the keys that there are.
fn refused(error: &OpenError, keys: &[ConfigKey]) -> CliError {
    if error.problem() != PluginProblem::Config {
        return CliError::Failed(error.to_string());
    }
    let keys: Vec<String> = keys
        .iter()
        .map(|key| match (&key.default, key.required) {
            (_, true) => format!("{} (required)", key.name),
            (Some(default), false) => format!("{} ({default})", key.name),
            (None, false) => key.name.clone(),
        })
        .collect();
    let hint = if keys.is_empty() { "it has no keys".to_owned() } else { keys.join(", ") };
    CliError::usage(format!("{error}; keys for --set: {hint}"))
}

fn read_records(test: &Test) -> Result<Vec<PlainRecord>, CliError> {
    let path = &test.input;
    let of_file = |error: std::io::Error| CliError::usage(format!("{}: {error}", path.display()));
    let input: Box<dyn Read> = match path == Path::new("-") {
        true => Box::new(std::io::stdin()),
        false => Box::new(File::open(path).map_err(of_file)?),
    };
    // One byte more shows that there is too much.
    let mut input = BufReader::new(input.take(INPUT_BYTES_MAX + 1));
    let now = system_clock()();
    let (mut records, mut line) = (Vec::new(), Vec::new());
    let (mut number, mut bytes) = (0_u64, 0_u64);
    loop {
        line.clear();
        let read = input.read_until(b'\n', &mut line).map_err(of_file)?;
        if read == 0 {
            break;
        }
        number += 1;
        bytes += read as u64;
        if bytes > INPUT_BYTES_MAX {
            let reason = format!(
                "more than {} of records; test with part of them",
                crate::output::bytes(INPUT_BYTES_MAX)
            );
            return Err(CliError::usage(format!("{}: {reason}", path.display())));
        }
        if line.last() == Some(&b'\n') {
            line.pop();
        }
        let record = plain(&test.format, &line, now);
        let of_line = |error| CliError::usage(format!("{}: line {number}: {error}", path.display()));
        records.extend(record.map_err(of_line)?);
    }
    if records.is_empty() {
        return Err(CliError::usage(format!("{}: there is no record in it", path.display())));
    }
    Ok(records)
}

fn plain(format: &RecordFormat, line: &[u8], now: Timestamp) -> Result<Option<PlainRecord>, String> {
    let bytes = |part: std::borrow::Cow<'_, [u8]>| Bytes::from(part.into_owned());
    let fixed = format.fixed_headers.iter();
    let fixed = fixed.map(|(name, value)| (name.clone(), Some(Bytes::copy_from_slice(value.as_bytes()))));
    Ok(format.parse(line)?.map(|record| PlainRecord {
        key: record.key.map(bytes),
        value: record.value.map(bytes),
        headers: fixed
            .chain(record.headers.into_iter().map(|(name, value)| (name, value.map(Bytes::from))))
            .collect(),
        timestamp: record.timestamp.map_or(now, Timestamp::new),
    }))
}

/// `TOPIC` or `TOPIC:PARTITIONS`.
fn target(text: &str) -> Result<(String, u32), String> {
    let Some((topic, partitions)) = text.rsplit_once(':') else { return Ok((text.to_owned(), 1)) };
    match partitions.parse() {
        Ok(partitions) if (1..=MAX_TARGET_PARTITIONS).contains(&partitions) && !topic.is_empty() => {
            Ok((topic.to_owned(), partitions))
        }
        _ => Err(format!(
            "'{text}' is not TOPIC or TOPIC:PARTITIONS, with 1 to {MAX_TARGET_PARTITIONS} partitions"
        )),
    }
}

/// More than any test needs, and few enough to look through after each call.
const MAX_TARGET_PARTITIONS: u32 = 1000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_have_partitions() {
        assert_eq!(target("top-songs"), Ok(("top-songs".to_owned(), 1)));
        assert_eq!(target("top:12"), Ok(("top".to_owned(), 12)));
        for bad in ["top:0", "top:x", ":3", "top:1001"] {
            assert!(target(bad).unwrap_err().contains("TOPIC:PARTITIONS"), "{bad}");
        }
    }
}
