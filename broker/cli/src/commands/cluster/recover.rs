//! `tidemill cluster recover`.

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;
use serde_json::{Value, json};
use tidemill_protocol::Timestamp;
use tidemill_server::{HeldReplica, RecoverError, RecoverReport, RecoverRequest, ShardFinding};

use crate::error::CliError;
use crate::output;

/// See `tidemill cluster recover`.
#[derive(Debug, Args)]
pub(crate) struct Recover {
    /// The data directory of the broker that is left. It must be stopped.
    #[arg(long, alias = "data", value_name = "DIR")]
    data_dir: PathBuf,
    /// Go on with what is there: whatever only the others had is lost, and they are out for good.
    #[arg(long)]
    accept_loss: bool,
    /// Change nothing, only show what is there and what would be done.
    #[arg(long)]
    dry_run: bool,
    /// Go on also where shards have no replica here: what they hold is lost as a whole.
    #[arg(long, requires = "accept_loss")]
    leave_missing: bool,
}

pub(super) async fn run(recover: Recover, json: bool) -> Result<(), CliError> {
    let Recover { data_dir, accept_loss, dry_run, leave_missing } = recover;
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now = Timestamp::new(i64::try_from(since.as_millis()).unwrap_or(i64::MAX));
    let carries_out = accept_loss && !dry_run;
    let request = RecoverRequest { data_dir: data_dir.clone(), accept_loss: carries_out, leave_missing, now };
    let report = tidemill_server::recover(request).await.map_err(failed)?;
    output::print(json, &document(&report), || show(&report, &data_dir.display().to_string()))?;
    if !accept_loss {
        return Err(CliError::Failed("nothing was changed; say --accept-loss to go on with this".to_owned()));
    }
    Ok(())
}

fn failed(error: RecoverError) -> CliError {
    match error {
        RecoverError::NoDirectory(_) | RecoverError::DataDir(_) | RecoverError::Missing { .. } => {
            CliError::usage(error.to_string())
        }
        other => CliError::other(other.to_string()),
    }
}

fn document(report: &RecoverReport) -> Value {
    let shards: Vec<Value> = report.shards.iter().map(shard_document).collect();
    json!({
        "cluster": report.cluster.to_string(), "broker": report.broker, "incarnation": report.incarnation,
        "recovered": report.recovered, "lost_brokers": report.others, "shards": shards,
    })
}

fn shard_document(finding: &ShardFinding) -> Value {
    match &finding.held {
        Ok(held) => json!({
            "shard": finding.shard.get(), "last_entry": held.last.index.get(), "last_term": held.last.term.get(),
            "committed": held.committed.map(|index| index.get()),
            "checkpoint": held.applied.map(|applied| applied.index.get()),
            "voters": nodes(&held.voters), "learners": nodes(&held.learners), "doubt": held.doubt,
        }),
        Err(reason) => json!({ "shard": finding.shard.get(), "missing": reason }),
    }
}

fn nodes<'a>(nodes: impl IntoIterator<Item = &'a tidemill_protocol::NodeId>) -> Vec<String> {
    nodes.into_iter().map(ToString::to_string).collect()
}

fn show(report: &RecoverReport, data: &str) {
    let RecoverReport { cluster, broker, incarnation, .. } = report;
    println!("cluster {cluster}, broker {broker}, {data}");
    println!();
    let rows: Vec<Vec<String>> = report.shards.iter().map(row).collect();
    output::table(
        &["shard", "last entry", "term", "committed", "uncommitted", "checkpoint", "group", "remarks"],
        &rows,
        &[0, 1, 2, 3, 4, 5],
    );
    println!();
    let lost: Vec<String> = report.others.iter().map(ToString::to_string).collect();
    let (done, then) = match report.recovered {
        true => ("recovered: every shard here goes on", "from now on"),
        false => ("nothing was changed. Recovered, every shard here goes on", "then"),
    };
    println!("{done} as replica {broker}.{incarnation} alone, with all that it has: what is not committed");
    println!("may have been acknowledged, and is kept. What only other brokers had is lost.");
    if !lost.is_empty() {
        println!();
        println!("No part of the cluster {then}: brokers {}.", lost.join(", "));
        println!(
            "MAKE SURE THAT THEY NEVER START AGAIN on the directories that they had: this broker refuses each"
        );
        println!(
            "of them, but a majority of them could go on among themselves, as another cluster under the same"
        );
        println!("id. Delete these directories.");
    }
    println!();
    for line in next(report, data) {
        println!("{line}");
    }
}

