//! `tidemill bench`, as short as it goes.

use tidemill_cluster_tests::Outcome;

use super::terminal::Terminal;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_is_measured() -> Outcome<()> {
    let terminal = Terminal::new().await?;
    terminal.done("topic create b --partitions 2").await?;
    let produced =
        terminal.json("bench produce --topic b --seconds 0.2 --record-bytes 100 --batch-bytes 64KiB").await?;
    let records = produced["records"].as_u64().ok_or("a number")?;
    assert!(records > 0 && produced["bytes"] == records * 100, "{produced}");
    let consumed = terminal.json("bench consume --topic b --seconds 30").await?;
    assert_eq!(consumed["records"], records, "all that was acknowledged");
    let latency = terminal.json("bench latency --topic b --seconds 0.3 --rate 100").await?;
    assert_eq!(latency["records"], latency["acknowledged"], "{latency}");
    assert!(latency["p50_us"].as_u64() > Some(0) && latency["p50_us"].as_u64() <= latency["max_us"].as_u64());
    let said = terminal.done("bench produce --topic b --seconds 0.1 --compression lz4").await?;
    assert!(said.contains("records/s"), "{said}");
    for what in ["produce", "latency", "consume"] {
        assert!(terminal.fails(&format!("bench {what} --topic nowhere"), 4).await?.contains("'nowhere'"));
    }
    Ok(())
}
