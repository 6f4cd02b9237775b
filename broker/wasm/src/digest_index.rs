//! Where the artifacts' digests are kept: apart from the artifacts, so that whoever can write one can't write the other.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;

/// Keeps each artifact's digest by its name. Blocking; called where blocking is allowed.
pub trait DigestIndex: Send + Sync + 'static {
    /// The digest noted for a name, if there is one.
    fn get(&self, name: &str) -> Option<[u8; 32]>;

    /// Notes a digest durably enough that losing it costs a compilation and no more.
    fn put(&self, name: &str, digest: [u8; 32]) -> io::Result<()>;

    /// Forgets a name.
    fn remove(&self, name: &str) -> io::Result<()>;
}

/// A digest index in one text file, a line `name digest` each, replaced as a whole when it changes.
pub struct FileDigestIndex {
    path: PathBuf,
    digests: Mutex<BTreeMap<String, [u8; 32]>>,
}

impl FileDigestIndex {
    /// Reads the file if there is one. Lines that make no sense are left out: what they named is compiled again.
    pub fn open(path: impl Into<PathBuf>) -> io::Result<Self> {
        let path = path.into();
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => String::new(),
            Err(error) => return Err(error),
        };
        let digests = text.lines().filter_map(read_line).collect();
        Ok(Self { path, digests: Mutex::new(digests) })
    }

    fn write(&self, digests: &BTreeMap<String, [u8; 32]>) -> io::Result<()> {
        let mut text = String::new();
        for (name, digest) in digests {
            text.push_str(&format!("{name} {}\n", blake3::Hash::from_bytes(*digest).to_hex()));
        }
        replace_file(&self.path, text.as_bytes())
    }
}

impl DigestIndex for FileDigestIndex {
    fn get(&self, name: &str) -> Option<[u8; 32]> {
        self.digests.lock().get(name).copied()
    }

    fn put(&self, name: &str, digest: [u8; 32]) -> io::Result<()> {
        let mut digests = self.digests.lock();
        digests.insert(name.to_owned(), digest);
        self.write(&digests)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut digests = self.digests.lock();
        if digests.remove(name).is_some() { self.write(&digests) } else { Ok(()) }
    }
}

fn read_line(line: &str) -> Option<(String, [u8; 32])> {
    let (name, digest) = line.split_once(' ')?;
    Some((name.to_owned(), *blake3::Hash::from_hex(digest).ok()?.as_bytes()))
}

/// Writes beside the file, readable by its owner alone, and renames: a reader sees the old or the new one.
pub(crate) fn replace_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(format!(".{:016x}.tmp", rand::random::<u64>()));
    let beside = PathBuf::from(beside);
    let written = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&beside)
        .and_then(|mut file| file.write_all(bytes))
        .and_then(|()| fs::rename(&beside, path));
    if written.is_err() {
        // What could not be written whole is of no use; the first error is the one to report.
        let _ = fs::remove_file(&beside);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_survive_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("digests");
        let index = FileDigestIndex::open(&path).unwrap();
        index.put("a", [1; 32]).unwrap();
        index.put("b", [2; 32]).unwrap();
        index.remove("a").unwrap();
        index.remove("never there").unwrap();
        let again = FileDigestIndex::open(&path).unwrap();
        assert_eq!(again.get("a"), None);
        assert_eq!(again.get("b"), Some([2; 32]));
    }

    #[test]
    fn a_damaged_file_is_an_index_of_what_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("digests");
        let line = format!("good {}\n", blake3::Hash::from_bytes([3; 32]).to_hex());
        fs::write(&path, format!("\n bad\nshort 00ff\n{line}cut {}", &line[5..20])).unwrap();
        let index = FileDigestIndex::open(&path).unwrap();
        assert_eq!(index.get("good"), Some([3; 32]));
        assert_eq!(index.get("short"), None);
        fs::write(&path, [0xff, 0xfe]).unwrap();
        assert_eq!(FileDigestIndex::open(&path).unwrap().get("good"), None);
    }
}
