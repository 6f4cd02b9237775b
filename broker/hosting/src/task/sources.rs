//! What a task reads of its sources, and those that can't be read at present: it goes on with the others, and looks again after
//! pauses that double.

use std::collections::BTreeMap;
use std::time::Duration;

use tidemill_protocol::record_batch::{BatchError, BatchLimits};
use tidemill_protocol::{Offset, TopicPartition};
use tidemill_wasm::LogLevel;
use tokio::time::Instant;

use super::reading::{CALL_BYTES_MAX, SourceRecords};
use super::runner::TaskRunner;

/// Before the second look, and at the most before each.
const PAUSE: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// What there is to do of a source.
pub(super) enum Read {
    /// Nothing at present.
    Nothing,
    /// The log begins later than where the task stands.
    Lost { until: Offset },
    /// These records, or offsets without any.
    Records(SourceRecords),
}

/// A task's sources that failed when they were read last. Bounded by the sources that it has.
#[derive(Debug, Default)]
pub(super) struct Unreadable(BTreeMap<TopicPartition, Failing>);

#[derive(Debug)]
struct Failing {
    reason: String,
    pause: Duration,
    until: Instant,
}

impl Unreadable {
    /// Whether a source is not to be looked at yet.
    pub(super) fn rests(&self, source: TopicPartition, now: Instant) -> bool {
        self.0.get(&source).is_some_and(|failing| now < failing.until)
    }

    /// Whether a source failed when it was read last.
    pub(super) fn contains(&self, source: TopicPartition) -> bool {
        self.0.contains_key(&source)
    }

    /// It can't be read. Answers whether that is news.
    pub(super) fn failed(&mut self, source: TopicPartition, reason: &str, now: Instant) -> bool {
        let before = self.0.get(&source);
        let is_news = before.is_none_or(|before| before.reason != reason);
        let pause = before.map_or(PAUSE, |before| (before.pause * 2).min(PAUSE_MAX));
        self.0.insert(source, Failing { reason: reason.to_owned(), pause, until: now + pause });
        is_news
    }

    /// It was read. Answers whether that is news.
    pub(super) fn reads(&mut self, source: TopicPartition) -> bool {
        self.0.remove(&source).is_some()
    }

    /// Why the first of them can't be read.
    pub(super) fn reason(&self) -> Option<&str> {
        self.0.values().next().map(|failing| &*failing.reason)
    }

    /// When to look again.
    pub(super) fn next_look(&self) -> Option<Instant> {
        self.0.values().map(|failing| failing.until).min()
    }

    /// Nothing is known any more. Answers whether that is news.
    pub(super) fn clear(&mut self) -> bool {
        !std::mem::take(&mut self.0).is_empty()
    }
}

impl TaskRunner {
    /// What comes next of a source. One that can't be read has nothing: once that is told, and once that it is over.
    pub(super) async fn read_or_tell(
        &mut self,
        topic: u32,
        source: TopicPartition,
        position: Offset,
    ) -> Read {
        match self.read(topic, source, position).await {
            Ok(read) => {
                if self.unreadable.reads(source) {
                    self.show_waits();
                    let line = format!("{} can be read again", self.name_of(topic, source));
                    self.parts.log.line(LogLevel::Info, Some(self.parts.plan.partition.get()), &line);
                }
                read
            }
            Err(reason) => {
                self.ahead.forget(source);
                self.parts.log.count("unreadable_reads", 1);
                let reason = format!("{} can't be read at {position}: {reason}", self.name_of(topic, source));
                if self.unreadable.failed(source, &reason, Instant::now()) {
                    self.error(&format!(
                        "{reason}; the task goes on with its other topics, and tries this again"
                    ));
                    self.show_waits();
                }
                Read::Nothing
            }
        }
    }

    /// From what was read before, or else from the log.
    async fn read(&mut self, topic: u32, source: TopicPartition, position: Offset) -> Result<Read, String> {
        let limits = BatchLimits::STORED;
        let unreadable = |error: BatchError| error.to_string();
        let count = self.records.at_most();
        let ahead = self.ahead.at(source, position);
        ahead.unpack(count, &limits).map_err(unreadable)?;
        if ahead.wants_more(count) {
            let fetched = self.parts.port.fetch(source, ahead.next(), CALL_BYTES_MAX).await;
            let fetched = fetched.map_err(|error| error.0)?;
            if fetched.start <= ahead.next() {
                ahead.push(fetched);
                ahead.unpack(count, &limits).map_err(unreadable)?;
            } else if ahead.is_empty() {
                return Ok(Read::Lost { until: fetched.start });
            }
        }
        Ok(if ahead.is_empty() { Read::Nothing } else { Read::Records(ahead.take(topic, source)) })
    }
}
