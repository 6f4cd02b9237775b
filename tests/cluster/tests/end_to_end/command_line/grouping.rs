//! `tidemill group`.

use serde_json::json;
use tidemill_cluster_tests::Outcome;

use super::terminal::Terminal;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn positions_are_set_shown_moved_and_forgotten() -> Outcome<()> {
    let terminal = Terminal::new().await?;
    terminal.done("topic create t --partitions 2").await?;
    terminal.fed("produce t --partition 0", "a\nb\nc\n").await?;
    terminal.fed("produce t --partition 1 --format json", r#"{"value":"old","timestamp":1000}"#).await?;
    assert_eq!(terminal.json("group list").await?, json!([]));

    let said = terminal.done("group commit g t --partition 0 --offset 2").await?;
    assert_eq!(said, "g stands at 2 of t-0\n");
    assert_eq!(terminal.json("group list").await?, json!(["g"]));
    assert!(terminal.done("group list").await?.lines().any(|line| line.trim() == "g"));
    let described = terminal.json("group describe g").await?;
    let position = &described["positions"][0];
    assert_eq!(described["group"], "g");
    assert_eq!(
        (&position["topic"], &position["partition"], &position["offset"]),
        (&json!("t"), &json!(0), &json!(2))
    );
    assert_eq!((&position["high_watermark"], &position["behind"]), (&json!(3), &json!(1)));
    let table = terminal.done("group describe g").await?;
    assert!(table.contains("BEHIND") && table.contains(" 2 "), "{table}");
    assert_eq!(terminal.done("consume t --group g --partition 0").await?, "c\n");

    let moved = terminal.json("group seek g t --to earliest").await?;
    assert_eq!(moved["positions"], json!([{ "partition": 0, "offset": 0 }, { "partition": 1, "offset": 0 }]));
    assert_eq!(terminal.done("group seek g t --to latest --partition 1").await?, "g stands at 1 of t-1\n");
    assert_eq!(terminal.done("group seek g t --to 1 --partition 0").await?, "g stands at 1 of t-0\n");
    let beyond = terminal.done("group seek g t --to 77 --partition 0").await?;
    assert_eq!(beyond, "77 lies beyond the end of t-0: g stands at 3\n");
    // From that time on there is nothing in one partition, and everything in the other.
    let by_time = terminal.json("group seek g t --to 2020-01-01").await?;
    assert_eq!(
        by_time["positions"],
        json!([{ "partition": 0, "offset": 0 }, { "partition": 1, "offset": 1 }])
    );

    terminal.fails("group seek g t --to earliest --partition 2", 4).await?;
    let beyond = terminal.fails("group commit g t --partition 0 --offset 99", 1).await?;
    assert!(beyond.contains("OFFSET_OUT_OF_RANGE") && beyond.contains("beyond the end of t-0"), "{beyond}");
    terminal.fails("group commit g t --partition 2 --offset 0", 4).await?;
    terminal.fails("group commit g nowhere --partition 0 --offset 0", 4).await?;
    terminal.fails("group describe nobody", 4).await?;
    assert_eq!(terminal.json("group delete g").await?, json!({ "deleted": "g" }));
    terminal.fails("group describe g", 4).await?;
    terminal.fails("group delete g", 4).await?;
    Ok(())
}
