//! The short form of `cargo xtask chaos`.

use std::time::Duration;

use tidemill_cluster_tests::Outcome;
use tidemill_cluster_tests::chaos::{ChaosConfig, run};

/// `TIDEMILL_CHAOS_SECONDS` says how long the broker is under fire, `TIDEMILL_CHAOS_SEED` repeats a run.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_doubled_or_reordered_under_fire() -> Outcome<()> {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>());
    let seconds = number("TIDEMILL_CHAOS_SECONDS").transpose()?.unwrap_or(60);
    let seed = number("TIDEMILL_CHAOS_SEED").transpose()?.unwrap_or(20_260_101);
    let mut config = ChaosConfig::new(Duration::from_secs(seconds), seed);
    config.verbose = true;
    let report = run(&config).await?;
    println!("{report}");
    assert!(report.is_good(), "{report}");
    assert!(
        report.kills.total() > 0 && report.direct_acknowledged > 0 && report.routed_acknowledged > 0,
        "{report}"
    );
    Ok(())
}
