//! `tidemill cluster init`.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use serde_json::json;
use tidemill_protocol::BrokerId;
use tidemill_server::{
    ClusterDirectoryError, ClusterPlan, DEFAULT_PORT, DurabilitySetting, SHARDS_OF_SEVERAL_DEFAULT,
};

use crate::error::CliError;
use crate::output;
use crate::text::counted;

/// See `tidemill cluster init`.
#[derive(Debug, Args)]
pub(crate) struct Init {
    /// Where the plan is written; the directory is made.
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// The numbers of the brokers that form the cluster: 1 2 3, 1,2,3, or repeated.
    #[arg(
        long = "broker",
        value_name = "N",
        required = true,
        num_args = 1..,
        value_delimiter = ',',
        value_parser = broker_number
    )]
    brokers: Vec<u32>,
    /// Data shards, fixed for good: more than there will ever be brokers, so that each gets some.
    #[arg(
        long,
        value_name = "N",
        default_value_t = SHARDS_OF_SEVERAL_DEFAULT,
        value_parser = clap::value_parser!(u16).range(1..=1024)
    )]
    shards: u16,
    /// When a record counts as written, fixed for good.
    #[arg(long, value_enum, default_value_t = Durability::Fsync)]
    durability: Durability,
}

/// Ranges are none: a cluster has few brokers.
fn broker_number(text: &str) -> Result<u32, String> {
    text.trim().parse().map_err(|_| "brokers are named one by one: 1 2 3, 1,2,3, or repeated".to_owned())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Durability {
    /// When it is on the disks of a majority.
    Fsync,
    /// When a majority has it in memory; it is on their disks soon after.
    Replicated,
}

impl From<Durability> for DurabilitySetting {
    fn from(durability: Durability) -> Self {
        match durability {
            Durability::Fsync => Self::Fsync,
            Durability::Replicated => Self::Replicated,
        }
    }
}

pub(super) fn run(init: &Init, json: bool) -> Result<(), CliError> {
    let plan = planned(init)?;
    let commands = commands(&init.dir, &plan.brokers);
    let document = json!({
        "dir": init.dir, "cluster": plan.cluster.to_string(), "brokers": plan.brokers, "shards": plan.shards,
        "durability": plan.durability, "commands": commands,
    });
    output::print(json, &document, || explain(&init.dir, &plan, &commands))?;
    if plan.brokers.len() == 2 {
        eprintln!("{TWO_BROKERS}");
    }
    Ok(())
}

/// A majority of two is both.
const TWO_BROKERS: &str = "\
warning: a cluster of two survives no failure: where either is away, nothing can be written. Plan
three, or one, which grows (`tidemill cluster add`); three survive the loss of one.";

fn planned(init: &Init) -> Result<ClusterPlan, CliError> {
    let brokers = init.brokers.iter().copied();
    let plan = ClusterPlan::new(brokers, Some(init.shards), Some(init.durability.into())).map_err(failed)?;
    plan.write(&init.dir).map_err(failed)?;
    Ok(plan)
}

fn failed(error: ClusterDirectoryError) -> CliError {
    match error {
        ClusterDirectoryError::Invalid(_)
        | ClusterDirectoryError::Exists(_)
        | ClusterDirectoryError::Occupied { .. } => CliError::usage(error.to_string()),
        other => CliError::other(other.to_string()),
    }
}

fn explain(dir: &Path, plan: &ClusterPlan, commands: &[String]) {
    let (cluster, durability, dir) = (plan.cluster, plan.durability, dir.display());
    let shards = counted(usize::from(plan.shards), "data shard");
    println!("planned cluster {cluster} in {dir}: {}", counted(plan.brokers.len(), "broker"));
    println!("({shards} and durability {durability}, for good)");
    println!();
    println!("{dir} holds the cluster's key: whoever has it can be one of its brokers. Bring a copy to each");
    println!("broker's machine in a way that nobody else reads, and keep one: clients trust its ca.pem.");
    println!();
    println!("Start every broker; on one machine, for example:");
    commands.iter().for_each(|command| println!("  {command}"));
    println!("On several, --listen and --seed name their own addresses. Then:");
    println!("  tidemill cluster status");
    println!();
    println!(
        "After the first start take --cluster out of each broker's settings, and delete the copies of {dir}"
    );
    println!(
        "but one: brokers whose directories were wiped, and that find it, could form the cluster anew, empty."
    );
    println!("From then on the same lines without --cluster start them.");
}

/// Brokers on one machine have ports side by side, and listen for each other ten ports further: so many fit before the second ten.
const PORTS_SIDE_BY_SIDE: u16 = 10;

/// What starts each broker, if all of them run on one machine.
fn commands(dir: &Path, brokers: &[BrokerId]) -> Vec<String> {
    let dir = quoted(&dir.display().to_string());
    let ports: Vec<u16> = (0..).map(port).take(brokers.len()).collect();
    let lines = brokers.iter().zip(&ports).enumerate().map(|(place, (broker, port))| {
        // The second is the first one's seed, and the first that of all others.
        let seed = if place == 0 { ports.get(1) } else { ports.first() };
        let seed =
            seed.map_or_else(String::new, |port| format!(" --seed 127.0.0.1:{}", port + PORTS_SIDE_BY_SIDE));
        format!(
            "tidemill server --cluster {dir} --broker-id {broker} --data-dir tidemill-{broker} \
             --listen 127.0.0.1:{port}{seed}"
        )
    });
    lines.collect()
}

/// The port for clients of the broker at this place: tens of clients' ports and of brokers' ports take turns.
const fn port(place: u16) -> u16 {
    DEFAULT_PORT + place / PORTS_SIDE_BY_SIDE * 2 * PORTS_SIDE_BY_SIDE + place % PORTS_SIDE_BY_SIDE
}

/// As a shell takes it for one word.
fn quoted(text: &str) -> String {
    let is_plain = |character: char| character.is_ascii_alphanumeric() || "/._-".contains(character);
    if !text.is_empty() && text.chars().all(is_plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use tidemill_server::{BrokerConfig, FORMING_BROKERS_MAX};

    use super::*;

    fn numbered(brokers: std::ops::RangeInclusive<u32>) -> Vec<BrokerId> {
        brokers.map(BrokerId::new).collect()
    }

    #[test]
    fn every_broker_is_started_with_one_seed() {
        assert_eq!(
            commands(Path::new("plan"), &numbered(1..=3)),
            [
                "tidemill server --cluster plan --broker-id 1 --data-dir tidemill-1 --listen 127.0.0.1:9630 \
                 --seed 127.0.0.1:9641",
                "tidemill server --cluster plan --broker-id 2 --data-dir tidemill-2 --listen 127.0.0.1:9631 \
                 --seed 127.0.0.1:9640",
                "tidemill server --cluster plan --broker-id 3 --data-dir tidemill-3 --listen 127.0.0.1:9632 \
                 --seed 127.0.0.1:9640",
            ]
        );
        let alone = commands(Path::new("/srv/my plan"), &numbered(7..=7));
        assert_eq!(
            alone,
            ["tidemill server --cluster '/srv/my plan' --broker-id 7 --data-dir tidemill-7 \
              --listen 127.0.0.1:9630"]
        );
    }

    /// The ports are those that a broker takes by itself.
    #[test]
    fn no_two_brokers_of_one_machine_want_the_same_port() {
        let mut taken = BTreeSet::new();
        let count = u16::try_from(FORMING_BROKERS_MAX).expect("few");
        for place in 0..count {
            let config =
                BrokerConfig { listen: ([127, 0, 0, 1], port(place)).into(), ..BrokerConfig::default() };
            assert_eq!(config.peer_listen().port(), port(place) + PORTS_SIDE_BY_SIDE);
            assert!(taken.insert(config.listen.port()), "{place}");
            assert!(taken.insert(config.peer_listen().port()), "{place}");
        }
    }

    #[test]
    fn a_cluster_is_planned_once_and_what_makes_none_is_refused() {
        let home = tempfile::tempdir().expect("a directory");
        let dir = home.path().join("plan");
        let plan = |brokers: &[u32]| {
            let (dir, brokers, durability) = (dir.clone(), brokers.to_vec(), Durability::Replicated);
            planned(&Init { dir, brokers, shards: 3, durability })
        };
        assert_eq!(plan(&[1, 1]).expect_err("twice").exit_code(), 2);
        assert_eq!(broker_number("12"), Ok(12));
        assert!(broker_number("1..3").is_err_and(|reason| reason.contains("one by one")));
        let made = plan(&[3, 1, 2]).expect("planned");
        assert_eq!(ClusterPlan::read(&dir).expect("reads"), made);
        assert_eq!(made.brokers, numbered(1..=3));
        assert_eq!((made.shards, made.durability), (3, DurabilitySetting::Replicated));
        let again = plan(&[1]).expect_err("it is there");
        assert!(again.exit_code() == 2 && again.to_string().contains("holds a cluster already"), "{again}");
    }

    #[test]
    fn a_directory_is_one_word_of_a_shell() {
        assert_eq!(quoted("./plan-1"), "./plan-1");
        assert_eq!(quoted("my plan"), "'my plan'");
        assert_eq!(quoted("it's"), r"'it'\''s'");
        assert_eq!(quoted(""), "''");
    }
}
