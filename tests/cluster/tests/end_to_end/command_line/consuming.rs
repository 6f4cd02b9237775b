//! `tidemill consume`.

use std::fs::File;
use std::process::Stdio;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tidemill_cluster_tests::waiting::eventually;
use tidemill_cluster_tests::{Outcome, plugins};

use super::terminal::Terminal;
use crate::kit::PATIENCE;

/// A topic of one partition with ten records, of ten days.
async fn ten_days(terminal: &Terminal, topic: &str) -> Outcome<()> {
    const FIRST_MS: u64 = 1_767_225_600_000;
    terminal.done(&format!("topic create {topic} --retention forever")).await?;
    let line = |day: u64| format!("{{\"value\":\"{day}\",\"timestamp\":{}}}\n", FIRST_MS + day * 86_400_000);
    let lines: String = (0..10).map(line).collect();
    terminal.fed(&format!("produce {topic} --format json"), lines).await?;
    Ok(())
}

fn lines(numbers: std::ops::Range<u32>) -> String {
    numbers.map(|number| format!("{number}\n")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reading_begins_and_ends_where_one_says() -> Outcome<()> {
    let terminal = Terminal::new().await?;
    ten_days(&terminal, "t").await?;
    for (flags, expected) in [
        ("", 0..10),
        ("--from earliest", 0..10),
        ("--from latest", 0..0),
        ("--from 7", 7..10),
        ("--from 2026-01-04", 3..10),
        ("--from 2026-01-04T00:00:00.001Z", 4..10),
        ("--from @1767830400000", 7..10),
        ("--from -1h", 0..0),
        ("--from earliest --max 3", 0..3),
        ("--from 4 --max 2", 4..6),
        // Fewer are there: it ends where the topic does.
        ("--from earliest --max 20", 0..10),
        ("--from latest --max 1", 0..0),
        ("--max 0", 0..0),
    ] {
        // "An hour ago" lies behind all of them only as long as that is past.
        if flags == "--from -1h" && SystemTime::now() < UNIX_EPOCH + Duration::from_secs(1_768_100_000) {
            continue;
        }
        assert_eq!(terminal.done(&format!("consume t {flags}")).await?, lines(expected), "{flags}");
    }
    terminal.done("topic create parts --partitions 3").await?;
    for partition in 0..3 {
        terminal.fed(&format!("produce parts --partition {partition}"), format!("{partition}\n")).await?;
    }
    assert_eq!(terminal.done("consume parts --partition 1").await?, "1\n");
    let mut two: Vec<Value> = terminal.documents("consume parts --partition 0 --partition 2").await?;
    two.sort_by_key(|record| record["partition"].as_u64());
    let values: Vec<&Value> = two.iter().map(|record| &record["value"]).collect();
    assert_eq!(values, ["0", "2"]);
    assert_eq!(two[0]["topic"], "parts");
    assert_eq!(terminal.done("consume parts --partition 1 --from -5m").await?, "1\n", "it is new");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_sees_records_as_they_come() -> Outcome<()> {
    let terminal = Terminal::new().await?;
    terminal.done("topic create t").await?;
    let (mut child, mut printed) = terminal.started("consume t --follow --from earliest --group g")?;
    for number in 0..3 {
        terminal.fed("produce t", format!("{number}\n")).await?;
        assert_eq!(printed.line().await?, number.to_string());
    }
    // Interrupted it commits what it printed, and ends well.
    let id = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)).ok_or("it runs")?;
    kill_process(id, Signal::INT)?;
    assert!(tokio::time::timeout(PATIENCE, child.wait()).await??.success());
    assert_eq!(position(&terminal, "g").await?, Some(3));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_filter_runs_in_the_broker() -> Outcome<()> {
    let terminal = Terminal::new().await?;
    plugins::upload(&terminal.broker.client().await?, "json-filter").await?;
    terminal.done("topic create plays").await?;
    let line = |n: u32| {
        format!("{{\"n\":{n},\"device\":\"{}\"}}\n", if n.is_multiple_of(50) { "car" } else { "phone" })
    };
    let plays: String = (0..500).map(line).collect();
    terminal.fed("produce plays --linger 100ms", &plays).await?;
    let cars: String = (0..500).step_by(50).map(line).collect();
    let condition = "where=device == \"car\"";
    let filtered =
        ["consume", "plays", "--from", "earliest", "--filter", "json-filter@1", "--set", condition];
    let ran = terminal.tidemill(&[&filtered[..], &["--stats"]].concat(), "").await?;
    assert_eq!((ran.code, &ran.stdout), (0, &cars), "{}", ran.stderr);
    assert!(ran.stderr.starts_with("10 records; "), "{}", ran.stderr);
    let deploy = ["deploy", "filter", "cars", "--plugin", "json-filter", "--set", condition];
    terminal.tidemill(&deploy, "").await?.succeeded("deploy")?;
    assert_eq!(terminal.done("consume plays --from earliest --filter cars").await?, cars);
    let said = terminal.fails("consume plays --filter nobody", 4).await?;
    assert!(said.contains("nobody"), "{said}");
    let bad = ["consume", "plays", "--filter", "json-filter", "--set", "where=device =="];
    let ran = terminal.tidemill(&bad, "").await?;
    assert!(ran.code == 1 && ran.stderr.contains("BAD_PLUGIN_CONFIG"), "{ran:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_reads_on_where_it_was() -> Outcome<()> {
    let terminal = Terminal::new().await?;
    ten_days(&terminal, "t").await?;
    assert_eq!(terminal.done("consume t --group g --max 4").await?, lines(0..4));
    assert_eq!(position(&terminal, "g").await?, Some(4));
    assert_eq!(terminal.done("consume t --group g --max 1").await?, lines(4..5));
    assert_eq!(
        terminal.done("consume t --group g --from latest").await?,
        lines(5..10),
        "--from is for a new group"
    );
    assert_eq!(terminal.done("consume t --group g").await?, "");
    assert_eq!(terminal.done("consume t --group late --from 8").await?, lines(8..10));
    Ok(())
}

/// What could not be printed is not committed: the next one gets it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_commits_nothing_that_nobody_got() -> Outcome<()> {
    let terminal = Terminal::new().await?;
    ten_days(&terminal, "t").await?;
    // Nobody reads: the pipe is closed. That is no error of the command's.
    let (reader, writer) = std::io::pipe()?;
    drop(reader);
    assert_eq!(consume_into(&terminal, "closed", writer.into()).await?, Some(0));
    // The disk that it is to be written to is full. That is one.
    let full = File::options().write(true).open("/dev/full")?;
    assert_eq!(consume_into(&terminal, "full", full.into()).await?, Some(1));
    for group in ["closed", "full"] {
        assert_eq!(position(&terminal, group).await?.unwrap_or(0), 0, "{group}");
        assert_eq!(terminal.done(&format!("consume t --group {group}")).await?, lines(0..10));
        assert_eq!(position(&terminal, group).await?, Some(10));
    }
    Ok(())
}

async fn consume_into(terminal: &Terminal, group: &str, output: Stdio) -> Outcome<Option<i32>> {
    let mut command = terminal.command()?;
    command
        .args(["consume", "t", "--group", group])
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(Stdio::null());
    Ok(tokio::time::timeout(PATIENCE, command.status()).await??.code())
}

/// Where a group stands in its one partition; `None` where it does not stand anywhere.
async fn position(terminal: &Terminal, group: &str) -> Outcome<Option<u64>> {
    let ran = terminal.tidemill(&["group", "describe", group, "--json"], "").await?;
    if ran.code == 4 {
        return Ok(None);
    }
    let described: Value = serde_json::from_str(&ran.succeeded("describe")?)?;
    Ok(described["positions"][0]["offset"].as_u64())
}

/// A reader whose broker goes away and comes back goes on by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_outlives_its_broker() -> Outcome<()> {
    let mut terminal = Terminal::new().await?;
    terminal.done("topic create t").await?;
    let (mut child, mut printed) = terminal.started("consume t --follow --from earliest")?;
    terminal.fed("produce t", "before\n").await?;
    assert_eq!(printed.line().await?, "before");
    terminal.broker.kill().await?;
    terminal.broker.restart().await?;
    let produced = async || terminal.fed("produce t", "after\n").await.ok().map(drop);
    eventually("the broker takes records again", PATIENCE, produced).await?;
    assert_eq!(printed.line().await?, "after");
    child.kill().await?;
    Ok(())
}
