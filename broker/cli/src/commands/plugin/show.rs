//! A plugin's test on the terminal, and as JSON.

use std::collections::BTreeMap;
use std::io::Write;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use tidemill_hosting::{Answer, PlainRecord, PluginKind, Run};

use super::report::{Report, answer, contents, kind, readable};
use crate::error::CliError;
use crate::text::counted;
use crate::{output, text};

/// Characters of a cell.
const CELL_CHARS_MAX: usize = 60;

/// Tables of the first records, outputs, timers and keys, and a summary.
pub(super) fn tables(report: &Report<'_>, show: usize) {
    let Report { rehearsal, rehearsed, checked, component } = report;
    let run = &rehearsed.first;
    println!(
        "{}: a {} of {}: {}",
        component.display(),
        kind(checked.kind),
        output::bytes(checked.size),
        checked.summary
    );
    if show > 0 {
        verdicts(rehearsal.records.as_slice(), run, show);
        if checked.kind == PluginKind::Consumer {
            emitted(report, run, show);
            timers(run, show);
            state(run, show);
        }
        log(run, show);
    }
    println!();
    output::facts(&summary(report));
}

fn verdicts(records: &[PlainRecord], run: &Run, show: usize) {
    println!();
    let rows: Vec<Vec<String>> = records
        .iter()
        .zip(&run.verdicts)
        .enumerate()
        .take(show)
        .map(|(number, (record, verdict))| {
            let (time, memory) = run.calls.get(verdict.call).map_or_else(Default::default, |call| {
                let time = per_record(call.cost.cpu, call.records.len());
                (duration(time), output::bytes(call.cost.memory_bytes as u64))
            });
            let cell = |part: &Option<Bytes>| {
                part.as_ref().map_or_else(|| "-".to_owned(), |part| readable(part, CELL_CHARS_MAX))
            };
            vec![
                number.to_string(),
                cell(&record.key),
                cell(&record.value),
                answer(&verdict.answer),
                time,
                memory,
            ]
        })
        .collect();
    output::table(&["record", "key", "value", "answer", "cpu", "memory"], &rows, &[0, 4, 5]);
    more("records", run.verdicts.len(), show);
}

fn emitted(report: &Report<'_>, run: &Run, show: usize) {
    if run.emitted.is_empty() {
        return;
    }
    println!();
    let rows: Vec<Vec<String>> = run
        .emitted
        .iter()
        .take(show)
        .map(|emitted| {
            vec![
                format!("{}-{}", report.target_name(emitted), emitted.partition),
                shown(&contents(&emitted.record)),
                text::time(emitted.record.timestamp.get()),
                at(run, emitted.call),
            ]
        })
        .collect();
    output::table(&["emitted to", "record", "timestamp", "at"], &rows, &[]);
    more("outputs", run.emitted.len(), show);
}

fn timers(run: &Run, show: usize) {
    if run.fired.is_empty() && run.timers.is_empty() {
        return;
    }
    println!();
    let fired = run.fired.iter().map(|timer| {
        vec![
            readable(&timer.key, CELL_CHARS_MAX),
            text::time(timer.at.get()),
            format!("fired {}", at(run, timer.call)),
        ]
    });
    let set = run.timers.iter().map(|(key, at)| {
        vec![readable(key, CELL_CHARS_MAX), text::time(at.get()), "set at the end".to_owned()]
    });
    let rows: Vec<Vec<String>> = fired.chain(set).take(show).collect();
    output::table(&["timer", "for", "what became of it"], &rows, &[]);
    more("timers", run.fired.len() + run.timers.len(), show);
}

fn state(run: &Run, show: usize) {
    if run.entries.is_empty() {
        return;
    }
    println!();
    let rows: Vec<Vec<String>> = run
        .entries
        .iter()
        .take(show)
        .map(|(key, value)| vec![readable(key, CELL_CHARS_MAX), readable(value, CELL_CHARS_MAX)])
        .collect();
    output::table(&["state at the end", "value"], &rows, &[]);
    more("keys of state", run.entries.len(), show);
}

fn log(run: &Run, show: usize) {
    if run.log.lines.is_empty() {
        return;
    }
    println!();
    for line in run.log.lines.iter().take(show) {
        println!("log  {:5}  {}", line.level, line.message);
    }
    more("log lines", run.log.lines.len(), show);
}

fn more(what: &str, count: usize, shown: usize) {
    if count > shown {
        println!("{shown} of {count} {what} are shown; --show {count} shows all");
    }
}

