//! What earlier releases wrote is read back, and what this one writes is the same.
//!
//! `tests/fixtures/format-1` is a small data directory of format 1: write-ahead log, segments with their indexes, and state
//! files of three shards, each file compressed by zstd, zeros left out. `expected` beside it says what was read from it when
//! it was made. It was written by
//!
//! ```text
//! TIDEMILL_WRITE_FORMAT=1 cargo test -p tidemill-raft tests::format
//! ```
//!
//! and is never written again: a release that changes a stored format raises that format's version, keeps this test for what
//! can be read of the old one, and adds a directory of its own. What is compared is read, and also encoded again: an encoding
//! that changed under its version shows, though it still decodes.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tidemill_log::fs::{DiskStorage, MemoryStorage, OpenMode, Storage};
use tidemill_log::wal::{WalConfig, inspect};
use tidemill_protocol::{LogIndex, ShardId, Timestamp};
use tidemill_shard::{Shard, StateEntry, UnitResult};

use super::fixture::{Broker, PATIENCE, records};
use super::format_history::{self as history, CONTROLLER, MAIN, QUIET};
use crate::codec;
use crate::replica::Replica;
use crate::types::{Payload, StoredMembership, log_id};

const SHARDS: [ShardId; 3] = [CONTROLLER, MAIN, QUIET];

fn config() -> WalConfig {
    let config = WalConfig { segment_bytes: 256 << 10, write_bytes_max: 64 << 10, ..WalConfig::new("wal") };
    WalConfig { salt_seed: Some(1), ..config }
}

fn open(memory: &MemoryStorage) -> Broker {
    let storage: Arc<dyn Storage> = Arc::new(memory.clone());
    let mut broker = Broker::open_with(Arc::clone(&storage), storage, &config());
    broker.limits.unit_bytes_max = 16 << 10;
    broker.limits.entry_bytes_max = 16 << 10;
    broker
}

/// The directory of the fixture.
fn fixture() -> DiskStorage {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/format-1");
    DiskStorage::new(path).unwrap()
}

fn read(storage: &dyn Storage, path: &Path) -> Vec<u8> {
    let file = storage.open(path, OpenMode::READ).unwrap();
    let mut bytes = vec![0; usize::try_from(file.size().unwrap()).unwrap()];
    file.read_exact_at(0, &mut bytes).unwrap();
    bytes
}

fn write(storage: &dyn Storage, path: &Path, bytes: &[u8]) {
    storage.create_dir_all(path.parent().unwrap()).unwrap();
    let file = storage.open(path, OpenMode::CREATE).unwrap();
    file.set_len(0).unwrap();
    file.write_all_at(0, bytes).unwrap();
}

/// All files below `dir`, in order.
fn files(storage: &dyn Storage, dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in storage.list(dir).unwrap() {
        let path = dir.join(&entry.name);
        match entry.is_dir {
            true => found.extend(files(storage, &path)),
            false => found.push(path),
        }
    }
    found.sort_unstable();
    found
}

/// The data directory that the fixture holds, in memory.
fn unpacked() -> MemoryStorage {
    let (fixture, memory) = (fixture(), MemoryStorage::new());
    for path in files(&fixture, Path::new("data")) {
        let bytes = zstd::decode_all(&read(&fixture, &path)[..]).unwrap();
        let path = path.strip_prefix("data").unwrap().with_extension("");
        write(&memory, &path, &bytes);
    }
    // What was written is there for good.
    memory.sync_all().unwrap();
    memory
}

