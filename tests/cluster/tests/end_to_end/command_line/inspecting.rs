//! `tidemill inspect`.

use serde_json::Value;
use tidemill_cluster_tests::Outcome;

use super::terminal::Terminal;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_files_of_a_stopped_broker_are_looked_into() -> Outcome<()> {
    let mut terminal = Terminal::new().await?;
    terminal.done("topic create plays --partitions 2").await?;
    terminal.fed("produce plays --partition 1", "one\ntwo\nthree\n").await?;
    terminal.done("group commit royalties plays --partition 1 --offset 2").await?;
    let topic = terminal.json("topic describe plays").await?;
    let (id, shard) = (&topic["id"], &topic["partitions"][1]["shard"]);
    let data = terminal.broker.data_dir().display().to_string();
    // Beside a broker, a state is not opened.
    let state = format!("inspect state {data} --shard {shard}");
    assert!(terminal.fails(&state, 2).await?.contains("stop it first"));
    assert!(terminal.broker.stop().await?.success());

    let wal = terminal.json(&format!("inspect wal {data}")).await?;
    let frames: u64 =
        wal["segments"].as_array().into_iter().flatten().filter_map(|s| s["frames"].as_u64()).sum();
    let every = terminal.documents(&format!("inspect wal {data} --frames")).await?;
    let (last, every) = every.split_last().ok_or("frames")?;
    assert_eq!(last["segments"], wal["segments"], "the same document behind the frames");
    assert_eq!(every.len() as u64, frames);
    assert!(every.iter().any(|frame| frame["kind"] == "entry" && frame["shard"] == *shard), "{every:?}");
    let table = terminal.done(&format!("inspect wal {data}")).await?;
    assert!(
        table.contains("SEGMENT") && table.contains("ENTRIES") && table.contains("0 (controller)"),
        "{table}"
    );
    assert!(table.contains(": the log's end") && !table.contains("DAMAGED"), "{table}");
    let held = wal["shards"].as_array().into_iter().flatten().find(|held| held["shard"] == *shard);
    assert!(held.is_some_and(|held| held["last_entry"].as_u64() > Some(0)), "{wal}");
    assert!(terminal.done(&format!("inspect wal {data} --frames")).await?.contains("crc"));

    let id = id.as_str().ok_or("an id")?;
    let shard_dir = format!("{data}/shard-{:02}", shard.as_u64().ok_or("a shard")?);
    let segment = format!("{shard_dir}/{id}-1/00000000000000000000.log");
    let batches = terminal.documents(&format!("inspect segment {segment}")).await?;
    assert_eq!(
        (&batches[0]["base_offset"], batches.last().map(|b| &b["last_offset"])),
        (&0.into(), Some(&2.into()))
    );
    let text = terminal.done(&format!("inspect segment {segment}")).await?;
    assert!(text.contains("base offset  0") && text.contains("offsets 0 to"), "{text}");
    assert!(text.ends_with("each with a good checksum; the next offset is 3\n"), "{text}");

    let opened = terminal.json(&state).await?;
    assert_eq!(opened["topics"], serde_json::json!(["plays"]));
    let partition = opened["partitions"].as_array().into_iter().flatten();
    let partition: Vec<&Value> =
        partition.filter(|p| p["partition"].as_str() == Some(&format!("{id}-1"))).collect();
    assert_eq!(partition.first().map(|partition| &partition["high_watermark"]), Some(&3.into()), "{opened}");
    let table = terminal.done(&state).await?;
    assert!(table.contains("plays-1 ") && table.contains("HIGH WATERMARK"), "{table}");

    let controller = terminal.json(&format!("inspect state {data}")).await?;
    assert_eq!(controller["topics"], serde_json::json!(["plays"]));
    assert_eq!(controller["deployments"], serde_json::json!([]));
    let table = terminal.done(&format!("inspect state {data}")).await?;
    assert!(table.contains("plays") && table.contains("Shard 0 is the controller"), "{table}");
    assert!(!table.contains("1970"), "{table}");

    // Damage is found, and is a check that failed.
    let mut bytes = std::fs::read(&segment)?;
    let middle = bytes.windows(3).position(|window| window == b"two").ok_or("the record")?;
    bytes[middle] ^= 1;
    std::fs::write(&segment, bytes)?;
    let damaged = terminal.fails(&format!("inspect segment {segment}"), 5).await?;
    assert!(damaged.contains("batches before it") && damaged.contains("are whole"), "{damaged}");
    terminal.fails(&format!("inspect wal {data}/nowhere"), 2).await?;
    terminal.fails(&format!("inspect state {data} --shard 77"), 2).await?;
    Ok(())
}
