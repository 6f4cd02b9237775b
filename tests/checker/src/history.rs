use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use crate::checker::Checker;
use crate::error::HistoryError;
use crate::event::{Event, HISTORY_VERSION, Header};
use crate::evidence::Seeker;
use crate::report::Report;

/// Read at once from a file.
const BUFFER_BYTES: usize = 1 << 20;
/// A line is at most as long, its end included.
pub const LINE_BYTES_MAX: u64 = 64 << 20;

/// A history, line by line.
#[derive(Debug)]
pub struct History<R> {
    header: Header,
    from: R,
    line: u64,
    text: String,
}

impl History<BufReader<File>> {
    /// The history in a file.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub fn open(path: &Path) -> Result<Self, HistoryError> {
        Self::new(BufReader::with_capacity(BUFFER_BYTES, File::open(path)?))
    }
}

impl<R: BufRead> History<R> {
    /// Reads the header.
    ///
    /// # Errors
    ///
    /// What can't be read, or is of another version.
    pub fn new(mut from: R) -> Result<Self, HistoryError> {
        let mut text = String::new();
        if from.by_ref().take(LINE_BYTES_MAX).read_line(&mut text)? == 0 {
            return Err(HistoryError::Empty);
        }
        let header: Header = serde_json::from_str(&text).map_err(HistoryError::Header)?;
        if header.tidemill_history != HISTORY_VERSION {
            return Err(HistoryError::Version(header.tidemill_history));
        }
        Ok(Self { header, from, line: 1, text })
    }

    /// What was run.
    pub const fn header(&self) -> &Header {
        &self.header
    }

    fn event(&mut self) -> Result<Option<(u64, Event)>, HistoryError> {
        self.text.clear();
        let length = self.from.by_ref().take(LINE_BYTES_MAX).read_line(&mut self.text)?;
        let line = self.line + 1;
        if !self.text.ends_with('\n') {
            let is_cut_off = (length as u64) < LINE_BYTES_MAX;
            return if is_cut_off { Ok(None) } else { Err(HistoryError::LongLine { line }) };
        }
        self.line = line;
        let event = serde_json::from_str(&self.text).map_err(|error| HistoryError::Line { line, error })?;
        Ok(Some((line, event)))
    }
}

/// The events, each with the number of its line. A last line without its end is one that its writer did not finish, and is left out.
impl<R: BufRead> Iterator for History<R> {
    type Item = Result<(u64, Event), HistoryError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.event().transpose()
    }
}

/// Checks the history in a file. Where something is found, the file is read once more, for the events that show it.
///
/// # Errors
///
/// A history that is none.
pub fn check_file(path: &Path, checker: Checker) -> Result<Report, HistoryError> {
    let mut report = observe_all(History::open(path)?, checker)?;
    if !report.is_good() {
        let mut seeker = Seeker::new(&report.findings);
        for event in History::open(path)? {
            let (line, event) = event?;
            seeker.see(line, &event);
        }
        seeker.give(&mut report.findings);
    }
    Ok(report)
}

fn observe_all<R: BufRead>(history: History<R>, mut checker: Checker) -> Result<Report, HistoryError> {
    let mut last = 1;
    for event in history {
        let (line, event) = event?;
        last = line;
        checker.observe(&event).map_err(|error| HistoryError::Event { line, error })?;
    }
    checker.finish().map_err(|error| HistoryError::Event { line: last, error })
}

/// Checks a history in memory. Its first event counts as line 2, as it would in a file.
///
/// # Errors
///
/// A history that is none.
pub fn check_events(events: &[Event], mut checker: Checker) -> Result<Report, HistoryError> {
    for (line, event) in (2..).zip(events) {
        checker.observe(event).map_err(|error| HistoryError::Event { line, error })?;
    }
    let line = events.len() as u64 + 1;
    let mut report = checker.finish().map_err(|error| HistoryError::Event { line, error })?;
    if !report.is_good() {
        let mut seeker = Seeker::new(&report.findings);
        for (line, event) in (2..).zip(events) {
            seeker.see(line, event);
        }
        seeker.give(&mut report.findings);
    }
    Ok(report)
}
