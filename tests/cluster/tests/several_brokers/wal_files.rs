//! The file of a broker's write-ahead log that it wrote to last, and what a disk does to it while nobody has it open.

use std::fs::OpenOptions;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tidemill_cluster_tests::Outcome;
use tidemill_cluster_tests::waiting::eventually;
use tidemill_log::fs::DiskStorage;
use tidemill_log::wal::{InspectedEnd, InspectedFrame, inspect};

const BLOCK_BYTES: usize = 4_096;
/// Blocks of data after which a file has a middle and an end that are worth losing; and one that has more may be full, and no longer the
/// newest, when its broker is gone.
const WELL_FILLED: Range<u64> = 64..1_536;
const PATIENCE: Duration = Duration::from_secs(60);

/// Blocks are counted from the file's begin; the first ones hold what the file repeats of those before it.
pub(crate) struct NewestFile {
    path: PathBuf,
    /// Those that hold what was written to it, as far as that reads.
    pub(crate) data: Range<u64>,
    /// All that the file has.
    blocks: u64,
    /// What was written to it.
    pub(crate) frames: Vec<InspectedFrame>,
}

impl NewestFile {
    /// Of the log in this data directory, whose broker may run.
    pub(crate) fn find(data_dir: &Path) -> Outcome<Self> {
        let storage = DiskStorage::new(data_dir)?;
        let mut frames = Vec::new();
        let inspected = inspect(&storage, Path::new("wal"), &mut |frame| frames.push(*frame))?;
        let newest = inspected.segments.last().ok_or("the log has no file that was written to")?;
        frames.retain(|frame| frame.segment == newest.number && !frame.repeated);
        let blocks = u64::from(newest.blocks);
        let begin = u64::from(newest.preamble_blocks) + 1;
        let end = match newest.end {
            InspectedEnd::BadBlock { block } | InspectedEnd::BadFrame { block } => block,
            InspectedEnd::Sealed | InspectedEnd::Full => blocks,
        };
        Ok(Self { path: data_dir.join(&newest.path), data: begin..end.max(begin), blocks, frames })
    }

    /// Waits until a broker under load has written to it for a while, and does not end it soon.
    pub(crate) async fn well_filled(data_dir: &Path) -> Outcome<()> {
        eventually("the newest file of the log is well filled", PATIENCE, async || {
            // Files come and go while it is looked.
            let newest = Self::find(data_dir).ok()?;
            WELL_FILLED.contains(&(newest.data.end - newest.data.start)).then_some(())
        })
        .await
    }

    /// Changes each of these blocks.
    pub(crate) fn change(&self, blocks: Range<u64>, change: impl Fn(&mut [u8])) -> Outcome<()> {
        let file = OpenOptions::new().read(true).write(true).open(&self.path)?;
        let mut block = vec![0; BLOCK_BYTES];
        for number in blocks {
            let at = number * BLOCK_BYTES as u64;
            file.read_exact_at(&mut block, at)?;
            change(&mut block);
            file.write_all_at(&block, at)?;
        }
        Ok(file.sync_all()?)
    }

    /// Leaves nothing of what stands at a block and behind it: as if it had never been written.
    pub(crate) fn lose_from(&self, block: u64) -> Outcome<()> {
        self.change(block..self.blocks, |bytes| bytes.fill(0))
    }
}