fn summary(report: &Report<'_>) -> Vec<(&'static str, String)> {
    let Report { rehearsal, rehearsed, .. } = report;
    let run = &rehearsed.first;
    let records = run.verdicts.len();
    let mut facts = vec![("records", format!("{records} in {}", counted(run.calls.len(), "call")))];
    facts.extend(totals(run).into_iter().map(|(what, count)| (what, count.to_string())));
    match report.checked.kind {
        PluginKind::Partitioner => facts.push(("distribution", distribution_line(run, rehearsal.partitions))),
        PluginKind::Filter => {
            facts.push((
                "bytes",
                format!("{} in, {} out", output::bytes(run.bytes_in), output::bytes(run.bytes_out)),
            ));
        }
        PluginKind::Consumer => {
            facts.push((
                "emitted",
                format!("{}, {}", counted(run.emitted.len(), "record"), output::bytes(run.bytes_out)),
            ));
            facts.push(("timers", format!("{} fired, {} set at the end", run.fired.len(), run.timers.len())));
            facts.push(("state", format!("{} at the end", counted(run.entries.len(), "key"))));
        }
    }
    for (name, value) in own_counters(run) {
        facts.push(("counter", format!("{name} {value}")));
    }
    let cost = run.cost();
    facts.push((
        "time per record",
        format!(
            "{} wall, {} cpu",
            duration(per_record(cost.wall, records)),
            duration(per_record(cost.cpu, records))
        ),
    ));
    let slowest = run.calls.iter().map(|call| call.cost.cpu).max().unwrap_or_default();
    facts.push(("slowest call", format!("{} cpu", duration(slowest))));
    let allowed = output::bytes(rehearsal.plugin.memory_bytes_max);
    facts.push(("memory", format!("{} at the most, of {allowed}", output::bytes(cost.memory_bytes as u64))));
    if let Some(second) = &rehearsed.second {
        let same = if rehearsed.difference.is_some() { "another answer" } else { "the same answers" };
        facts.push((
            "second run",
            format!("{}, each in a fresh instance: {same}", counted(second.calls.len(), "call")),
        ));
        if rehearsal.records.len() == 1 {
            facts.push(("", "one record can't be cut otherwise: give it more".to_owned()));
        }
    }
    facts
}

/// How often each answer was given.
fn totals(run: &Run) -> BTreeMap<&'static str, u64> {
    let mut totals = BTreeMap::new();
    for verdict in &run.verdicts {
        *totals.entry(answer_name(&verdict.answer)).or_default() += 1;
    }
    totals
}

fn answer_name(answer: &Answer) -> &'static str {
    match answer {
        Answer::Placed(_) | Answer::PlacedAnywhere => "placed",
        Answer::Kept => "kept",
        Answer::Dropped => "dropped",
        Answer::Replaced(_) => "replaced",
        Answer::Handled => "handled",
        Answer::Rejected(_) => "rejected",
    }
}

/// Records by partition; `None` is any.
fn distribution(run: &Run) -> BTreeMap<Option<u32>, u64> {
    let mut counts = BTreeMap::new();
    for verdict in &run.verdicts {
        let partition = match verdict.answer {
            Answer::Placed(partition) => Some(partition),
            Answer::PlacedAnywhere => None,
            _ => continue,
        };
        *counts.entry(partition).or_default() += 1;
    }
    counts
}

fn distribution_line(run: &Run, partitions: u32) -> String {
    let counts = distribution(run);
    let of = |partition| counts.get(&partition).copied().unwrap_or(0);
    let mut parts: Vec<String> =
        (0..partitions).map(|partition| format!("{partition}: {}", of(Some(partition)))).collect();
    if of(None) > 0 {
        parts.push(format!("any: {}", of(None)));
    }
    parts.join(", ")
}

fn own_counters(run: &Run) -> impl Iterator<Item = (&str, u64)> {
    run.counters.iter().filter_map(|(name, value)| Some((name.strip_prefix("plugin_")?, *value)))
}

/// Behind which record a call was.
fn at(run: &Run, call: usize) -> String {
    match run.last_record_of(call) {
        Some(record) => format!("after record {record}"),
        None => "before any record".to_owned(),
    }
}

fn shown(text: &str) -> String {
    readable(text.as_bytes(), 2 * CELL_CHARS_MAX)
}

fn per_record(time: Duration, records: usize) -> Duration {
    Duration::from_nanos(u64::try_from(time.as_nanos() / records.max(1) as u128).unwrap_or(u64::MAX))
}

fn duration(time: Duration) -> String {
    match time.as_nanos() {
        ns if ns < 10_000 => format!("{ns} ns"),
        ns if ns < 10_000_000 => format!("{} us", ns / 1000),
        ns => format!("{} ms", ns / 1_000_000),
    }
}

/// A line per record, output, timer, key and log line, and the summary as the last one.
pub(super) fn json(report: &Report<'_>, out: &mut impl Write) -> Result<(), CliError> {
    let lines = records_json(report).chain(effects_json(report)).chain([summary_json(report)]);
    for line in lines {
        // Whoever closes the pipe has read enough.
        if writeln!(out, "{line}").is_err() {
            return Ok(());
        }
    }
    let _ = out.flush();
    Ok(())
}

