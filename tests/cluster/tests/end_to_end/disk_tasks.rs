//! A disk without room: who waits, who goes on, and what makes room again.

use std::fs::File;
use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tidemill_client::messages::DeploymentStatus;
use tidemill_client::{Client, Commit, NewDeployment, NewTopic, Offset, PartitionId, Position, Record};
use tidemill_cluster_tests::reading::{count, read_all};
use tidemill_cluster_tests::waiting::{caught_up, eventually};
use tidemill_cluster_tests::{BrokerOptions, Outcome, TestBroker};
use tidemill_hostile as hostile;

use crate::kit::{PATIENCE, create, partition_of};
use crate::small_disk::SmallDisk;

const MIB: u64 = 1 << 20;
const RESERVE: u64 = 24 * MIB;

/// Below `free_min` produce is refused; with less than 24 MiB the reserve is given up.
fn options(disk: &SmallDisk, free_min: u64) -> BrokerOptions {
    BrokerOptions::default()
        .directory(disk.path())
        .set("wal.segment_bytes", 4 * MIB)
        .set("wal.bytes_max", 16 * MIB)
        .set("storage.write_behind_bytes_max", 16 * MIB)
        .set("storage.disk_free_min_bytes", free_min)
        .set("storage.disk_reserve_bytes", RESERVE)
}

fn free(path: &Path) -> Outcome<u64> {
    let stat = rustix::fs::statvfs(path)?;
    Ok(stat.f_bavail * stat.f_frsize)
}

/// Somebody else's file, which leaves so much of the disk.
fn leave(disk: &SmallDisk, bytes: u64) -> Outcome<PathBuf> {
    let path = disk.path().join("somebody-elses");
    let mut file = File::create(&path)?;
    while let Some(rest) = free(disk.path())?.checked_sub(bytes).filter(|rest| *rest > 0) {
        let count = usize::try_from(rest.min(MIB))?;
        // What others write meanwhile may take the last of it.
        if file.write_all(&vec![1; count]).is_err() {
            break;
        }
    }
    Ok(path)
}

/// Sends records of so many bytes, each with its number.
async fn send(client: &Client, topic: &str, numbers: Range<usize>, bytes: usize) -> Outcome<()> {
    let producer = client.producer(topic).build().await?;
    for number in numbers {
        let digits = number.to_string();
        let value = "0".repeat(bytes.saturating_sub(digits.len())) + &digits;
        producer.send_and_forget(Record::new(&value)).await?;
    }
    producer.flush().await?;
    Ok(())
}

/// The numbers that were relayed, in order; the relay's timer says something of its own.
async fn relayed(client: &Client) -> Outcome<Vec<usize>> {
    let read = read_all(client, "out").await?;
    let numbers = read
        .values()
        .flatten()
        .filter_map(|record| std::str::from_utf8(record.value.as_deref()?).ok()?.parse::<usize>().ok());
    let mut numbers: Vec<usize> = numbers.collect();
    numbers.sort_unstable();
    Ok(numbers)
}

