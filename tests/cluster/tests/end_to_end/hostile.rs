//! Components that misbehave: the deployment or the upload suffers, with a code, and nothing else does.

use std::time::Duration;

use tidemill_client::messages::{DeploymentStatus, FailurePolicy};
use tidemill_client::{Client, ErrorCode, NewDeployment, PartitionId, Position, Record, Start};
use tidemill_cluster_tests::reading::{count, read_all};
use tidemill_cluster_tests::waiting::{caught_up, eventually};
use tidemill_cluster_tests::{BrokerOptions, Outcome, TestBroker};
use tidemill_hostile as hostile;
use tidemill_hostile::World;

use crate::bystander::Bystander;
use crate::kit::{PATIENCE, batch_of, broker_with, create, not_stored, refused};

/// Short times, so that what never ends does not take long.
async fn impatient_broker() -> Outcome<(TestBroker, Client)> {
    let options =
        BrokerOptions::default().set("plugins.call_ms_max", 100).set("plugins.task_call_ms_max", 200);
    broker_with(options).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uploads_that_are_no_plugins_are_refused() -> Outcome<()> {
    let (broker, client) = impatient_broker().await?;
    let bystander = Bystander::beside(&broker).await?;
    for (what, component, expected) in [
        ("nothing", Vec::new(), ErrorCode::InvalidComponent),
        ("a shell script", hostile::not_wasm(), ErrorCode::InvalidComponent),
        ("a core module", hostile::core_module_only(), ErrorCode::InvalidComponent),
        ("half a component", hostile::truncated(500), ErrorCode::InvalidComponent),
        ("code of the wrong type", hostile::does_not_validate(), ErrorCode::CompileFailed),
        ("another world", hostile::wrong_world(), ErrorCode::WrongWorld),
        ("two worlds", hostile::two_worlds(), ErrorCode::WrongWorld),
        ("a contract to come", hostile::other_version(), ErrorCode::WrongWorld),
        ("a file system", hostile::forbidden_import(World::Filter), ErrorCode::ForbiddenImport),
        ("a filter that emits", hostile::filter_that_emits(), ErrorCode::ForbiddenImport),
        ("a start that traps", hostile::traps_in_start(World::Filter), ErrorCode::PluginTrapped),
        ("a start that never ends", hostile::loops_in_start(World::Consumer), ErrorCode::PluginTimedOut),
        (
            "a description that never ends",
            hostile::loops_in_describe(World::Filter),
            ErrorCode::PluginTimedOut,
        ),
    ] {
        assert_eq!(refused(client.plugins().upload("p", "1", component).await), expected, "{what}");
    }
    client.plugins().upload("p", "1", hostile::keep_all()).await?;
    client.plugins().upload("p", "1", hostile::keep_all()).await?;
    let other = client.plugins().upload("p", "1", hostile::keep_even()).await;
    assert_eq!(refused(other), ErrorCode::PluginExists, "a version's bytes never change");
    bystander.was_undisturbed().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_start_is_not_deployed() -> Outcome<()> {
    let (broker, client) = impatient_broker().await?;
    create(&client, "t", 1).await?;
    let bystander = Bystander::beside(&broker).await?;
    for (name, component, expected) in [
        ("picky", hostile::refuses_its_config(World::Filter), ErrorCode::BadPluginConfig),
        ("slow", hostile::loops_in_init(World::Filter), ErrorCode::PluginTimedOut),
        ("large", hostile::large_from_the_start(World::Filter, 2_000), ErrorCode::PluginOutOfMemory),
    ] {
        let uploaded = client.plugins().upload(name, "1", component).await;
        // What is too large for anybody need not get this far.
        let code = match uploaded {
            Ok(_) => {
                refused(client.deployments().create(NewDeployment::produce_filter(name, name, "t")).await)
            }
            Err(error) => {
                error.code().and_then(ErrorCode::from_code).ok_or_else(|| format!("{name}: {error}"))?
            }
        };
        assert_eq!(code, expected, "{name}");
    }
    let producer = client.producer("t").build().await?;
    producer.send(Record::new("no filter stands in the way")).await?.await?;
    bystander.was_undisturbed().await
}

/// Filters and partitioners on the produce path: each failure is the producer's answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failing_plugin_fails_the_produce_that_needs_it() -> Outcome<()> {
    let (broker, client) = impatient_broker().await?;
    let bystander = Bystander::beside(&broker).await?;
    let partition = PartitionId::new(0);
    for (name, component, expected) in [
        ("traps", hostile::traps(World::Filter), ErrorCode::PluginTrapped),
        ("recurses", hostile::recurses(World::Filter), ErrorCode::PluginTrapped),
        ("loops", hostile::loops(World::Filter), ErrorCode::PluginTimedOut),
        ("loops-after", hostile::loops_after_the_answer(World::Filter), ErrorCode::PluginTimedOut),
        ("grows", hostile::grows(World::Filter), ErrorCode::PluginOutOfMemory),
        ("bitmap", hostile::bitmap_of(9), ErrorCode::PluginBadAnswer),
        ("bitmap-outside", hostile::bitmap_of(u32::MAX), ErrorCode::PluginBadAnswer),
        ("index-outside", hostile::replaces_outside_data(), ErrorCode::PluginBadAnswer),
        ("rejects-outside", hostile::reject_one(7), ErrorCode::PluginBadAnswer),
        ("retries", hostile::refuses_the_batch(World::Filter), ErrorCode::PluginFailed),
    ] {
        let topic = format!("filtered-by-{name}");
        create(&client, &topic, 1).await?;
        client.plugins().upload(name, "1", component).await?;
        client.deployments().create(NewDeployment::produce_filter(name, name, &topic)).await?;
        let producer = client.producer(&topic).build().await?;
        for _ in 0..2 {
            let outcome = producer.send_batch(partition, batch_of(&["a", "b", "c"])).await?.await;
            assert_eq!(not_stored(outcome), expected, "{name}");
        }
        assert_eq!(count(&read_all(&client, &topic).await?), 0, "{name}");
        // Without the plugin the topic is as good as new.
        client.deployments().delete(name).await?;
        producer.send(Record::new("at last")).await?.await?;
    }
    for (name, component, expected) in [
        ("p-traps", hostile::traps(World::Partitioner), ErrorCode::PluginTrapped),
        ("p-loops", hostile::loops(World::Partitioner), ErrorCode::PluginTimedOut),
        ("p-outside", hostile::places_in(3), ErrorCode::PluginBadAnswer),
        ("p-too-few", hostile::places(1), ErrorCode::PluginBadAnswer),
    ] {
        let topic = format!("placed-by-{name}");
        create(&client, &topic, 3).await?;
        client.plugins().upload(name, "1", component).await?;
        client.deployments().create(NewDeployment::partitioner(name, name, &topic)).await?;
        let producer = client.producer(&topic).routed().build().await?;
        let outcome = producer.send_batch(None, batch_of(&["a", "b", "c"])).await?.await;
        assert_eq!(not_stored(outcome), expected, "{name}");
        assert_eq!(count(&read_all(&client, &topic).await?), 0, "{name}");
    }
    bystander.was_undisturbed().await
}

/// A subscription's filter that fails ends the partition for that reader, with the code; other readers get everything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failing_filter_fails_its_subscription_only() -> Outcome<()> {
    let (broker, client) = impatient_broker().await?;
    create(&client, "t", 1).await?;
    let producer = client.producer("t").build().await?;
    producer.send_batch(PartitionId::new(0), batch_of(&["a", "b", "c"])).await?.await?;
    let bystander = Bystander::beside(&broker).await?;
    let none: [(&str, &str); 0] = [];
    for (name, component, expected) in [
        ("traps", hostile::traps(World::Filter), "PLUGIN_TRAPPED"),
        ("loops", hostile::loops(World::Filter), "PLUGIN_TIMED_OUT"),
        ("bitmap", hostile::bitmap_of(9), "PLUGIN_BAD_ANSWER"),
    ] {
        client.plugins().upload(name, "1", component).await?;
        let mut consumer =
            client.consumer().topic("t").from(Start::Earliest).filter(name, none).build().await?;
        let first = tokio::time::timeout(PATIENCE, consumer.next()).await?;
        let error = first.ok_or("it should fail")?.expect_err("it should fail").to_string();
        assert!(error.contains(expected), "{name}: {error}");
    }
    client.plugins().upload("half", "1", hostile::keep_even()).await?;
    let half =
        client.consumer().topic("t").from(Start::Earliest).filter("half", none).stop_at_end().build().await?;
    assert_eq!(count(&tidemill_cluster_tests::reading::drain(half).await?), 2);
    assert_eq!(count(&read_all(&client, "t").await?), 3);
    bystander.was_undisturbed().await
}

