//! `tidemill plugin`, `deploy`, `deployment`, `state`.

use serde_json::{Value, json};
use tidemill_cluster_tests::waiting::eventually;
use tidemill_cluster_tests::{Outcome, plugins};
use tidemill_hostile::World;

use super::terminal::Terminal;
use crate::kit::PATIENCE;

fn component(name: &str) -> String {
    plugins::directory().join(format!("{name}.wasm")).display().to_string()
}

async fn upload(terminal: &Terminal, name: &str) -> Outcome<()> {
    terminal.done(&format!("plugin upload {}", component(name))).await.map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plugins_are_uploaded_shown_and_deleted() -> Outcome<()> {
    let terminal = Terminal::new().await?;
    assert_eq!(terminal.json("plugin list").await?, json!([]));
    let file = component("json-filter");
    let said = terminal.done(&format!("plugin upload {file}")).await?;
    assert!(said.starts_with("uploaded json-filter@1: Keeps the records"), "{said}");
    let again = terminal.json(&format!("plugin upload {file}")).await?;
    assert_eq!(again["version"], "1", "the same bytes are the same version");
    let named = terminal.json(&format!("plugin upload {file} --name only --version beta")).await?;
    assert_eq!(
        (&named["name"], &named["version"], &named["kind"]),
        (&json!("only"), &json!("beta"), &json!("filter"))
    );
    // A version is for ever.
    let other = component("redact");
    let refused = terminal.fails(&format!("plugin upload {other} --name only --version beta"), 1).await?;
    assert!(refused.contains("PLUGIN_EXISTS"), "{refused}");
    terminal.done(&format!("plugin upload {other} --name only --version 2")).await?;

    let listed = terminal.json("plugin list").await?;
    let versions: Vec<(&Value, &Value)> = listed
        .as_array()
        .ok_or("a list")?
        .iter()
        .map(|plugin| (&plugin["name"], &plugin["version"]))
        .collect();
    assert_eq!(versions.len(), 3, "{listed}");
    assert!(versions.contains(&(&json!("only"), &json!("beta"))), "{listed}");
    assert!(terminal.done("plugin list").await?.contains("UPLOADED AT"));
    // The newest version where none is named.
    assert_eq!(terminal.json("plugin describe only").await?["version"], "2");
    let described = terminal.json("plugin describe only@beta").await?;
    assert_eq!(described["config"][0]["name"], "where");
    let table = terminal.done("plugin describe only@beta").await?;
    assert!(table.contains("where") && table.contains("required") && table.contains("blake3"), "{table}");

    terminal.done("deploy filter redacted --plugin only@2 --set fields=mail").await?;
    assert!(terminal.fails("plugin delete only@2", 1).await?.contains("redacted"));
    assert_eq!(terminal.done("plugin delete only@beta").await?, "deleted plugin only@beta\n");
    assert!(
        terminal.fails("plugin describe only@beta", 4).await?.contains("has no version 'beta'; it has 2")
    );
    assert!(terminal.fails("plugin delete only@beta", 4).await?.contains("it has 2"));
    assert!(terminal.fails("plugin describe json-fitler", 4).await?.contains("is 'json-filter' meant?"));
    terminal.done("deployment delete redacted").await?;
    assert_eq!(terminal.json("plugin delete only").await?, json!({ "deleted": "only" }));
    terminal.fails("plugin describe only", 4).await?;
    terminal.fails("plugin upload nothing.wasm", 2).await?;
    std::fs::write(terminal.home().join("text.wasm"), "(module)")?;
    let refused = terminal.fails("plugin upload text.wasm", 1).await?;
    assert!(refused.contains("INVALID_COMPONENT") && refused.contains("it begins with `(mod`"), "{refused}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitioners_and_filters_are_bound_to_topics() -> Outcome<()> {
    let terminal = Terminal::new().await?;
    terminal.done("topic create plays --partitions 3").await?;
    for plugin in ["field-hash", "json-filter", "redact"] {
        upload(&terminal, plugin).await?;
    }
    let by_user = "deploy partitioner by-user --plugin field-hash --topic plays --set field=user_id";
    let made = terminal.json(by_user).await?;
    assert_eq!(
        (&made["kind"], &made["topics"], &made["config"]),
        (&json!("partitioner"), &json!(["plays"]), &json!({ "field": "user_id" }))
    );
    let described = terminal.json("topic describe plays").await?;
    assert_eq!(described["partitioner"]["deployment"], "by-user");
    let guard =
        ["deploy", "filter", "guard", "--plugin", "json-filter@1", "--topic", "plays", "--drop-rejected"];
    let set = ["--set", "where=user_id != null", "--set", "malformed=reject", "--memory", "16MiB"];
    let said = terminal.tidemill(&[&guard[..], &set].concat(), "").await?.succeeded("deploy")?;
    assert!(said.contains("produce filter") && said.contains("json-filter@1"), "{said}");
    assert!(said.contains("left out") && said.contains("16.0 MiB"), "{said}");
    assert_eq!(terminal.json("topic describe plays").await?["produce_filter"], "guard");
    terminal.done("deploy filter no-mail --plugin redact --set fields=mail").await?;
    let lines = "{\"user_id\":\"a\",\"mail\":\"a@b.c\"}\nno JSON\n{\"user_id\":null}\n";
    terminal.fed("produce plays --partition 0 --linger 100ms", lines).await?;
    let read = terminal.done("consume plays --from earliest --filter no-mail").await?;
    assert_eq!(read, "{\"user_id\":\"a\",\"mail\":\"***\"}\n", "two were dropped, one field is hidden");

    let list = terminal.done("deployment list").await?;
    assert!(["by-user", "guard", "no-mail", "field-hash@1"].iter().all(|name| list.contains(name)), "{list}");
    assert_eq!(terminal.json("deployment list").await?.as_array().map(Vec::len), Some(3));
    for line in [
        "deploy partitioner other --plugin nothing --topic plays",
        "deploy filter other --plugin redact@9 --set fields=a",
        "deploy partitioner other --plugin field-hash --topic nowhere --set field=a",
        "deployment describe nothing",
        "deployment pause nothing",
        "deployment logs nothing",
        "deployment delete nothing",
    ] {
        terminal.fails(line, 4).await?;
    }
    assert!(terminal.fails("deploy filter other --plugin redact", 1).await?.contains("--set fields="));
    assert!(
        terminal
            .fails("deploy filter other --plugin field-hash --set field=a", 1)
            .await?
            .contains("WRONG_WORLD")
    );
    terminal.fails("deploy consumer other --plugin redact --topic plays --policy dead-letter", 2).await?;
    terminal.done("topic create empty").await?;
    for (filter, fragment) in [
        ("redact@9 --set fields=a", "has no version '9'; it has 1"),
        ("no-mail --set fields=a", "is a deployment"),
        ("no-mial", "is 'no-mail' meant?"),
        ("redcat --set fields=a", "is 'redact' meant?"),
    ] {
        let said = terminal.fails(&format!("consume empty --filter {filter}"), 4).await?;
        assert!(said.contains(fragment), "{filter}: {said}");
    }
    terminal.done("deployment delete by-user").await?;
    assert_eq!(terminal.json("topic describe plays").await?["partitioner"], Value::Null);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hosted_consumer_is_started_watched_paused_and_ended() -> Outcome<()> {
    let terminal = Terminal::new().await?;
    for topic in ["plays", "counts", "failed"] {
        terminal.done(&format!("topic create {topic}")).await?;
    }
    upload(&terminal, "count-by-field").await?;
    let plays =
        "{\"song_id\":\"s-17\"}\n{\"song_id\":\"s-4\"}\nno JSON\n{\"song_id\":\"s-17\"}\n{\"song_id\":7}\n";
    terminal.fed("produce plays", plays).await?;
    let deploy = "deploy consumer songs --plugin count-by-field --topic plays --target counts --from earliest \
                  --set field=song_id --set missing=reject --policy dead-letter --dead-letter failed --attempts 2 \
                  --backoff 10ms";
    assert!(terminal.done(deploy).await?.contains("consumer"));
    let position = async |at: u64| {
        eventually("the task", PATIENCE, async || {
            let described = terminal.json("deployment describe songs").await.ok()?;
            (described["tasks"][0]["positions"][0]["position"] == at).then_some(described)
        })
        .await
    };
    let described = position(5).await?;
    assert_eq!(
        (&described["status"], &described["counters"]["dead_lettered"]),
        (&json!("running"), &json!(1))
    );
    assert_eq!(
        (&described["policy"], &described["dead_letter"], &described["attempts"], &described["backoff_ms"]),
        (&json!("dead-letter"), &json!("failed"), &json!(2), &json!(10))
    );
    let refused = terminal.fails(&deploy.replace("--attempts 2", "--attempts 3"), 1).await?;
    assert!(refused.contains("it has `2`, asked for was `3`"), "{refused}");
    let table = terminal.done("deployment describe songs").await?;
    assert!(table.contains("plays 5/5") && table.contains("plugin_counted=4"), "{table}");
    assert_eq!(terminal.done("consume failed --from earliest").await?, "no JSON\n");
    let logs = terminal.documents("deployment logs songs").await?;
    assert!(
        logs.iter().any(|line| line["message"].as_str().is_some_and(|text| text.contains("JSON"))),
        "{logs:?}"
    );
    assert!(terminal.done("deployment logs songs").await?.contains("JSON"));

    let (mut following, mut printed) = terminal.started("deployment logs songs --follow")?;
    while !printed.line().await?.contains("JSON") {}
    following.kill().await?;

    // Keys are what the plugin writes.
    let song = ["state", "get", "songs", "total:\"s-17\"", "--json"];
    let state: Value = serde_json::from_str(&terminal.tidemill(&song, "").await?.succeeded("state get")?)?;
    let entry = json!({ "partition": 0, "key": "total:\"s-17\"", "value": "2" });
    assert_eq!(state, json!({ "entries": [entry], "more": false }));
    let scanned = terminal.json("state scan songs").await?;
    let keys: Vec<&Value> =
        scanned["entries"].as_array().into_iter().flatten().map(|entry| &entry["key"]).collect();
    assert_eq!(keys, ["total:\"s-17\"", "total:\"s-4\"", "total:7"]);
    let one = terminal.json("state scan songs --prefix total: --limit 1 --partition 0").await?;
    assert_eq!((one["entries"].as_array().map(Vec::len), &one["more"]), (Some(1), &json!(true)));
    assert!(terminal.done("state scan songs --limit 1").await?.contains("raise --limit"));
    let prefixed = ["state", "scan", "songs", "--prefix", "total:\"s-4"];
    assert!(terminal.tidemill(&prefixed, "").await?.succeeded("scan")?.contains("total:\"s-4\""));
    assert!(terminal.fails("state get songs nothing", 4).await?.contains("no task has the key"));
    let nothing = terminal.tidemill(&["state", "get", "songs", "nothing", "--json"], "").await?;
    assert!(nothing.code == 4 && nothing.stdout.contains("\"entries\":[]"), "{nothing:?}");
    terminal.fails("state get nobody key", 4).await?;
    terminal.fails("state scan nobody", 4).await?;

    let paused = terminal.json("deployment pause songs").await?;
    assert_eq!((&paused["status"], &paused["tasks"][0]["status"]), (&json!("paused"), &json!("paused")));
    terminal.fed("produce plays", "{\"song_id\":\"s-17\"}\n").await?;
    assert!(terminal.done("deployment list").await?.contains("paused"));
    let listed = terminal.json("deployment list").await?;
    assert_eq!(listed[0]["tasks"][0]["status"], "paused");
    let resumed = terminal.json("deployment resume songs").await?;
    assert_eq!((&resumed["status"], &resumed["tasks"][0]["status"]), (&json!("running"), &json!("running")));
    position(6).await?;
    assert_eq!(terminal.done("deployment delete songs").await?, "deleted deployment songs\n");
    terminal.fails("deployment describe songs", 4).await?;
    terminal.fails("state get songs key", 4).await?;
    Ok(())
}

/// What a plugin logs is there to be read, with its level and the task that it came from.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_plugin_logs_reaches_whoever_asks() -> Outcome<()> {
    let terminal = Terminal::new().await?;
    terminal.done("topic create t --partitions 2").await?;
    std::fs::write(terminal.home().join("talks.wasm"), tidemill_hostile::logs_each_call(World::Consumer))?;
    terminal.done("plugin upload talks.wasm").await?;
    terminal.done("deploy consumer talker --plugin talks --topic t --from earliest").await?;
    terminal.fed("produce t --partition 1", "a record\n").await?;
    let lines = eventually("the plugin's line", PATIENCE, async || {
        let lines = terminal.documents("deployment logs talker").await.ok()?;
        lines.iter().any(|line| line["message"] == "not this one").then_some(lines)
    })
    .await?;
    let line = lines.iter().find(|line| line["message"] == "not this one").ok_or("its line")?;
    assert_eq!((&line["level"], &line["partition"]), (&json!("warn"), &json!(1)), "{line}");
    let printed = terminal.done("deployment logs talker").await?;
    assert!(
        printed.lines().any(|line| line.ends_with(" [1] not this one") && line.contains("warn")),
        "{printed}"
    );
    Ok(())
}
