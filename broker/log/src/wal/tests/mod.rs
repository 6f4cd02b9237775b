//! The log as a whole, on storages that forget, tear, flip and fail.

mod carry;
mod damage;
mod faults;
mod format;
mod model;
mod released;
mod tail;
mod use_of_it;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};

use bytes::Bytes;
use tidemill_protocol::{LogIndex, ShardId, Term};

use super::*;
use crate::fs::{MemoryStorage, Storage};

pub(super) const A: ShardId = ShardId::new(1);
pub(super) const B: ShardId = ShardId::new(2);

/// Small files, so that tests roll, recycle and scan quickly.
pub(super) fn config() -> WalConfig {
    WalConfig {
        segment_bytes: 128 << 10,
        write_bytes_max: 16 << 10,
        cache_bytes: 64 << 10,
        queue_bytes_max: 256 << 10,
        salt_seed: Some(7),
        ..WalConfig::new("wal")
    }
}

pub(super) fn open(storage: &MemoryStorage) -> (Wal, Recovery) {
    open_with(storage, &config())
}

pub(super) fn open_with(storage: &MemoryStorage, config: &WalConfig) -> (Wal, Recovery) {
    Wal::open(Arc::new(storage.clone()), config).unwrap()
}

pub(super) fn id(index: u64) -> EntryId {
    id_of_term(index, 1)
}

pub(super) fn id_of_term(index: u64, term: u64) -> EntryId {
    EntryId { term: Term::new(term), leader_node: 10 + term, index: LogIndex::new(index) }
}

/// An entry whose bytes tell which it is.
pub(super) fn entry(index: u64, bytes: usize) -> WalEntry {
    entry_of(id(index), bytes)
}

pub(super) fn entry_of(id: EntryId, bytes: usize) -> WalEntry {
    let seed = id.index.get() * 31 + id.term.get() * 7;
    let payload: Vec<u8> = (0..bytes as u64).map(|place| (seed + place * place) as u8).collect();
    let payload = Bytes::from(payload);
    let cut = bytes / 3;
    WalEntry { id, payload: EntryBytes::from_pieces(vec![payload.slice(..cut), payload.slice(cut..)]) }
}

/// Starts an operation and waits for its completion.
pub(super) fn wait(start: impl FnOnce(Completion)) -> Result<(), WalError> {
    let (done, result) = mpsc::channel();
    start(Box::new(move |outcome| drop(done.send(outcome))));
    result.recv().expect("a completion is always called")
}

pub(super) fn append(wal: &Wal, shard: ShardId, entries: Vec<WalEntry>) -> Result<(), WalError> {
    wait(|done| wal.append(shard, entries, done))
}

pub(super) fn vote(wal: &Wal, shard: ShardId, text: &'static str) -> Result<(), WalError> {
    wait(|done| wal.save_vote(shard, Bytes::from(text), done))
}

pub(super) fn purge(wal: &Wal, shard: ShardId, index: u64) -> Result<(), WalError> {
    wait(|done| wal.purge(shard, id(index), done))
}

pub(super) fn read_all(wal: &Wal, shard: ShardId) -> Vec<WalEntry> {
    let range = wal.range(shard);
    let (Some(first), Some(last)) = (range.first, range.last) else {
        return Vec::new();
    };
    let mut entries: Vec<WalEntry> = Vec::new();
    while entries.last().is_none_or(|entry| entry.id != last) {
        let from = entries.last().map_or(first, |entry| entry.id.index.next());
        entries.extend(wal.read(shard, from, last.index.next(), 20_000).unwrap());
    }
    entries
}

/// Files of the log that hold a life, by segment number.
pub(super) fn segment_paths(storage: &MemoryStorage) -> BTreeMap<u64, PathBuf> {
    let seen = inspect(storage, Path::new("wal"), &mut |_| {}).unwrap();
    seen.segments.into_iter().map(|segment| (segment.number, segment.path)).collect()
}

pub(super) fn frames(storage: &MemoryStorage) -> Vec<InspectedFrame> {
    let mut frames = Vec::new();
    inspect(storage, Path::new("wal"), &mut |frame| frames.push(*frame)).unwrap();
    frames
}

pub(super) fn names(storage: &MemoryStorage) -> Vec<String> {
    storage.list(Path::new("wal")).unwrap().into_iter().map(|entry| entry.name).collect()
}
