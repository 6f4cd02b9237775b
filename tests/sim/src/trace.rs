//! What happened, line by line.

use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::time::Instant;

/// The trace of a run; clones share it. Two runs are the same if their traces are, byte for byte.
#[derive(Clone)]
pub struct Trace(Arc<Inner>);

struct Inner {
    began: Instant,
    lines: Mutex<Vec<String>>,
}

impl Trace {
    /// A trace that begins now, by the runtime's clock.
    pub(crate) fn begin() -> Self {
        Self(Arc::new(Inner { began: Instant::now(), lines: Mutex::default() }))
    }

    /// Simulated milliseconds since the beginning.
    pub(crate) fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.0.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Adds a line, with the time before it.
    pub(crate) fn note(&self, what: fmt::Arguments<'_>) {
        let line = format!("{:>9} {what}", self.elapsed_ms());
        self.0.lines.lock().push(line);
    }

    /// All lines so far.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        self.0.lines.lock().clone()
    }

    /// The digest of all lines so far.
    #[must_use]
    pub fn digest(&self) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        for line in &*self.0.lines.lock() {
            hasher.update(line.as_bytes());
            hasher.update(b"\n");
        }
        hasher.finalize()
    }
}

impl fmt::Debug for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trace").field("lines", &self.0.lines.lock().len()).finish()
    }
}
