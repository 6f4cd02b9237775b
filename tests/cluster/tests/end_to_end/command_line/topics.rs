//! `tidemill topic`, and `tidemill status`.

use serde_json::json;
use tidemill_cluster_tests::Outcome;

use super::terminal::Terminal;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn topics_are_made_shown_changed_and_deleted() -> Outcome<()> {
    let terminal = Terminal::new().await?;
    assert_eq!(terminal.json("topic list").await?, json!([]));
    assert_eq!(terminal.done("topic list").await?, "(none)\n");
    let flags = "--partitions 3 --retention 12h --retention-bytes 1GiB --segment-bytes 4MiB --segment-time 1h \
                 --batch-bytes-max 2MiB --log-append-time true";
    let made = terminal.json(&format!("topic create plays {flags}")).await?;
    let config = json!({
        "retention_ms": 43_200_000, "retention_bytes": 1 << 30, "segment_bytes": 4 << 20, "segment_ms": 3_600_000,
        "batch_bytes_max": 2 << 20, "log_append_time": true,
    });
    assert_eq!((&made["name"], &made["config"]), (&json!("plays"), &config));
    assert_eq!(made["partitions"].as_array().map(Vec::len), Some(3));
    assert_eq!(
        terminal.done("topic create beside --with plays").await?,
        "created topic beside with 3 partitions\n"
    );
    terminal.done("topic create plays --partitions 3 --if-not-exists").await?;
    assert!(terminal.fails("topic create plays", 1).await?.contains("TOPIC_EXISTS"));
    assert!(terminal.fails("topic create a/b", 1).await?.contains("INVALID_TOPIC"));

    terminal.fed("produce plays --partition 1", "a\nb\n").await?;
    let list = terminal.done("topic list").await?;
    assert!(list.starts_with("NAME") || list.trim_start().starts_with("NAME"), "{list}");
    assert!(list.contains("plays") && list.contains("12 h") && list.contains("murmur2 of the key"), "{list}");
    let shards = |described: &serde_json::Value| -> Vec<serde_json::Value> {
        described["partitions"].as_array().into_iter().flatten().map(|p| p["shard"].clone()).collect()
    };
    let described = terminal.json("topic describe plays").await?;
    assert_eq!(described["partitions"][1]["high_watermark"], 2);
    assert_eq!(shards(&described), shards(&terminal.json("topic describe beside").await?));
    let table = terminal.done("topic describe plays").await?;
    assert!(table.contains("HIGH WATERMARK") && table.contains("1.0 GiB"), "{table}");
    assert!(table.contains("segment time") && table.contains("the broker's"), "{table}");

    let altered = terminal.json("topic alter plays --retention forever --retention-bytes unlimited").await?;
    assert_eq!(altered["config"]["retention_ms"], -1);
    assert_eq!(altered["config"]["retention_bytes"], -1);
    assert_eq!(altered["config"]["segment_bytes"], 4 << 20, "what is not named stays");
    assert_eq!(terminal.done("topic delete plays").await?, "deleted topic plays\n");
    for line in ["topic describe plays", "topic alter plays --retention 1d", "topic delete plays"] {
        let said = terminal.fails(line, 4).await?;
        assert!(said.contains("'plays'") && said.contains("UNKNOWN_TOPIC"), "{line}: {said}");
    }
    assert_eq!(terminal.json("topic list").await?.as_array().map(Vec::len), Some(1));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_shows_every_shard() -> Outcome<()> {
    let terminal = Terminal::new().await?;
    terminal.done("topic create t --partitions 4").await?;
    let status = terminal.json("status").await?;
    assert_eq!((&status["durability"], &status["produce_refused"]), (&json!("fsync"), &json!(false)));
    let shards = status["shards"].as_array().ok_or("shards")?;
    // The controller, and four for data.
    assert_eq!(shards.len(), 5);
    assert!(shards.iter().all(|shard| shard["reason"] == "" && shard["term"].as_u64() > Some(0)), "{status}");
    assert_eq!(shards.iter().filter_map(|shard| shard["partitions"].as_u64()).sum::<u64>(), 4);
    let table = terminal.done("status").await?;
    assert!(table.contains("CHECKPOINTED") && table.contains("free of"), "{table}");
    Ok(())
}