fn records_json<'r>(report: &'r Report<'_>) -> impl Iterator<Item = Value> + 'r {
    let run = &report.rehearsed.first;
    report.rehearsal.records.iter().zip(&run.verdicts).enumerate().map(|(number, (record, verdict))| {
        let mut line = json!({
            "record": number,
            "key": value(record.key.as_ref()),
            "timestamp": record.timestamp.get(),
            "answer": answer_name(&verdict.answer),
            "call": verdict.call,
        });
        match &verdict.answer {
            Answer::Placed(partition) => line["partition"] = json!(partition),
            Answer::PlacedAnywhere => line["partition"] = Value::Null,
            Answer::Replaced(contents) => line["contents"] = record_json(contents),
            Answer::Rejected(reason) => line["reason"] = json!(reason),
            Answer::Kept | Answer::Dropped | Answer::Handled => {}
        }
        if let Some(call) = run.calls.get(verdict.call) {
            let records = call.records.len();
            line["wall_ns"] = nanos(per_record(call.cost.wall, records));
            line["cpu_ns"] = nanos(per_record(call.cost.cpu, records));
            line["memory_bytes"] = json!(call.cost.memory_bytes);
        }
        line
    })
}

fn effects_json<'r>(report: &'r Report<'_>) -> impl Iterator<Item = Value> + 'r {
    let run = &report.rehearsed.first;
    let emitted = run.emitted.iter().map(|emitted| {
        json!({
            "emitted": record_json(&emitted.record),
            "topic": report.target_name(emitted),
            "partition": emitted.partition,
            "after_record": run.last_record_of(emitted.call),
        })
    });
    let fired = run.fired.iter().map(|timer| {
        json!({
            "fired": value(Some(&timer.key)),
            "at": timer.at.get(),
            "after_record": run.last_record_of(timer.call),
        })
    });
    let set = run.timers.iter().map(|(key, at)| json!({ "timer": value(Some(key)), "at": at.get() }));
    let state = run
        .entries
        .iter()
        .map(|(key, held)| json!({ "state": value(Some(key)), "value": value(Some(held)) }));
    let log = run.log.lines.iter().map(|line| json!({ "log": line.message, "level": line.level }));
    emitted.chain(fired).chain(set).chain(state).chain(log)
}

fn summary_json(report: &Report<'_>) -> Value {
    let Report { rehearsal, rehearsed, checked, .. } = report;
    let run = &rehearsed.first;
    let (records, cost) = (run.verdicts.len(), run.cost());
    let mut summary = json!({
        "plugin": rehearsal.plugin.deployment,
        "kind": kind(checked.kind),
        "outcome": report.outcome_name(),
        "records": records,
        "calls": run.calls.len(),
        "answers": totals(run),
        "bytes_in": run.bytes_in,
        "wall_ns_per_record": nanos(per_record(cost.wall, records)),
        "cpu_ns_per_record": nanos(per_record(cost.cpu, records)),
        "memory_bytes": cost.memory_bytes,
        "memory_bytes_max": rehearsal.plugin.memory_bytes_max,
        "counters": own_counters(run).collect::<BTreeMap<_, _>>(),
        "second_run_calls": rehearsed.second.as_ref().map(|second| second.calls.len()),
        "failure": run.failure.as_ref().map(|failure| report.failure(failure)),
        "difference": rehearsed.difference.as_ref().map(|difference| report.difference(difference)),
    });
    match checked.kind {
        PluginKind::Partitioner => {
            let name = |partition: Option<u32>| {
                partition.map_or_else(|| "any".to_owned(), |number| number.to_string())
            };
            let counts: BTreeMap<String, u64> =
                distribution(run).into_iter().map(|(partition, count)| (name(partition), count)).collect();
            summary["partitions"] = json!(rehearsal.partitions);
            summary["distribution"] = json!(counts);
        }
        PluginKind::Filter => summary["bytes_out"] = json!(run.bytes_out),
        PluginKind::Consumer => {
            summary["bytes_out"] = json!(run.bytes_out);
            summary["emitted"] = json!(run.emitted.len());
            summary["timers_fired"] = json!(run.fired.len());
            summary["timers_set"] = json!(run.timers.len());
            summary["state_keys"] = json!(run.entries.len());
        }
    }
    json!({ "summary": summary })
}

fn record_json(record: &PlainRecord) -> Value {
    let headers: Vec<Value> = record
        .headers
        .iter()
        .map(|(name, held)| json!({ "name": name, "value": value(held.as_ref()) }))
        .collect();
    json!({
        "key": value(record.key.as_ref()),
        "value": value(record.value.as_ref()),
        "headers": headers,
        "timestamp": record.timestamp.get(),
    })
}

fn value(bytes: Option<&Bytes>) -> Value {
    output::readable(bytes.map(|bytes| &bytes[..]))
}

fn nanos(time: Duration) -> Value {
    json!(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
}
