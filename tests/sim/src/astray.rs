//! Where a write lands that goes astray: in the write-ahead log too, at a block's beginning, and not where it belongs.

use std::path::{Path, PathBuf};

use rand::RngExt;
use rand::rngs::StdRng;
use tidemill_log::fs::{MemoryStorage, Storage};

/// What devices and the log count in.
const BLOCK_BYTES: usize = 4096;
/// A near miss lands at most so many blocks away.
const NEAR_BLOCKS: usize = 8;

/// A place for `bytes` that belong to `path` at `offset`: half of the time near by, else anywhere in the log's files. `None` where it would be
/// the right one, or where there is none.
pub(crate) fn place(
    memory: &MemoryStorage,
    rng: &mut StdRng,
    path: &Path,
    offset: u64,
    bytes: usize,
) -> Option<(PathBuf, usize)> {
    let near = rng.random_ratio(1, 2);
    let mut files: Vec<PathBuf> = match near {
        true => vec![path.to_owned()],
        false => memory
            .list(Path::new("wal"))
            .ok()?
            .iter()
            .map(|entry| Path::new("wal").join(&entry.name))
            .collect(),
    };
    files.retain(|file| memory.contents(file).is_some_and(|held| held.len() >= bytes.max(BLOCK_BYTES)));
    if files.is_empty() {
        return None;
    }
    let file = files.swap_remove(rng.random_range(0..files.len()));
    let last = (memory.contents(&file)?.len() - bytes) / BLOCK_BYTES;
    let right = usize::try_from(offset).ok()? / BLOCK_BYTES;
    let blocks =
        if near { right.saturating_sub(NEAR_BLOCKS)..=(right + NEAR_BLOCKS).min(last) } else { 0..=last };
    if blocks.is_empty() {
        return None;
    }
    let block = rng.random_range(blocks);
    (file != path || block != right).then_some((file, block * BLOCK_BYTES))
}

/// Puts `bytes` over what a file holds from `at` on.
pub(crate) fn put(file: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(place) = file.get_mut(at..at + bytes.len()) {
        place.copy_from_slice(bytes);
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use tidemill_log::fs::OpenMode;

    use super::*;

    #[test]
    fn a_place_is_a_block_of_the_log_and_never_the_right_one() {
        const BYTES: usize = 2 * BLOCK_BYTES;
        let memory = MemoryStorage::new();
        memory.create_dir_all(Path::new("wal")).unwrap();
        let files = ["wal/1.wal", "wal/2.wal"].map(Path::new);
        for file in files {
            memory.open(file, OpenMode::CREATE).unwrap().write_all_at(0, &[1; 8 * BLOCK_BYTES]).unwrap();
        }
        let mut found = std::collections::BTreeSet::new();
        for seed in 0..500 {
            let mut rng = StdRng::seed_from_u64(seed);
            let Some((file, at)) = place(&memory, &mut rng, files[0], 4096, BYTES) else { continue };
            assert!(files.contains(&&*file) && at % BLOCK_BYTES == 0, "{} at {at}", file.display());
            assert!(
                at + BYTES <= 8 * BLOCK_BYTES && (file != files[0] || at != 4096),
                "{} at {at}",
                file.display()
            );
            found.insert((file, at));
        }
        assert_eq!(found.len(), 2 * 7 - 1, "all other places of both files");
    }
}
