//! What a disk does to files that nobody has open: flipped bits, swapped blocks.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::fixtures::Random;

const BLOCK_BYTES: u64 = 4_096;
/// Flipped bits of one fault at the most.
const FLIPS_MAX: u64 = 4;
/// Directories below a data directory that are looked into.
const DEPTH_MAX: usize = 3;
/// `shard-NN/PARTITION/`: what is staged beside it lies deeper.
const SEGMENT_DEPTH: usize = 2;

/// The newest segments of a partition that are left alone: one of them is being written, and the other may be again, after a start from an older
/// checkpoint.
const NEWEST_SEGMENTS: usize = 2;

/// Damages some file of the write-ahead log below `root`; says what was done, for people. `None`: there is none.
pub(super) fn damage_log(root: &Path, random: &mut Random) -> io::Result<Option<String>> {
    let mut files = Vec::new();
    find(root, "wal", DEPTH_MAX, &mut files)?;
    damage(files, random)
}

/// The same with a segment that was sealed long enough ago.
pub(super) fn damage_segment(root: &Path, random: &mut Random) -> io::Result<Option<String>> {
    let files = segments(root)?.into_values().flat_map(|mut files| {
        files.truncate(files.len().saturating_sub(NEWEST_SEGMENTS));
        files
    });
    damage(files.collect(), random)
}

/// The log files of the segments below a data directory, by partition's directory, in order.
pub(super) fn segments(root: &Path) -> io::Result<BTreeMap<PathBuf, Vec<PathBuf>>> {
    let mut files = Vec::new();
    find(root, "log", SEGMENT_DEPTH, &mut files)?;
    files.sort();
    let mut segments = BTreeMap::<_, Vec<_>>::new();
    for file in files {
        let partition = file.parent().unwrap_or(root).to_owned();
        segments.entry(partition).or_default().push(file);
    }
    Ok(segments)
}

fn damage(mut files: Vec<PathBuf>, random: &mut Random) -> io::Result<Option<String>> {
    // Directories are listed in any order, and the seed should decide.
    files.sort();
    if files.is_empty() {
        return Ok(None);
    }
    let path = &files[random.below(files.len() as u64) as usize];
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let length = file.metadata()?.len();
    let done = match length / BLOCK_BYTES {
        0 | 1 => flip(&file, length, random)?,
        blocks if random.chance(40) => swap(&file, blocks, random)?,
        _ => flip(&file, length, random)?,
    };
    file.sync_all()?;
    Ok(Some(format!("{}: {done}", path.display())))
}

fn find(directory: &Path, extension: &str, depth: usize, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let (path, kind) = (entry.path(), entry.file_type()?);
        if kind.is_dir() && depth > 0 {
            find(&path, extension, depth - 1, files)?;
        } else if kind.is_file()
            && path.extension().is_some_and(|found| found == extension)
            && entry.metadata()?.len() > 0
        {
            files.push(path);
        }
    }
    Ok(())
}

fn flip(file: &File, length: u64, random: &mut Random) -> io::Result<String> {
    let mut places = Vec::new();
    for _ in 0..=random.below(FLIPS_MAX) {
        let (at, bit) = (random.below(length), random.below(8));
        let mut byte = [0];
        file.read_exact_at(&mut byte, at)?;
        byte[0] ^= 1 << bit;
        file.write_all_at(&byte, at)?;
        places.push(format!("{at}.{bit}"));
    }
    Ok(format!("bits flipped at {}", places.join(", ")))
}

/// Swaps two blocks.
fn swap(file: &File, blocks: u64, random: &mut Random) -> io::Result<String> {
    let one = random.below(blocks);
    let other = (one + 1 + random.below(blocks - 1)) % blocks;
    let mut bytes = [vec![0; BLOCK_BYTES as usize], vec![0; BLOCK_BYTES as usize]];
    file.read_exact_at(&mut bytes[0], one * BLOCK_BYTES)?;
    file.read_exact_at(&mut bytes[1], other * BLOCK_BYTES)?;
    file.write_all_at(&bytes[1], one * BLOCK_BYTES)?;
    file.write_all_at(&bytes[0], other * BLOCK_BYTES)?;
    Ok(format!("blocks {one} and {other} of {BLOCK_BYTES} bytes swapped"))
}

/// Removes all that is in a directory, which stays: it may be a disk.
pub(super) fn empty(directory: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let removed = match entry.file_type()?.is_dir() {
            true => std::fs::remove_dir_all(entry.path()),
            false => std::fs::remove_file(entry.path()),
        };
        match removed {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn something_is_different_afterwards_and_as_long() {
        let mut changed = 0;
        for seed in 0..50 {
            let home = tempfile::tempdir().unwrap();
            let below = home.path().join("shard-01").join("partition");
            std::fs::create_dir_all(&below).unwrap();
            let mut before = vec![0; 5 * BLOCK_BYTES as usize + 17];
            let mut random = Random::new(seed);
            random.fill(&mut before);
            for name in ["0.log", "1.log", "2.log"] {
                std::fs::write(below.join(name), &before).unwrap();
            }
            std::fs::write(below.join("0.index"), [1, 2, 3]).unwrap();
            assert_eq!(segments(home.path()).unwrap().len(), 1);
            damage_segment(home.path(), &mut random).unwrap().expect("there is a file");
            let after = std::fs::read(below.join("0.log")).unwrap();
            changed += u32::from(after != before);
            assert_eq!(after.len(), before.len());
            assert_eq!(std::fs::read(below.join("0.index")).unwrap(), [1, 2, 3]);
            for newest in ["1.log", "2.log"] {
                assert_eq!(std::fs::read(below.join(newest)).unwrap(), before);
            }
            assert_eq!(damage_log(home.path(), &mut random).unwrap(), None);
            empty(home.path()).unwrap();
            assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), 0);
        }
        assert!(changed >= 45, "flips may undo each other, but seldom do: {changed} of 50");
    }
}
