//! The short form of `cargo xtask chaos`.

use std::time::Duration;

use tidemill_cluster_tests::Outcome;
use tidemill_cluster_tests::chaos::{ChaosConfig, Report, run};
use tokio::sync::Mutex;

/// One after the other: each has all of the machine.
static TURN: Mutex<()> = Mutex::const_new(());

/// `TIDEMILL_CHAOS_SECONDS` says how long the brokers are under fire, `TIDEMILL_CHAOS_SEED` repeats a run.
async fn under_fire(brokers: u32, seconds: u64) -> Outcome<Report> {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>());
    let seconds = number("TIDEMILL_CHAOS_SECONDS").transpose()?.unwrap_or(seconds);
    let seed = number("TIDEMILL_CHAOS_SEED").transpose()?.unwrap_or(20_260_101);
    let mut config = ChaosConfig::new(Duration::from_secs(seconds), seed);
    config.brokers = brokers;
    config.verbose = true;
    let _turn = TURN.lock().await;
    let report = run(&config).await?;
    println!("{report}");
    assert!(report.is_good(), "{report}");
    assert!(
        report.fires.total() > 0 && report.direct_acknowledged > 0 && report.routed_acknowledged > 0,
        "{report}"
    );
    Ok(report)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_broker_under_fire_loses_doubles_and_reorders_nothing() -> Outcome<()> {
    let report = under_fire(1, 20).await?;
    assert!(report.fires.kills > 0, "{report}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_brokers_under_fire_lose_double_and_reorder_nothing() -> Outcome<()> {
    let report = under_fire(3, 45).await?;
    let members = report.fires.members;
    assert!(members.joined > 0 && members.removed == members.joined, "{report}");
    Ok(())
}
