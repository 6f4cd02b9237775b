use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// Tidemill measured beside what the machine gives without it.
#[derive(Debug, Parser)]
#[command(name = "bench")]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

const SINGLE_EXAMPLES: &str = "\
Examples:
  cargo xtask bench single                                  all rows; writes target/bench/single.json
  cargo xtask bench single --quick --rows produce,latency   a look at some rows; writes target/bench/single-quick.json
  cargo xtask bench single --list                           the rows' short names";

const CLUSTER_EXAMPLES: &str = "\
Examples:
  cargo xtask bench cluster                                   all rows; writes target/bench/cluster.json
  cargo xtask bench cluster --quick --rows failover,rebuild   a look at some rows; writes target/bench/cluster-quick.json
  cargo xtask bench cluster --list                            the rows' short names";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// One broker, every row of docs/benchmarks.md.
    #[command(after_help = SINGLE_EXAMPLES)]
    Single(Options),
    /// Three brokers on this machine, every row of docs/benchmarks.md.
    #[command(after_help = CLUSTER_EXAMPLES)]
    Cluster(Options),
    /// The bare quinn peer, for measurements that start it.
    #[command(hide = true)]
    Peer(Peer),
}

// No doc comment: the commands that take them say what they are.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Short legs and few rounds, for development. What it shows is no measurement.
    #[arg(long)]
    pub(crate) quick: bool,
    /// Only these families of rows, by short name.
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    pub(crate) rows: Vec<String>,
    /// Say which rows there are, and stop.
    #[arg(long)]
    pub(crate) list: bool,
    /// A directory on the disk to measure; by default that of the target directory.
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
    /// Seconds of one leg, instead of 20, or with three brokers 10.
    #[arg(long, value_name = "SECONDS")]
    pub(crate) leg_seconds: Option<f64>,
    /// Rounds, instead of 5.
    #[arg(long, value_name = "N")]
    pub(crate) rounds: Option<usize>,
}

#[derive(Debug, Args)]
pub(crate) struct Peer {
    /// Where its authority and certificate are kept.
    #[arg(long)]
    pub(crate) tls_dir: PathBuf,
}
