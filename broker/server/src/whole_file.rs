//! Small files beside the log's that are there whole or not at all.

use std::fs::{self, File};
use std::io;
use std::path::Path;

/// Writes `DIR/NAME` by way of `DIR/NAME.new`. Durable when this returns.
pub(crate) fn write_whole(directory: &Path, name: &str, text: &str) -> io::Result<()> {
    let beside = directory.join(format!("{name}.new"));
    fs::write(&beside, text)?;
    File::open(&beside)?.sync_all()?;
    fs::rename(&beside, directory.join(name))?;
    File::open(directory)?.sync_all()
}
