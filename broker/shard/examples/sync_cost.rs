//! What a checkpoint's syncs cost: one per file against one of the whole file system.
//!
//! `cargo run --release -p tidemill-shard --example sync_cost [DIRECTORY]` writes 64 KiB to each of some files, as
//! write-behind does, and makes them durable both ways. `SYNC_ALL_FROM` in the checkpoint comes from here.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use tidemill_log::fs::{DiskStorage, OpenMode, Storage, StorageFile};

const ROUNDS: usize = 5;

fn main() -> std::io::Result<()> {
    let parent = std::env::args_os().nth(1).map_or_else(std::env::temp_dir, PathBuf::from);
    let dir = tempfile::tempdir_in(parent)?;
    let storage = DiskStorage::new(dir.path())?;
    println!("{:>6} {:>14} {:>14}", "files", "fsync each, ms", "syncfs, ms");
    for count in [1, 4, 16, 64, 256, 1000] {
        let files = (0..count).map(|n| storage.open(Path::new(&format!("{n}")), OpenMode::CREATE));
        let files = files.collect::<Result<Vec<_>, _>>()?;
        let each = median(&files, &|| files.iter().try_for_each(|file| file.sync_data()))?;
        let all = median(&files, &|| storage.sync_all())?;
        println!("{count:>6} {each:>14.2} {all:>14.2}");
    }
    Ok(())
}

fn median(files: &[Arc<dyn StorageFile>], sync: &dyn Fn() -> std::io::Result<()>) -> std::io::Result<f64> {
    let bytes = vec![7; 64 << 10];
    let mut taken = Vec::new();
    for _ in 0..ROUNDS {
        for file in files {
            let end = file.size()?;
            file.write_all_at(end, &bytes)?;
            file.start_writeback(end, bytes.len() as u64)?;
        }
        let started = Instant::now();
        sync()?;
        taken.push(started.elapsed().as_secs_f64() * 1e3);
    }
    taken.sort_by(f64::total_cmp);
    Ok(taken[ROUNDS / 2])
}
