use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use crate::event::{Event, Header};

/// Kept in memory before it is written; all that a recorder keeps.
const BUFFER_BYTES: usize = 1 << 20;

/// Writes a history while it happens, from as many threads as like to. Clones write to the same history.
///
/// Record what is about to be done before it is done, and what came of it once it is known: `record` returns when the event has its
/// place in the history.
#[derive(Clone)]
pub struct Recorder {
    shared: Arc<Mutex<Shared>>,
}

struct Shared {
    to: BufWriter<Box<dyn Write + Send>>,
    recorded: Recorded,
    /// The first that went wrong. After it nothing is written.
    error: Option<io::Error>,
}

/// How much was recorded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Recorded {
    /// Events.
    pub events: u64,
    /// Bytes, with the header.
    pub bytes: u64,
}

impl Recorder {
    /// Records into a file, which is made anew.
    ///
    /// # Errors
    ///
    /// What the file system says.
    pub fn create(path: &Path, header: &Header) -> io::Result<Self> {
        Self::new(Box::new(File::create(path)?), header)
    }

    /// Records into whatever takes bytes.
    ///
    /// # Errors
    ///
    /// What the writer says.
    pub fn new(to: Box<dyn Write + Send>, header: &Header) -> io::Result<Self> {
        let mut to = BufWriter::with_capacity(BUFFER_BYTES, to);
        let line = line(header)?;
        to.write_all(&line)?;
        let recorded = Recorded { events: 0, bytes: line.len() as u64 };
        Ok(Self { shared: Arc::new(Mutex::new(Shared { to, recorded, error: None })) })
    }

    /// Adds an event. What goes wrong is told by [`finish`](Self::finish).
    pub fn record(&self, event: &Event) {
        let line = line(event);
        // A thread that panicked while it held the lock left whole lines: `write_all` is all that is done under it.
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        if shared.error.is_some() {
            return;
        }
        match line.and_then(|line| shared.to.write_all(&line).map(|()| line.len())) {
            Ok(length) => {
                shared.recorded.events += 1;
                shared.recorded.bytes += length as u64;
            }
            Err(error) => shared.error = Some(error),
        }
    }

    /// Writes out what was recorded so far, and says how much that is. What other clones record later is recorded too.
    ///
    /// # Errors
    ///
    /// The first thing that went wrong since the beginning: the history ends there.
    pub fn finish(&self) -> io::Result<Recorded> {
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(error) = &shared.error {
            return Err(io::Error::new(error.kind(), error.to_string()));
        }
        shared.to.flush()?;
        Ok(shared.recorded)
    }
}

/// Made before the lock is taken.
fn line(value: &impl serde::Serialize) -> io::Result<Vec<u8>> {
    let mut line = Vec::with_capacity(128);
    serde_json::to_writer(&mut line, value)?;
    line.push(b'\n');
    Ok(line)
}
