//! Kills a broker at random under load, and checks what is left.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use tidemill_cluster_tests::chaos::{ChaosConfig, run};

/// Kills a broker at random under load, and checks that nothing was lost, doubled or reordered.
#[derive(Parser)]
struct Arguments {
    /// How long the broker is under fire.
    #[arg(long, default_value_t = 15.0)]
    minutes: f64,
    /// All random choices follow from it. By default another one each time.
    #[arg(long)]
    seed: Option<u64>,
    /// Records per second of each of the five producers.
    #[arg(long, default_value_t = 100)]
    rate: u32,
    /// Where the broker keeps its data, which stays there. By default a temporary directory.
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
    config.rate = arguments.rate;
    config.directory = arguments.directory;
    config.verbose = true;
    println!(
        "A broker is killed with kill -9 at random moments for {:.0} s while five producers, three readers",
        duration.as_secs_f64()
    );
    println!("and two hosted consumers use it; then everything is read back and checked. Seed {seed}.\n");
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