/// A task's failure is tried again, then its policy decides; the other deployment on the same topic has done all its work.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failing_task_stops_alone() -> Outcome<()> {
    let (broker, client) = impatient_broker().await?;
    create(&client, "t", 1).await?;
    create(&client, "out", 2).await?;
    let bystander = Bystander::beside(&broker).await?;
    for (name, component) in [
        ("counts", hostile::count_in_state()),
        ("traps", hostile::traps(World::Consumer)),
        ("loops", hostile::loops(World::Consumer)),
        ("grows", hostile::grows(World::Consumer)),
        ("too-many", hostile::processes_too_many()),
        ("floods", hostile::emits_until_refused()),
        ("spams", hostile::spams_the_log(World::Consumer)),
    ] {
        client.plugins().upload(name, "1", component).await?;
        let deployment = NewDeployment::consumer(name, name)
            .topic("t")
            .target("out")
            .start(Position::Earliest)
            .attempts(2, Duration::from_millis(10))
            .policy(FailurePolicy::Pause);
        client.deployments().create(deployment).await?;
    }
    let skipping =
        NewDeployment::consumer("skips", "traps").topic("t").target("out").start(Position::Earliest);
    let skipping = skipping.attempts(1, Duration::from_millis(10)).policy(FailurePolicy::Skip);
    client.deployments().create(skipping).await?;
    let producer = client.producer("t").build().await?;
    producer.send_batch(PartitionId::new(0), batch_of(&["a", "b", "c"])).await?.await?;
    let reasons = [
        ("traps", "unreachable", "trapped"),
        ("loops", "ms", "timed-out"),
        ("grows", "memory", "out-of-memory"),
        ("too-many", "processed", "bad-answer"),
    ];
    for (name, reason, kind) in reasons {
        let said = eventually(name, PATIENCE, async || {
            let seen = client.deployments().describe(name).await.ok()?;
            let task = seen.tasks.first()?;
            (task.status() == DeploymentStatus::Paused).then(|| task.reason.clone())
        })
        .await?;
        assert!(said.contains("offset 0") && said.contains(reason), "{name}: {said}");
        assert!(said.contains(&format!("({kind})")), "{name}: {said}");
        // For whoever runs the broker, too.
        assert!(broker.log_text()?.contains(&format!("({kind})")), "{name}");
    }
    caught_up(&client, "counts", 1, PATIENCE).await?;
    let state = client.state("counts").get("n", None).await?;
    assert_eq!(state.first().map(|entry| entry.value.to_vec()), Some(3u64.to_le_bytes().to_vec()));
    let skipped = caught_up(&client, "skips", 1, PATIENCE).await?;
    assert_eq!(skipped.counters.get("skipped"), Some(&3), "{:?}", skipped.counters);
    let logs = client.deployments().logs("spams", 0, 1_000).await?;
    assert!(logs.lines.len() < 1_000, "what a plugin may log is limited");
    bystander.was_undisturbed().await
}
