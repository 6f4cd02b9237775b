//! What the disk gives without a log: appends to a file that has all its blocks, each followed by fdatasync.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tidemill_log::fs::{AlignedBuffer, DiskStorage, OpenMode, Storage, StorageFile};

use crate::Outcome;
use crate::stats::Latencies;

/// As large as one file of the write-ahead log.
const FILE_BYTES: u64 = 64 << 20;
const FILE: &str = "bare";

/// A pre-written file, opened for direct I/O where the file system allows it: as the write-ahead log has its own.
pub(crate) struct BareFile {
    root: PathBuf,
    file: Arc<dyn StorageFile>,
}

impl BareFile {
    /// In `dir`, on the disk that the broker's directory is on.
    pub(crate) fn create(dir: &Path) -> Outcome<Self> {
        let storage = DiskStorage::new(dir)?;
        let mode = OpenMode::CREATE.with_direct(true);
        let path = Path::new(FILE);
        let file = storage.open(path, mode).or_else(|_| storage.open(path, mode.with_direct(false)))?;
        let blocks = AlignedBuffer::zeroed(1 << 20);
        let mut at = file.size()?;
        while at < FILE_BYTES {
            file.write_all_at(at, &blocks)?;
            at += blocks.len() as u64;
        }
        file.sync_data()?;
        Ok(Self { root: dir.to_owned(), file })
    }

    /// Writes of `bytes`, rounded up to whole blocks, one after another, each followed by fdatasync. With a period one falls due that
    /// often, and is timed from then on where the one before it took longer; without, each begins when the one before it has ended.
    pub(crate) async fn appends(
        &self,
        bytes: usize,
        leg: Duration,
        period: Option<Duration>,
    ) -> Outcome<Latencies> {
        let file = Arc::clone(&self.file);
        tokio::task::spawn_blocking(move || appends(&*file, bytes, leg, period)).await?
    }
}

impl Drop for BareFile {
    fn drop(&mut self) {
        // It lies in a directory that goes as a whole; sooner is better for the disk's room.
        let _ = std::fs::remove_file(self.root.join(FILE));
    }
}

fn appends(
    file: &dyn StorageFile,
    bytes: usize,
    leg: Duration,
    period: Option<Duration>,
) -> Outcome<Latencies> {
    let buffer = AlignedBuffer::zeroed(bytes);
    let mut latencies = Latencies::new()?;
    let until = Instant::now() + leg;
    let mut at = 0;
    let mut begun = Instant::now();
    while begun < until {
        file.write_all_at(at, &buffer)?;
        file.sync_data()?;
        let now = Instant::now();
        latencies.record(now - begun);
        begun = match period {
            None => now,
            Some(period) => wait_until(begun + period, now),
        };
        at += buffer.len() as u64;
        if at + buffer.len() as u64 > FILE_BYTES {
            at = 0;
        }
    }
    Ok(latencies)
}

/// When what is due then begins to count: then, or where there was time to sleep, on waking, as a sender's clock begins with its call.
fn wait_until(due: Instant, now: Instant) -> Instant {
    if due <= now {
        return due;
    }
    std::thread::sleep(due - now);
    Instant::now()
}
