//! What the log costs over the device: appends of a size, one after another and pipelined, beside bare writes of the
//! same size with fdatasync on a pre-written file.
//!
//! `cargo bench -p tidemill-log --bench wal [-- DIRECTORY]`: the directory decides which disk is measured.

use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tidemill_log::fs::{AlignedBuffer, DiskStorage, OpenMode, Storage};
use tidemill_log::wal::{Durability, EntryId, Wal, WalConfig, WalEntry};
use tidemill_protocol::{LogIndex, ShardId, Term};

const LEG: Duration = Duration::from_millis(1500);
const ROUNDS: usize = 3;
const FILE_BYTES: u64 = 64 << 20;
/// The log may hold this much; more means that it is not recycled, and the disk is not ours to fill.
const LOG_BYTES_MAX: u64 = 512 << 20;
const SIZES: [(&str, usize); 4] =
    [("100 B", 100), ("4 KiB", 4 << 10), ("64 KiB", 64 << 10), ("1 MiB", 1 << 20)];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let given = std::env::args().skip(1).find(|argument| !argument.starts_with("--"));
    let temporary = tempfile::tempdir_in(given.map_or_else(std::env::temp_dir, PathBuf::from))?;
    let storage: Arc<dyn Storage> = Arc::new(DiskStorage::new(temporary.path())?);
    println!(
        "{:>7}  {:>26}  {:>20}  {:>26}  {:>26}",
        "size", "bare write + fdatasync", "log, one at a time", "log, 8 waiting", "log, 8, replicated"
    );
    for (name, bytes) in SIZES {
        let mut cells = [const { Vec::new() }; 4];
        for _ in 0..ROUNDS {
            // Interleaved, so that a slow moment of the disk hits all alike.
            cells[0].push(bare(&*storage, bytes)?);
            cells[1].push(log(&storage, bytes, 1, Durability::Fsync)?);
            cells[2].push(log(&storage, bytes, 8, Durability::Fsync)?);
            let flush_interval = Duration::from_millis(10);
            cells[3].push(log(&storage, bytes, 8, Durability::Replicated { flush_interval })?);
        }
        let rates = cells.map(|mut legs| {
            legs.sort_by(f64::total_cmp);
            legs[ROUNDS / 2]
        });
        let cell = |rate: f64| format!("{:8.1} MB/s {:8.1} us", rate * bytes as f64 / 1e6, 1e6 / rate);
        println!("{name:>7}  {}  {}  {}  {}", cell(rates[0]), cell(rates[1]), cell(rates[2]), cell(rates[3]));
    }
    Ok(())
}

/// Writes per second of whole blocks, each followed by fdatasync, on a file that has all its blocks.
fn bare(storage: &dyn Storage, bytes: usize) -> std::io::Result<f64> {
    let path = Path::new("bare");
    let mode = OpenMode::CREATE.with_direct(true);
    let file = storage.open(path, mode).or_else(|_| storage.open(path, mode.with_direct(false)))?;
    let buffer = AlignedBuffer::zeroed(1 << 20);
    while file.size()? < FILE_BYTES {
        file.write_all_at(file.size()?, &buffer)?;
    }
    file.sync_data()?;
    let buffer = AlignedBuffer::zeroed(bytes);
    let (begin, mut count, mut at) = (Instant::now(), 0_u32, 0);
    while begin.elapsed() < LEG {
        file.write_all_at(at, &buffer)?;
        file.sync_data()?;
        count += 1;
        at += buffer.len() as u64;
        if at + buffer.len() as u64 > FILE_BYTES {
            at = 0;
        }
    }
    Ok(f64::from(count) / begin.elapsed().as_secs_f64())
}

/// Appends per second with so many waiting for their completions at any time.
fn log(
    storage: &Arc<dyn Storage>,
    bytes: usize,
    in_flight: u32,
    durability: Durability,
) -> Result<f64, Box<dyn std::error::Error>> {
    let config = WalConfig { durability, spare_bytes_max: LOG_BYTES_MAX, ..WalConfig::new("wal") };
    let (wal, _) = Wal::open(Arc::clone(storage), &config)?;
    let shard = ShardId::new(1);
    let payload = Bytes::from(vec![7; bytes]);
    let (done, results) = mpsc::channel();
    let mut index = wal.range(shard).last.map_or(0, |last| last.index.get());
    let id = |index| EntryId { term: Term::new(1), leader_node: 1, index: LogIndex::new(index) };
    let (mut waiting, mut count, mut begin) = (0, 0_u32, Instant::now());
    let mut warm = false;
    while begin.elapsed() < LEG || !warm {
        if !warm && begin.elapsed() > LEG / 3 {
            // By now the files that are written to have been recycled.
            (warm, count, begin) = (true, 0, Instant::now());
        }
        while waiting < in_flight {
            index += 1;
            let entry = WalEntry { id: id(index), payload: payload.clone().into() };
            let done = done.clone();
            wal.append(shard, vec![entry], Box::new(move |result| drop(done.send(result))));
            waiting += 1;
        }
        results.recv()??;
        waiting -= 1;
        count += 1;
        if index % (1 + (32 << 20) / bytes.max(4096) as u64) == 0 {
            if wal.bytes() > LOG_BYTES_MAX {
                return Err(format!("the log holds {} bytes though it is purged", wal.bytes()).into());
            }
            wal.applied(shard, LogIndex::new(index - u64::from(waiting)));
            wal.purge(shard, id(index - u64::from(waiting)), Box::new(|_| {}));
        }
    }
    let rate = f64::from(count) / begin.elapsed().as_secs_f64();
    wal.close()?;
    Ok(rate)
}
