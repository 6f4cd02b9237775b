//! Does to brokers under load what can happen to them, and checks what is left.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use tidemill_cluster_tests::chaos::{ChaosConfig, FaultKind, run};

/// Kills brokers, cuts them off, breaks their disks and lets some join and leave at random under load, and checks that nothing was
/// lost, doubled or reordered.
#[derive(Parser)]
struct Arguments {
    /// How long the brokers are under fire.
    #[arg(long, default_value_t = 15.0)]
    minutes: f64,
    /// All random choices follow from it. By default another one each time.
    #[arg(long)]
    seed: Option<u64>,
    /// Brokers of the cluster. One is a broker alone, which is only killed and stopped.
    #[arg(long, default_value_t = 3)]
    brokers: u32,
    /// Only these faults, by their names with commas between. By default all that are known to be survived.
    #[arg(long, value_name = "KIND", value_delimiter = ',')]
    faults: Vec<FaultKind>,
    /// Faults that can't be done on this machine are a failure, instead of SKIPPED, and so are brokers that join and get no disk for them;
    /// and what was never done by the time each fault has had its turn.
    #[arg(long)]
    require_all: bool,
    /// Records per second of each of the six producers.
    #[arg(long, default_value_t = 100)]
    rate: u32,
    /// Where the brokers keep their data, which stays there if something is found. By default a temporary directory.
    #[arg(long, value_name = "DIR")]
    directory: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let seed = arguments.seed.unwrap_or_else(seed_of_now);
    let Ok(duration) = Duration::try_from_secs_f64(arguments.minutes * 60.0) else {
        eprintln!("chaos: --minutes is a length of time");
        return ExitCode::from(2);
    };
    let mut config = ChaosConfig::new(duration, seed);
    config.brokers = arguments.brokers.max(1);
    config.faults = arguments.faults;
    config.require_all = arguments.require_all;
    config.rate = arguments.rate;
    config.directory = arguments.directory;
    config.verbose = true;
    println!(
        "{} broker(s) under fire for {:.0} s while six producers, readers, and two hosted consumers use them;",
        config.brokers,
        duration.as_secs_f64()
    );
    println!("then everything is read back and checked. Seed {seed}.\n");
    match run(&config).await {
        Ok(report) => {
            println!("\n{report}");
            if report.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("chaos: {error}");
            ExitCode::FAILURE
        }
    }
}

fn seed_of_now() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    // Short enough to type.
    (now.as_nanos() % 1_000_000_007) as u64
}