/// Everything that was stored, for people and for comparison.
fn describe(memory: &MemoryStorage) -> String {
    let broker = open(memory);
    let mut text = String::new();
    let mut kinds = BTreeSet::new();
    inspect(memory, Path::new("wal"), &mut |frame| kinds.extend([format!("{:?}", frame.kind)])).unwrap();
    writeln!(text, "kinds of frames: {kinds:?}").unwrap();
    for number in SHARDS {
        let recovered = broker.recovered(number);
        assert!(recovered.doubtful.is_none());
        let vote = recovered.vote.unwrap();
        assert_eq!(codec::encode_vote(&codec::decode_vote(&vote).unwrap()), vote);
        let committed = recovered.committed.unwrap();
        assert_eq!(codec::encode_log_id(&codec::decode_log_id(&committed).unwrap()), committed);
        let shard = broker.shard(number);
        let applied = shard.applied().last.map(|id| id.index.get());
        let (first, last) = (recovered.first.map(LogIndex::get), recovered.last.map(|id| id.index.get()));
        writeln!(text, "shard {number}: checkpoint {applied:?}, log {first:?} to {last:?}").unwrap();
        let manifest =
            shard.snapshot().map(|snapshot| blake3::hash(&snapshot.manifest().encode()).to_string());
        writeln!(text, "  manifest {}", manifest.unwrap_or_else(|error| error.to_string())).unwrap();
        replay(&broker, number, &shard);
        writeln!(text, "  state {}", blake3::Hash::from(shard.state_hash().unwrap())).unwrap();
        describe_shard(&shard, &mut text);
    }
    text
}

/// Applies what the log has behind the checkpoint, each entry read and encoded again.
fn replay(broker: &Broker, number: ShardId, shard: &Shard) {
    let range = broker.wal.range(number);
    let (Some(first), Some(last)) = (range.first, range.last) else { return };
    let applied = shard.applied().last.map(|id| id.index);
    let mut next = first;
    while next <= last.index {
        for entry in broker.wal.read(number, next, last.index.next(), 1 << 20).unwrap() {
            let payload = codec::decode_payload(entry.payload.pieces()).unwrap();
            let again = codec::encode_payload(&payload).concat();
            assert_eq!(again, entry.payload.to_bytes(), "entry {} of shard {number}", entry.id.index);
            next = entry.id.index.next();
            if applied >= Some(entry.id.index) {
                continue;
            }
            match payload {
                Payload::Blank => shard.apply_blank(entry.id).unwrap(),
                Payload::Normal(command) => drop(shard.apply(entry.id, command.entry()).unwrap()),
                Payload::Membership(membership) => {
                    let stored = StoredMembership::new(Some(log_id(&entry.id)), membership);
                    shard.apply_membership(entry.id, &codec::encode_stored_membership(&stored)).unwrap();
                }
            }
        }
    }
}

fn describe_shard(shard: &Shard, text: &mut String) {
    let membership = shard.applied().membership.unwrap();
    let decoded = codec::decode_stored_membership(&membership).unwrap();
    assert_eq!(codec::encode_stored_membership(&decoded), membership);
    writeln!(text, "  members {decoded}").unwrap();
    for (partition, view) in shard.partitions() {
        let records = blake3::hash(&records(shard, partition, view.log_start));
        writeln!(text, "  {partition}: {} to {}, {records}", view.log_start, view.high_watermark).unwrap();
    }
    for group in shard.group_names() {
        for (partition, position) in shard.group(&group).unwrap() {
            writeln!(text, "  group {group}: {partition} at {}", position.offset).unwrap();
        }
    }
    for task in shard.tasks() {
        let (name, life) = (format!("{}-{}", task.deployment, task.partition), task.incarnation);
        writeln!(text, "  task {name}: epoch {}, life {life}, {:?}", task.epoch, task.status).unwrap();
        for (source, position) in &task.positions {
            writeln!(text, "    {source} at {position}").unwrap();
        }
        for (target, bytes) in &task.outbox {
            writeln!(text, "    {bytes} bytes for {target}").unwrap();
        }
        let state = shard.state_scan(task.deployment, task.partition, &[], None, 100).unwrap();
        for StateEntry { key, value, expires_at } in state.entries {
            let expires_at = expires_at.map(Timestamp::get);
            writeln!(text, "    {key:?} = {value:?}, expires {expires_at:?}").unwrap();
        }
    }
    let Some(controller) = shard.controller() else { return };
    for topic in controller.topics() {
        let (name, version, deleted) = (&topic.name, topic.version, topic.deleted);
        writeln!(text, "  topic {name}: version {version}, deleted {deleted}").unwrap();
    }
    for plugin in controller.plugins() {
        writeln!(text, "  plugin {}: version {}", plugin.name, plugin.version).unwrap();
    }
    for known in controller.deployments() {
        writeln!(text, "  deployment {}: version {}", known.spec.name, known.version).unwrap();
    }
}