/// What to do next.
fn next(report: &RecoverReport, data: &str) -> Vec<String> {
    if !report.recovered {
        return vec![
            "If another broker is left, look at its directory too, and choose the one whose entries reach farther.".to_owned(),
            "If a majority can be brought back, do that instead. Else keep a copy of the directory, then:".to_owned(),
            format!("  tidemill cluster recover --data-dir {data} --accept-loss"),
        ];
    }
    let mut lines = vec!["Start the broker as before, on this directory.".to_owned()];
    if !report.others.is_empty() {
        lines.push(
            "Then let others join, under their old numbers or new ones, on empty directories:".to_owned(),
        );
    }
    let others = report.others.iter().map(|broker| format!("  tidemill cluster add --broker {broker}"));
    lines.extend(others);
    lines
}

fn row(finding: &ShardFinding) -> Vec<String> {
    let shard = finding.shard.to_string();
    let none = || "-".to_owned();
    match &finding.held {
        Ok(held) => vec![
            shard,
            held.last.index.to_string(),
            held.last.term.to_string(),
            held.committed.map_or_else(none, |index| index.to_string()),
            uncommitted(held).to_string(),
            held.applied.map_or_else(none, |applied| applied.index.to_string()),
            group(held),
            held.doubt.as_ref().map_or_else(String::new, |doubt| format!("its log lost something: {doubt}")),
        ],
        Err(reason) => {
            let mut row = vec![shard];
            row.extend(std::iter::repeat_with(none).take(6));
            row.push(format!("LOST: {reason}"));
            row
        }
    }
}

/// Entries that are not known to be committed: some may have been acknowledged.
fn uncommitted(held: &HeldReplica) -> u64 {
    held.last.index.get().saturating_sub(held.committed.map_or(0, |committed| committed.get()))
}

/// `1.1 2.1 3.1 4.1(learner)`.
fn group(held: &HeldReplica) -> String {
    let voters = held.voters.iter().map(ToString::to_string);
    let learners = held.learners.iter().map(|node| format!("{node}(learner)"));
    voters.chain(learners).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use tidemill_protocol::{BrokerId, ClusterId, NodeId, ShardId};

    use super::*;

    fn missing() -> RecoverReport {
        let finding = ShardFinding { shard: ShardId::new(3), held: Err("this broker has none".to_owned()) };
        RecoverReport {
            cluster: ClusterId::from_slice(&[7; 16]).expect("an id"),
            broker: BrokerId::new(1),
            incarnation: 2,
            shards: vec![finding],
            others: vec![BrokerId::new(2), BrokerId::new(3)],
            recovered: false,
        }
    }

    #[test]
    fn a_shard_without_a_replica_is_called_lost() {
        let report = missing();
        let row = row(&report.shards[0]);
        assert_eq!((row.len(), row[0].as_str()), (8, "3"));
        assert!(row[7].contains("LOST"), "{row:?}");
        let document = document(&report);
        assert_eq!(document["shards"][0]["missing"], "this broker has none");
        assert_eq!(document["lost_brokers"], json!([2, 3]));
    }

    #[test]
    fn what_to_do_next_is_a_command() {
        let mut report = missing();
        assert!(
            next(&report, "d")
                .iter()
                .any(|line| line.trim() == "tidemill cluster recover --data-dir d --accept-loss")
        );
        report.recovered = true;
        assert!(next(&report, "d").iter().any(|line| line.trim() == "tidemill cluster add --broker 3"));
        assert_eq!(nodes(&[NodeId::new(BrokerId::new(1), 2)]).len(), 1);
    }
}
