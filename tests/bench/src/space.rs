//! What the disk must have, and that it is a disk.

use std::path::Path;

use crate::Outcome;

/// `f_type` of tmpfs and ramfs in statfs(2).
const IN_MEMORY: [u64; 2] = [0x0102_1994, 0x8584_58f6];
const GIB: f64 = (1_u64 << 30) as f64;

/// Refuses a directory in memory, where a sync costs nothing, and one without room.
pub(crate) fn check(dir: &Path, needed_bytes: u64) -> Outcome<()> {
    let kind = u64::try_from(rustix::fs::statfs(dir)?.f_type).unwrap_or_default();
    if IN_MEMORY.contains(&kind) {
        return Err(format!(
            "{} is in memory, where a sync costs nothing: name a directory on a disk with --dir",
            dir.display()
        )
        .into());
    }
    let free_bytes = free(dir)?;
    println!(
        "Free on the disk of {}: {:.0} GiB; needed at most: {:.0} GiB.",
        dir.display(),
        free_bytes as f64 / GIB,
        needed_bytes as f64 / GIB
    );
    if free_bytes < needed_bytes {
        return Err(format!(
            "{:.1} GiB are free on the disk of {}, and these rows need up to {:.1}: free some, name another directory with --dir, or choose rows with --rows",
            free_bytes as f64 / GIB, dir.display(), needed_bytes as f64 / GIB
        ).into());
    }
    Ok(())
}

/// Bytes that this user may still write on the disk of `dir`.
pub(crate) fn free(dir: &Path) -> Outcome<u64> {
    let space = rustix::fs::statvfs(dir)?;
    Ok(space.f_bavail.saturating_mul(space.f_frsize))
}
