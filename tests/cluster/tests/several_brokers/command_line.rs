//! `tidemill cluster` as an operator types it: what it prints, for people and for programs, and how it ends.

use std::time::Duration;

use serde_json::{Value, json};
use tidemill_client::{NewTopic, PartitionId, Producer, Record};
use tidemill_cluster_tests::metrics::metric;
use tidemill_cluster_tests::waiting::eventually;
use tidemill_cluster_tests::{BrokerOptions, Outcome, TestBroker, TestCluster};

/// No command takes longer, and nothing that one waits for.
const PATIENCE: Duration = Duration::from_secs(120);
/// Of the topic that is written to: its shards take turns.
const PARTITIONS: u32 = 3;

/// How a command ended, and what it said.
#[derive(Debug)]
struct Ran {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Ran {
    /// The one document that it printed.
    fn document(&self) -> Outcome<Value> {
        Ok(serde_json::from_str(&self.stdout).map_err(|error| format!("{error} in {self:?}"))?)
    }
}

/// Runs a command without quotes by way of the brokers that run, whatever it comes to.
async fn tidemill(cluster: &TestCluster, line: &str) -> Outcome<Ran> {
    let running = cluster.brokers().iter().filter(|broker| broker.process_id().is_some());
    let addresses: Vec<String> = running.map(|broker| broker.address().to_string()).collect();
    let (addresses, authority) = (addresses.join(","), cluster.authority().display().to_string());
    let mut arguments: Vec<&str> = line.split_whitespace().collect();
    arguments.extend(["--address", addresses.as_str(), "--ca", authority.as_str()]);
    let ended = tokio::time::timeout(PATIENCE, cluster.command(&arguments)).await;
    let output = ended.map_err(|_| format!("`tidemill {line}` does not end"))??;
    Ok(Ran {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout)?,
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// Runs a command that must end with this code.
async fn ends(cluster: &TestCluster, line: &str, code: i32) -> Outcome<Ran> {
    let ran = tidemill(cluster, line).await?;
    assert_eq!(ran.code, Some(code), "{line}: {ran:?}");
    Ok(ran)
}

/// Runs a command again and again, until it ends with this code and says what it should.
async fn comes_to(
    cluster: &TestCluster,
    line: &str,
    code: i32,
    is_so: impl Fn(&Ran) -> bool,
) -> Outcome<Ran> {
    let (is_so, what) = (&is_so, format!("`tidemill {line}` comes to it, and ends with {code}"));
    let looks =
        async || tidemill(cluster, line).await.ok().filter(|ran| ran.code == Some(code) && is_so(ran));
    eventually(&what, PATIENCE, looks).await
}

/// Waits until the cluster has come to rest; answers the document that says so.
async fn at_rest(cluster: &TestCluster) -> Outcome<Value> {
    comes_to(cluster, "cluster status --settled --json", 0, |_| true).await?.document()
}

/// A broker's part of the document of `cluster status`; null where it has none.
fn of_broker(document: &Value, id: u32) -> Value {
    let mut brokers = document["brokers"].as_array().into_iter().flatten();
    brokers.find(|broker| broker["broker"] == id).cloned().unwrap_or_default()
}

/// Whether the document that was printed says this of a broker.
fn is_said(ran: &Ran, id: u32, is_so: impl Fn(&Value) -> bool) -> bool {
    ran.document().is_ok_and(|document| is_so(&of_broker(&document, id)))
}

/// How many words of a text are so.
fn words(text: &str, is_so: impl Fn(&str) -> bool) -> usize {
    text.split_whitespace().filter(|word| is_so(word)).count()
}

/// A broker's replicas in the document of `cluster status`.
fn replicas_of(document: &Value, id: u32) -> Vec<&Value> {
    let shards = document["shards"].as_array().into_iter().flatten();
    let replicas = shards.flat_map(|shard| shard["replicas"].as_array().into_iter().flatten());
    replicas.filter(|replica| replica["broker"] == id).collect()
}

/// How many entries a broker's replicas lack, all together, as far as that is known.
fn behind(document: &Value, id: u32) -> u64 {
    replicas_of(document, id).iter().filter_map(|replica| replica["behind"].as_u64()).sum()
}

/// How long the leader that has waited the longest has heard nothing of a broker's replica.
fn silent_ms(document: &Value, id: u32) -> u64 {
    replicas_of(document, id).iter().filter_map(|replica| replica["silent_ms"].as_u64()).max().unwrap_or(0)
}

/// Waits until no replica of these three brokers lacks anything.
async fn nobody_lags(cluster: &TestCluster) -> Outcome<()> {
    let has_all =
        |ran: &Ran| ran.document().is_ok_and(|document| (1..=3).all(|id| behind(&document, id) == 0));
    comes_to(cluster, "cluster status --json", 0, has_all).await?;
    Ok(())
}

/// The third broker is away: its replicas lack whatever is written, and their leaders hear nothing of it for longer and longer.
async fn the_third_lags(cluster: &TestCluster, producer: &Producer) -> Outcome<()> {
    const BATCHES: u32 = 200;
    /// Who answers is never silent for so long.
    const SILENT_MS: u64 = 2_000;
    for number in 0..BATCHES {
        // One behind the other, so that each has an entry of its own.
        let record = Record::new("play").partition(PartitionId::new(number % PARTITIONS));
        producer.send(record).await?.await?;
    }
    let lags = |document: &Value| {
        let others = behind(document, 1) + behind(document, 2);
        // A leader that it left its leads to may not have heard of it since.
        let lacks = behind(document, 3) >= u64::from(BATCHES / PARTITIONS);
        others == 0 && lacks && silent_ms(document, 3) >= SILENT_MS
    };
    let lags_alone = |ran: &Ran| ran.document().is_ok_and(|document| lags(&document));
    let document = comes_to(cluster, "cluster status --json", 0, lags_alone).await?.document()?;
    let before = silent_ms(&document, 3);
    let is_longer = |ran: &Ran| ran.document().is_ok_and(|document| silent_ms(&document, 3) > before);
    comes_to(cluster, "cluster status --json", 0, is_longer).await?;
    // As in `1* 2 3(+120, silent 12 s)`.
    let is_marked = |ran: &Ran| {
        let marked = |mark: &str| words(&ran.stdout, |word| word.starts_with(mark));
        marked("1(+") + marked("2(+") == 0 && marked("3(+") > 0 && ran.stdout.contains("silent")
    };
    comes_to(cluster, "cluster status", 0, is_marked).await?;
    Ok(())
}

/// `--check` and `--settled` end with 0 where all is well, and with 5 where it is not; without them looking is all that is asked. What a broker
/// lacks that was away, and for how long, is shown.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_status_tells_by_its_end_whether_all_is_well() -> Outcome<()> {
    const SHARDS: usize = 4;
    let mut cluster = TestCluster::start(3, 3, BrokerOptions::default()).await?;
    let document = at_rest(&cluster).await?;
    assert_eq!((&document["risks"], &document["unsettled"]), (&json!([]), &json!([])), "{document}");
    assert_eq!(document["brokers"].as_array().map(Vec::len), Some(3), "{document}");
    for id in 1..=3 {
        let broker = of_broker(&document, id);
        let (state, alive, replicas) = (&broker["state"], &broker["alive"], &broker["replicas"]);
        assert!(*state == "active" && *alive == true && *replicas == SHARDS, "{broker}");
    }
    let shards = document["shards"].as_array().ok_or("shards")?;
    assert_eq!(shards.len(), SHARDS, "the controller's and three of data");
    for shard in shards {
        let replicas = shard["replicas"].as_array().ok_or("replicas")?;
        assert!(replicas.len() == 3 && replicas.iter().all(|replica| replica["voter"] == true), "{shard}");
        assert!(shard["leader"].is_u64() && shard["leader"] == shard["planned"][0], "{shard}");
    }
    let text = comes_to(&cluster, "cluster status --check", 0, |_| true).await?.stdout;
    assert!(text.contains("nothing is at risk") && text.contains("up to 3 of each shard"), "{text}");
    assert_eq!(words(&text, |word| word == "alive"), 3, "{text}");
    assert_eq!(words(&text, |word| word.ends_with('*')), SHARDS, "each shard has one leader: {text}");
    let (peers, authority) = (cluster.peer_address(1), cluster.authority().display().to_string());
    let astray = cluster.command(&["status", "--address", &peers, "--ca", &authority]).await?;
    let said = String::from_utf8_lossy(&astray.stderr).into_owned();
    assert!(astray.status.code() == Some(3) && said.contains("port for other brokers"), "{said}");

    let client = cluster.client()?;
    client.topics().create(NewTopic::new("plays", PARTITIONS)).await?;
    let producer = client.producer("plays").build().await?;
    nobody_lags(&cluster).await?;

    assert!(cluster.broker(3).stop().await?.success());
    let is_told =
        |ran: &Ran| ran.stdout.contains("at risk:") && words(&ran.stdout, |word| word == "dead") == 1;
    let checked = comes_to(&cluster, "cluster status --check", 5, is_told).await?;
    assert!(checked.stderr.contains("error: ") && checked.stderr.contains("at risk"), "{checked:?}");
    let settled = ends(&cluster, "cluster status --settled --json", 5).await?;
    let document = settled.document()?;
    assert!(document["risks"].as_array().is_some_and(|risks| !risks.is_empty()), "{document}");
    assert_eq!(of_broker(&document, 3)["alive"], false, "{document}");
    let looked = ends(&cluster, "cluster status", 0).await?;
    assert!(looked.stdout.contains("broker 3 is down"), "{looked:?}");
    the_third_lags(&cluster, &producer).await?;

    cluster.broker(3).restart().await?;
    at_rest(&cluster).await?;
    nobody_lags(&cluster).await?;
    Ok(())
}

/// A token, a broker that uses it, and its way out again; and what is refused on the way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_is_added_drained_and_removed() -> Outcome<()> {
    let mut cluster = TestCluster::start(3, 3, BrokerOptions::default()).await?;
    at_rest(&cluster).await?;
    let refused = ends(&cluster, "cluster drain 1", 1).await?;
    let said = &refused.stderr;
    assert!(said.contains("CLUSTER_CHANGE_REFUSED") && said.contains("tidemill cluster add"), "{refused:?}");
    let refused = ends(&cluster, "cluster remove 3", 1).await?;
    assert!(refused.stderr.contains("tidemill cluster drain 3"), "{refused:?}");
    for line in ["cluster drain 9", "cluster remove 9"] {
        let unknown = ends(&cluster, line, 4).await?;
        assert!(unknown.stderr.contains("UNKNOWN_BROKER"), "{unknown:?}");
    }

    let replacing = ends(&cluster, "cluster add --broker 2", 0).await?;
    assert!(replacing.stderr.contains("warning: broker 2 is alive"), "{replacing:?}");
    let added = ends(&cluster, "cluster add --broker 4 --json", 0).await?;
    assert!(!added.stderr.contains("warning: broker"), "{added:?}");
    let added = added.document()?;
    let token = added["token"].as_str().ok_or("a token")?;
    let seeds = added["seeds"].as_array().ok_or("seeds")?.iter().filter_map(Value::as_str);
    let seeds: Vec<String> = seeds.map(str::to_owned).collect();
    let mut expected: Vec<String> = (1..=3).map(|broker| cluster.peer_address(broker)).collect();
    expected.sort_unstable();
    let mut named = seeds.clone();
    named.sort_unstable();
    assert_eq!((&added["broker"], named), (&json!(4), expected), "{added}");
    let command = added["command"].as_str().ok_or("a command")?;
    assert!(command.contains("--broker-id 4") && command.contains(&format!("--join {token}")), "{command}");

    let options = cluster.joining(4, token)?.set("peers.seeds", seeds.join(","));
    cluster.push(TestBroker::start(options).await?);
    let has_some = |ran: &Ran| is_said(ran, 4, |broker| broker["replicas"].as_u64() > Some(0));
    comes_to(&cluster, "cluster status --settled --json", 0, has_some).await?;

    let drained = ends(&cluster, "cluster drain 4 --wait --json", 0).await?.document()?;
    assert_eq!(drained, json!({ "broker": 4, "state": "draining", "replicas": 0 }));
    let document = ends(&cluster, "cluster status --json", 0).await?.document()?;
    let broker = of_broker(&document, 4);
    assert!(broker["state"] == "draining" && broker["replicas"] == 0, "{document}");

    assert!(cluster.broker(4).stop().await?.success());
    let removed = ends(&cluster, "cluster remove 4", 0).await?;
    assert!(removed.stdout.contains("removed broker 4"), "{removed:?}");
    let is_out = |ran: &Ran| is_said(ran, 4, |broker| broker["state"] == "removed");
    comes_to(&cluster, "cluster status --settled --json", 0, is_out).await?;
    Ok(())
}

/// Waits until each broker sends its snapshots at this rate at the most; 0: as fast as it can.
async fn limit_their_snapshots(cluster: &TestCluster, bytes_per_second: u32) -> Outcome<()> {
    for (id, broker) in (1..=3).zip(cluster.brokers()) {
        let client = broker.client().await?;
        let what = format!("broker {id} limits its snapshots to {bytes_per_second} bytes per second");
        eventually(&what, PATIENCE, async || {
            let limit = metric(&client, "tidemill_snapshot_rate_limit_bytes_per_second").await.ok()?;
            (limit == f64::from(bytes_per_second)).then_some(())
        })
        .await?;
    }
    Ok(())
}

/// What one broker is told all of them show, and go by.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_clusters_settings_are_changed_and_shown() -> Outcome<()> {
    let cluster = TestCluster::start(3, 1, BrokerOptions::default()).await?;
    at_rest(&cluster).await?;
    let set = ends(&cluster, "cluster set --rebuild-delay 10m --snapshot-rate 50MiB --json", 0).await?;
    let settings = json!({
        "rebuild_delay_ms": 600_000, "snapshot_bytes_per_second": 50 << 20, "replication_factor": 3,
    });
    assert_eq!(set.document()?, settings);
    let shown = ends(&cluster, "cluster status --json", 0).await?.document()?;
    assert_eq!(shown["settings"], settings, "{shown}");
    for (id, broker) in (1..=3).zip(cluster.brokers()) {
        let client = broker.client().await?;
        eventually(&format!("broker {id} goes by it"), PATIENCE, async || {
            let status = client.cluster_status().await.ok()?;
            let told = status.settings?;
            let goes_by_it = (told.rebuild_delay_ms, told.snapshot_bytes_per_second) == (600_000, 50 << 20);
            (status.broker_id == id && goes_by_it).then_some(())
        })
        .await?;
    }
    limit_their_snapshots(&cluster, 50 << 20).await?;
    let text = ends(&cluster, "cluster set --snapshot-rate unlimited", 0).await?.stdout;
    assert!(text.contains("600 s") && text.contains("unlimited"), "{text}");
    limit_their_snapshots(&cluster, 0).await?;

    for (line, words) in [("cluster set", "--rebuild-delay"), ("cluster set --snapshot-rate 0", "unlimited")]
    {
        let refused = ends(&cluster, line, 2).await?;
        assert!(refused.stderr.contains(words), "{refused:?}");
    }
    Ok(())
}