async fn propose_all(replica: &Replica, units: Vec<tidemill_shard::Unit>) {
    for unit in units {
        let said = format!("{unit:?}");
        let result = replica.propose(unit).await.unwrap();
        assert!(history::is_done(&result), "{said}: {result:?}");
    }
}

/// Makes a data directory whose every kind of file and row has something in it.
async fn make() -> MemoryStorage {
    let memory = MemoryStorage::new();
    let broker = open(&memory);
    let [controller, main, quiet] = [CONTROLLER, MAIN, QUIET].map(|shard| broker.start(shard));
    let (controller, main, quiet) = (controller.await, main.await, quiet.await);
    propose_all(&quiet, history::of_quiet_shard()).await;
    propose_all(&controller, history::of_controller()).await;
    propose_all(&main, history::before_checkpoint()).await;
    // The quiet shard stands for one that stopped: what it has is carried forward, and it makes no checkpoint.
    let (done, durable) = std::sync::mpsc::channel();
    let carried = broker.wal.carry_forward(QUIET, 1 << 20, Box::new(move |result| drop(done.send(result))));
    assert!(carried.unwrap() > 2, "the log is more than a segment");
    durable.recv().unwrap().unwrap();
    for replica in [&controller, &main] {
        replica.checkpoint().await.unwrap();
    }
    let task = main.shard().tasks().remove(0);
    propose_all(&main, history::after_checkpoint(task.incarnation)).await;
    propose_all(&controller, history::of_controller_later()).await;
    let live = [&controller, &main, &quiet].map(|replica| replica.shard().state_hash().unwrap());
    for replica in [controller, main, quiet] {
        replica.stop().await;
    }
    broker.wal.close().unwrap();
    let text = describe(&memory.kill());
    for hash in live {
        assert!(text.contains(&blake3::Hash::from(hash).to_string()), "what is stored is what was in memory");
    }
    memory.kill()
}

#[allow(clippy::disallowed_methods, reason = "a command for people, not a part of the broker")]
fn is_to_be_written() -> bool {
    std::env::var_os("TIDEMILL_WRITE_FORMAT").is_some()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn format_1_reads_as_it_always_did() {
    if is_to_be_written() {
        let (made, fixture) = (make().await, fixture());
        drop(fixture.remove_dir_all(Path::new("data")));
        for path in files(&made, Path::new("")) {
            let bytes = read(&made, &path);
            // Files that are ready for the log hold nothing yet.
            if bytes.iter().any(|byte| *byte != 0) {
                let packed = zstd::encode_all(&bytes[..], 19).unwrap();
                write(&fixture, &Path::new("data").join(format!("{}.zst", path.display())), &packed);
            }
        }
        write(&fixture, Path::new("expected"), describe(&made).as_bytes());
    }
    let expected = String::from_utf8(read(&fixture(), Path::new("expected"))).unwrap();
    let found = describe(&unpacked());
    assert!(
        found == expected,
        "a stored format changed: raise its version, keep format 1 readable, and see the top of this file\n\
         expected:\n{expected}\nfound:\n{found}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_of_format_1_goes_on() {
    let memory = unpacked();
    for life in 0..2 {
        let mut broker = open(&memory);
        broker.init = false;
        for shard in SHARDS {
            let replica = broker.start(shard).await;
            let more = history::more_of(shard);
            let result = replica.propose(more).await.unwrap();
            assert!(history::is_done(&result), "life {life}, shard {shard}: {result:?}");
            replica.checkpoint().await.unwrap();
            replica.stop().await;
        }
        broker.wal.close().unwrap();
    }
}

/// The history itself does what it says, whatever the fixture holds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_made_now_is_read_back_whole() {
    let memory = make().await;
    let broker = open(&memory);
    let replica = broker.start(MAIN).await;
    let end = replica.shard().partition(history::SOURCE).unwrap().high_watermark;
    let appended = replica.propose(history::more_of(MAIN)).await.unwrap();
    assert!(
        matches!(appended, UnitResult::Appended { base_offset, .. } if base_offset == end),
        "{appended:?}"
    );
    tokio::time::timeout(PATIENCE, replica.stop()).await.unwrap();
}
