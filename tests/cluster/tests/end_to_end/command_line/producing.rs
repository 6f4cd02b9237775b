//! `tidemill produce`.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};
use tidemill_cluster_tests::fixtures;
use tidemill_cluster_tests::plugins;
use tidemill_cluster_tests::reading::read_all;
use tidemill_cluster_tests::waiting::eventually;
use tidemill_cluster_tests::{Outcome, fixtures::Fixture};
use tidemill_protocol::partitioner::partition_for_key;
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, ChildStdin};

use super::terminal::{Terminal, at_home, run};
use crate::kit::{PATIENCE, as_fixture, header_views};
use tidemill_cluster_tests::machine::unable;

/// What a topic has, by partition and offset, without the times.
async fn contents(terminal: &Terminal, topic: &str) -> Outcome<Vec<Value>> {
    let mut records = terminal.documents(&format!("consume {topic} --from earliest")).await?;
    for record in &mut records {
        let record = record.as_object_mut().ok_or("an object")?;
        record.remove("topic");
        record.remove("timestamp");
    }
    records.sort_by_key(|record| (record["partition"].as_u64(), record["offset"].as_u64()));
    Ok(records)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lines_become_records() -> Outcome<()> {
    let terminal = Terminal::new().await?;
    terminal.done("topic create t --partitions 3").await?;
    assert!(terminal.fed("produce t --partition 0", "one\ntwö\n\nlast").await?.starts_with("4 records"));
    terminal.fed("produce t --partition 1 --key-separator ::", "k::v::w\n::none\n").await?;
    terminal.fed("produce t --partition 2 --key k --header a=1 --header a=b=c", "v\n").await?;
    let values = json!([
        { "partition": 0, "offset": 0, "key": null, "value": "one", "headers": [] },
        { "partition": 0, "offset": 1, "key": null, "value": "twö", "headers": [] },
        { "partition": 0, "offset": 2, "key": null, "value": "", "headers": [] },
        { "partition": 0, "offset": 3, "key": null, "value": "last", "headers": [] },
        { "partition": 1, "offset": 0, "key": "k", "value": "v::w", "headers": [] },
        { "partition": 1, "offset": 1, "key": "", "value": "none", "headers": [] },
        { "partition": 2, "offset": 0, "key": "k", "value": "v",
          "headers": [{ "name": "a", "value": "1" }, { "name": "a", "value": "b=c" }] },
    ]);
    assert_eq!(Value::from(contents(&terminal, "t").await?), values);

    // Where no flag says where to, the key does.
    terminal.done("topic create keyed --partitions 5").await?;
    let lines: String = (0..40).map(|user| format!("{{\"user\":\"u-{user}\"}}\n")).collect();
    terminal.fed("produce keyed --value-field-key user", &lines).await?;
    let keyed = contents(&terminal, "keyed").await?;
    assert_eq!(keyed.len(), 40);
    for record in keyed {
        let key = record["key"].as_str().ok_or("a key")?;
        assert_eq!(record["partition"], partition_for_key(key.as_bytes(), 5).get(), "{record}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn json_says_all_of_a_record() -> Outcome<()> {
    let terminal = Terminal::new().await?;
    terminal.done("topic create t --partitions 2").await?;
    let lines = [
        r#"{"key":"u1","value":{"song":17},"headers":{"source":"web","none":null},"timestamp":1767225600000,"partition":1}"#,
        "",
        r#"{"value":null,"partition":1}"#,
        r#"{"key":"gone","value":null,"partition":1}"#,
        r#"{"key":"","value":"","partition":1}"#,
        r#"{"value":{"base16":"00ff"},"headers":[{"name":"a","value":"1"},{"name":"a","value":"2"}],"partition":1}"#,
    ];
    let answer = terminal.fed("produce t --format json --json", lines.join("\n")).await?;
    let answer: Value = serde_json::from_str(&answer)?;
    assert_eq!(
        (&answer["records"], &answer["last_offset"], &answer["last_partition"]),
        (&json!(5), &json!(4), &json!(1))
    );
    let read = terminal.documents("consume t --partition 1 --from earliest").await?;
    assert_eq!(read[0]["timestamp"], 1_767_225_600_000u64);
    let headers = json!([{ "name": "source", "value": "web" }, { "name": "none", "value": null }]);
    assert_eq!(read[0]["headers"], headers);
    let pairs: Vec<(&Value, &Value)> = read.iter().map(|record| (&record["key"], &record["value"])).collect();
    let expected = [
        (json!("u1"), json!("{\"song\":17}")),
        (Value::Null, Value::Null),
        (json!("gone"), Value::Null),
        (json!(""), json!("")),
        (Value::Null, json!({ "base16": "00ff" })),
    ];
    assert_eq!(pairs, expected.iter().map(|(key, value)| (key, value)).collect::<Vec<_>>());
    // A flag says where to, whatever the record says; and gives a key to those that have none.
    terminal.fed("produce t --format json --partition 0 --key k", lines[2]).await?;
    let read = terminal.documents("consume t --partition 0 --from earliest").await?;
    assert_eq!((&read[0]["key"], &read[0]["value"]), (&json!("k"), &Value::Null));
    // What is no text is kept letter for letter.
    let kept = r#"{"z":1,"a":12345678901234567890123,"f":1.10,"e":1e400}"#;
    terminal.done("topic create kept").await?;
    terminal.fed("produce kept --format json", format!("{{\"value\":{kept}}}\n")).await?;
    assert_eq!(terminal.done("consume kept").await?, format!("{kept}\n"));
    Ok(())
}

/// `consume --json | produce --format json` copies a topic: null and empty, Unicode, binary, headers, times, places.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_consume_prints_produce_takes() -> Outcome<()> {
    let terminal = Terminal::new().await?;
    let client = terminal.broker.client().await?;
    terminal.done("topic create from --partitions 3").await?;
    terminal.done("topic create to --partitions 3").await?;
    // The first of the 1 MiB values is the 500th.
    let fixtures = fixtures::records(5, 700);
    let producer = client.producer("from").batch_bytes(4 << 20).build().await?;
    for fixture in &fixtures {
        let headers = header_views(fixture);
        let mut record = match &fixture.value {
            Some(value) => tidemill_client::Record::new(value),
            None => tidemill_client::Record::default(),
        };
        if let Some(key) = &fixture.key {
            record = record.key(key);
        }
        let timestamp = tidemill_client::Timestamp::new(fixture.timestamp);
        producer.send_and_forget(record.headers(&headers).timestamp(timestamp)).await?;
    }
    producer.close().await?;
    let printed = terminal.done("consume from --from earliest --json").await?;
    terminal.fed("produce to --format json --batch-bytes 4MiB", &printed).await?;
    let strip = |all: tidemill_cluster_tests::reading::ByPartition| -> Vec<(u32, Vec<Fixture>)> {
        all.into_iter()
            .map(|(partition, records)| (partition, records.iter().map(as_fixture).collect()))
            .collect()
    };
    let (from, to) = (strip(read_all(&client, "from").await?), strip(read_all(&client, "to").await?));
    assert_eq!(from.iter().map(|(_, records)| records.len()).sum::<usize>(), fixtures.len());
    assert!(from == to, "the copy is the same, in the same partitions, in the same order");
    // Placed anew, by key, where the broker chooses.
    terminal.done("topic create routed --partitions 2").await?;
    terminal.fed("produce routed --format json --routed --batch-bytes 4MiB", &printed).await?;
    let routed = read_all(&client, "routed").await?;
    assert_eq!(routed.values().map(Vec::len).sum::<usize>(), fixtures.len());
    for record in routed.values().flatten() {
        if let Some(key) = &record.key {
            assert_eq!(record.partition, partition_for_key(key, 2));
        }
    }
    // Into fewer partitions it says what to do.
    terminal.done("topic create narrow").await?;
    let first_line =
        printed.lines().find(|line| !line.contains("\"partition\":0")).ok_or("of another partition")?;
    let ran = terminal.tidemill(&["produce", "narrow", "--format", "json"], first_line).await?;
    assert_eq!(ran.code, 4, "{ran:?}");
    assert!(ran.stderr.contains("--partition or --routed"), "{ran:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_broker_places_what_is_routed() -> Outcome<()> {
    let terminal = Terminal::new().await?;
    plugins::upload(&terminal.broker.client().await?, "field-hash").await?;
    terminal.done("topic create plays --partitions 4").await?;
    terminal.done("deploy partitioner by-user --plugin field-hash --topic plays --set field=user_id").await?;
    let lines: String = (0..50).map(|user| format!("{{\"user_id\":\"u-{user}\"}}\n")).collect();
    assert!(terminal.fed("produce plays --routed", &lines).await?.starts_with("50 records"));
    let mut partitions = BTreeSet::new();
    for record in contents(&terminal, "plays").await? {
        let value: Value = serde_json::from_str(record["value"].as_str().ok_or("text")?)?;
        let user = value["user_id"].as_str().ok_or("a user")?;
        assert_eq!(record["partition"], partition_for_key(user.as_bytes(), 4).get());
        partitions.insert(record["partition"].as_u64());
    }
    assert_eq!(partitions.len(), 4);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn compression_shrinks_what_is_stored() -> Outcome<()> {
    let terminal = Terminal::new().await?;
    let file = terminal.home().join("plays.jsonl");
    let line = r#"{"user_id":"ann","song_id":"s-17","device":"phone"}"#;
    std::fs::write(&file, format!("{line}\n").repeat(2_000))?;
    let mut sizes = Vec::new();
    for compression in ["none", "gzip", "snappy", "lz4", "zstd"] {
        let topic = format!("with-{compression}");
        terminal.done(&format!("topic create {topic}")).await?;
        // From a file, in full batches.
        let flags = "--linger 200ms --batch-bytes 64KiB --file plays.jsonl";
        let said = terminal.done(&format!("produce {topic} --compression {compression} {flags}")).await?;
        assert!(said.starts_with("2000 records (") && said.contains("the last at offset 1999"), "{said}");
        let read = terminal.done(&format!("consume {topic} --from earliest")).await?;
        assert_eq!(read, std::fs::read_to_string(&file)?, "{compression}");
        let described = terminal.json(&format!("topic describe {topic}")).await?;
        sizes.push(described["partitions"][0]["bytes"].as_u64().ok_or("bytes")?);
    }
    let none = sizes.remove(0);
    assert!(none > 100_000 && sizes.iter().all(|size| size * 5 < none), "{none} {sizes:?}");
    // No batch is meant to be so large, and the topic takes it all the same.
    let large = "y".repeat(1 << 20);
    let said = terminal.fed("produce with-none", format!("small\n{large}\nsmall\n")).await?;
    assert!(said.starts_with("3 records"), "{said}");
    let lost = terminal.fed("produce with-none --no-acks", "x\n").await?;
    assert!(lost.starts_with("1 record ("), "{lost}");
    Ok(())
}

/// At a terminal a file's reading is shown, and nothing of it is left behind; anywhere else it is not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_has_a_progress_bar_at_a_terminal() -> Outcome<()> {
    let terminal = Terminal::new().await?;
    terminal.done("topic create t").await?;
    std::fs::write(terminal.home().join("lines.txt"), "a line of it\n".repeat(200_000))?;
    let ran = terminal.tidemill(&["produce", "t", "--file", "lines.txt"], "").await?;
    assert!(ran.stderr.is_empty(), "{ran:?}");
    // `script` gives a command a terminal.
    let mut script = tokio::process::Command::new("script");
    let line = format!("{} produce t --file lines.txt", tidemill_cluster_tests::tidemill_binary()?.display());
    at_home(&mut script, terminal.home());
    script.env("TIDEMILL_ADDRESS", terminal.broker.address().to_string());
    script.env("TIDEMILL_CA", terminal.broker.authority()).env("TERM", "xterm");
    script.args(["-q", "-e", "-c", &line, "/dev/null"]);
    if std::process::Command::new("script").arg("--version").output().is_err() {
        unable(&["script"], "a terminal is made by the program script, which is not here");
        return Ok(());
    }
    let shown = run(&mut script, b"").await?.succeeded(&line)?;
    assert!(shown.contains("/2.48 MiB") && shown.contains("MiB/s"), "{shown:?}");
    assert!(shown.contains("200000 records"), "{shown:?}");
    Ok(())
}

/// A plugin names records by their places in a batch: whoever typed them reads lines.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lines_that_a_plugin_refuses_are_named_with_its_reasons() -> Outcome<()> {
    let terminal = Terminal::new().await?;
    terminal.done("topic create t --partitions 2").await?;
    plugins::upload(&terminal.broker.client().await?, "json-filter").await?;
    let guard = ["deploy", "filter", "guard", "--plugin", "json-filter", "--topic", "t"];
    let set = ["--set", "where=ok == true", "--set", "malformed=reject"];
    terminal.tidemill(&[&guard[..], &set].concat(), "").await?.succeeded("deploy")?;
    let good = "{\"ok\":true}";
    let lines = format!("{good}\nno JSON\n{good}\nnor this\n");
    let ran = terminal.tidemill(&["produce", "t", "--partition", "1", "--linger", "300ms"], &lines).await?;
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(
        ran.stderr.contains("RECORDS_REJECTED") && ran.stderr.contains("of it (counted from 0): "),
        "{ran:?}"
    );
    let named: Vec<&str> = ran.stderr.lines().filter_map(|line| line.trim().strip_prefix("line ")).collect();
    // The first line may have gone alone, before the others were there.
    assert!(named.len() == 2 && named[0].starts_with("2: ") && named[1].starts_with("4: "), "{ran:?}");

    // Without acknowledgements it is the end of the stream that tells.
    let ran = terminal.tidemill(&["produce", "t", "--no-acks", "--partition", "0"], "no JSON\n").await?;
    assert!(ran.code == 1 && ran.stderr.contains("RECORDS_REJECTED"), "{ran:?}");
    assert!(ran.stderr.contains("is not known"), "{ran:?}");
    terminal.fed("produce t --no-acks --partition 0", good).await?;
    assert_eq!(terminal.done("consume t --partition 0 --from earliest").await?, format!("{good}\n"));

    // What the filter leaves out whole has no offset.
    let out = "{\"ok\":false}\n";
    let said = terminal.fed("produce t --partition 0", out).await?;
    assert!(said.starts_with("1 record sent (") && said.contains("left out whole"), "{said}");
    let answer: Value = serde_json::from_str(&terminal.fed("produce t --partition 0 --json", out).await?)?;
    assert_eq!((&answer["records"], &answer["left_out"]), (&json!(1), &json!(1)));
    assert_eq!((&answer["last_offset"], &answer["last_partition"]), (&Value::Null, &json!(0)));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_line_is_named_and_those_before_it_are_stored() -> Outcome<()> {
    let terminal = Terminal::new().await?;
    terminal.done("topic create t").await?;
    let produce = async |lines: &str| terminal.tidemill(&["produce", "t", "--format", "json"], lines).await;
    let ran = produce("{\"value\":\"a\"}\n{\"value\":\"b\"}\n{\"value\":\n{\"value\":\"d\"}\n").await?;
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(ran.stderr.contains("line 3: "), "{ran:?}");
    assert!(ran.stderr.contains("the 2 lines before it are stored"), "{ran:?}");
    assert_eq!(terminal.done("consume t --from earliest").await?, "a\nb\n");
    let ran = produce("nothing\n").await?;
    assert!(
        ran.code == 2 && ran.stderr.contains("line 1: ") && ran.stderr.contains("nothing was stored"),
        "{ran:?}"
    );
    // A record that no batch has room for.
    let ran = produce(&format!("{{\"value\":\"c\"}}\n{{\"value\":\"{}\"}}\n", "x".repeat(9 << 20))).await?;
    assert!(ran.code == 2 && ran.stderr.contains("line 2: "), "{ran:?}");
    assert!(ran.stderr.contains("the line before it is stored"), "{ran:?}");
    assert_eq!(terminal.done("consume t --from earliest").await?, "a\nb\nc\n");
    Ok(())
}

/// Feeds a command a line now and then, for as long as it reads.
async fn trickle(input: &mut ChildStdin) {
    while input.write_all(b"lost\n").await.is_ok() {
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// That a command ends in time by itself, because a record was not stored, and says how many are.
async fn gives_up(child: Child) -> Outcome<()> {
    const END_WITHIN: Duration = Duration::from_secs(20);
    let ended = tokio::time::timeout(END_WITHIN, child.wait_with_output()).await;
    let output = ended.map_err(|_| "it goes on though its records are lost")??;
    let said = String::from_utf8(output.stderr)?;
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("error: not acknowledged within 3s") && said.contains("; 1 of the "), "{said}");
    assert!(!said.contains("answers again"), "nobody answered: {said}");
    Ok(())
}

/// Whoever feeds an input that never ends hears of lost records when they are lost, and not at an end that does not come.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_that_is_lost_ends_it_though_its_input_goes_on() -> Outcome<()> {
    let mut terminal = Terminal::new().await?;
    terminal.done("topic create t").await?;
    let (mut slow, mut idle) =
        (terminal.begun("produce t --timeout 3s")?, terminal.begun("produce t --timeout 3s")?);
    let mut slow_input = slow.stdin.take().ok_or("an input")?;
    let mut idle_input = idle.stdin.take().ok_or("an input")?;
    slow_input.write_all(b"stored\n").await?;
    idle_input.write_all(b"stored\n").await?;
    let both = async || (terminal.done("consume t").await.ok()? == "stored\nstored\n").then_some(());
    eventually("both lines are stored", PATIENCE, both).await?;

    terminal.broker.kill().await?;
    // After this it gets nothing, and no end either.
    idle_input.write_all(b"lost\n").await?;
    let (slow, idle, ()) = tokio::join!(gives_up(slow), gives_up(idle), trickle(&mut slow_input));
    slow?;
    idle?;
    drop(idle_input);
    Ok(())
}