async fn status_is(client: &Client, what: &str, nearly: bool, full: bool) -> Outcome<()> {
    eventually(what, PATIENCE, async || {
        let status = client.cluster_status().await.ok()?;
        (status.produce_refused == nearly && status.disk_full == full).then_some(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosted_consumers_wait_on_a_nearly_full_disk_and_go_on_by_themselves() -> Outcome<()> {
    let Some(disk) = SmallDisk::mount("size=208m") else { return Ok(()) };
    let broker = TestBroker::start(options(&disk, 40 * MIB)).await?;
    let client = broker.client().await?;
    create(&client, "t", 1).await?;
    create(&client, "out", 2).await?;
    for (name, component) in [("relay", hostile::relay()), ("counts", hostile::count_in_state())] {
        client.plugins().upload(name, "1", component).await?;
        let deployment =
            NewDeployment::consumer(name, name).topic("t").target("out").start(Position::Earliest);
        client.deployments().create(deployment).await?;
    }
    send(&client, "t", 0..300, 100).await?;
    for name in ["relay", "counts"] {
        caught_up(&client, name, 1, PATIENCE).await?;
        client.deployments().pause(name).await?;
    }
    send(&client, "t", 300..500, 100).await?;

    let filler = leave(&disk, 34 * MIB)?;
    status_is(&client, "a nearly full disk", true, false).await?;
    for name in ["relay", "counts"] {
        client.deployments().resume(name).await?;
        let waiting = eventually("a task that waits", PATIENCE, async || {
            let logs = client.deployments().logs(name, 0, 1_000).await.ok()?;
            logs.lines.iter().any(|line| line.message.contains("nearly full")).then_some(logs)
        })
        .await?;
        let waits = waiting.lines.iter().filter(|line| line.message.contains("nearly full")).count();
        assert_eq!(waits, 1, "one line, however long it waits: {:?}", waiting.lines);
        let seen = client.deployments().describe(name).await?;
        let task = seen.tasks.first().ok_or("a task")?;
        assert_eq!(task.status(), DeploymentStatus::Running, "it is not stopped: it waits");
        assert!(task.reason.contains("nearly full"), "{name}: {}", task.reason);
        assert_eq!(task.positions.first().map(|source| source.position), Some(300), "{name}");
    }
    // Positions, which let readers go on, take next to nothing.
    let commit = Commit::new(partition_of(&client, "t", 0).await?, Offset::new(7));
    client.groups().commit("readers", &[commit]).await?;
    assert_eq!(relayed(&client).await?.len(), 300);

    std::fs::remove_file(filler)?;
    for name in ["relay", "counts"] {
        let done = caught_up(&client, name, 1, PATIENCE).await?;
        assert_eq!(done.tasks.first().map(|task| task.reason.as_str()), Some(""), "{name}");
        assert_eq!(done.counters.get("room_waits"), Some(&1), "{name}: {:?}", done.counters);
        let logs = client.deployments().logs(name, 0, 1_000).await?;
        assert!(logs.lines.iter().any(|line| line.message == "goes on"), "{name}: {:?}", logs.lines);
    }
    assert_eq!(relayed(&client).await?, (0..500).collect::<Vec<_>>(), "each once");
    let state = client.state("counts").get("n", None).await?;
    assert_eq!(state.first().map(|entry| entry.value.to_vec()), Some(500u64.to_le_bytes().to_vec()));
    status_is(&client, "room again", false, false).await?;
    send(&client, "t", 500..501, 100).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retention_frees_a_disk_that_is_full_to_the_last_byte() -> Outcome<()> {
    let Some(disk) = SmallDisk::mount("size=208m") else { return Ok(()) };
    let mut broker = TestBroker::start(options(&disk, 24 * MIB)).await?;
    let client = broker.client().await?;
    let config = tidemill_client::messages::TopicConfig { segment_bytes: Some(MIB), ..Default::default() };
    client.topics().create(NewTopic::new("t", 1).config(config)).await?;
    create(&client, "kept", 1).await?;
    send(&client, "kept", 0..10, 1_000).await?;
    send(&client, "t", 0..600, 100_000).await?;
    let partition = partition_of(&client, "t", 0).await?;
    let reserve = broker.data_dir().join("reserve");
    assert_eq!(std::fs::metadata(&reserve)?.len(), RESERVE);

    // The machine stops, and when the broker comes back there is not a byte.
    broker.kill().await?;
    leave(&disk, 0)?;
    assert!(free(disk.path())? < 64 << 10 && reserve.is_file());
    broker.restart().await?;
    status_is(&client, "a full disk", true, true).await?;
    assert!(!reserve.exists(), "the reserve is what it started with");
    assert_eq!(count(&read_all(&client, "t").await?), 600);
    let commit = Commit::new(partition, Offset::new(7));
    // Tried again for a while: the disk may get room.
    let impatient = Client::connect(broker.client_config().request_timeout(Duration::from_secs(1))).await?;
    let refusal = impatient.groups().commit("readers", &[commit]).await.expect_err("there is no room");
    assert!(refusal.to_string().contains("DISK_FULL"), "{refusal}");

    client.topics().delete_records("t", PartitionId::new(0), Offset::new(590)).await?;
    status_is(&client, "room again, without anything being written", false, false).await?;
    eventually("the reserve is taken again", PATIENCE, async || {
        let held = std::fs::metadata(&reserve).ok()?;
        (held.len() == RESERVE).then_some(())
    })
    .await?;
    send(&client, "t", 600..601, 100).await?;
    broker.stop().await?;
    broker.restart().await?;
    assert_eq!(count(&read_all(&client, "kept").await?), 10);
    let left = count(&read_all(&client, "t").await?);
    assert_eq!(left, 11, "everything from the offset on");
    Ok(())
}
