//! A checker of histories: what clients of a commit log did and were told, recorded while it happened, and what is wrong with it.
//!
//! The anomalies are those that Jepsen's Kafka workload looks for (<https://jepsen-io.github.io/jepsen/jepsen.tests.kafka.html>), and some of
//! our own: [`Kind`] says each. A [`Recorder`] writes a history ([`Event`]), a [`Checker`] reads it.
//!
//! ```
//! use tidemill_checker::{Checker, Event, Kind, RecordId, Run, Span, TopicPartition, check_events};
//!
//! let (first, second) = (RecordId::new(0, 0), RecordId::new(0, 1));
//! let of = |text: &str| text.to_owned();
//! let history = [
//!     Event::Producer { producer: 0, process: of("p"), topic: of("t"), idempotent: true },
//!     Event::Send { records: Span::one(first), partition: Some(0), transaction: None },
//!     Event::Sent { records: Span::one(first), partition: Some(0), offset: Some(0), duplicate: false },
//!     Event::Send { records: Span::one(second), partition: Some(0), transaction: None },
//!     Event::Unknown { records: Span::one(second) },
//!     Event::Poll {
//!         process: of("c"),
//!         partition: TopicPartition::new("t", 0),
//!         runs: vec![Run::one(0, first), Run::one(1, second), Run::one(2, second)],
//!         damaged: Vec::new(),
//!         next: None,
//!     },
//! ];
//! let report = check_events(&history, Checker::new())?;
//! assert_eq!(report.kinds(), [Kind::Duplicate]);
//! # Ok::<(), tidemill_checker::HistoryError>(())
//! ```

mod checker;
mod checks;
mod error;
mod event;
mod evidence;
mod facts;
mod finding;
mod history;
mod ids;
mod limits;
mod model;
mod pages;
mod recorder;
mod report;

pub use checker::Checker;
pub use error::{EventError, HistoryError};
pub use event::{Damaged, Event, HISTORY_VERSION, Header, SealedSegment, TaskInput};
pub use evidence::EVIDENCE_MAX;
pub use finding::{Evidence, FINDINGS_PER_KIND_MAX, Finding, Kind, NAMED_MAX};
pub use history::{History, LINE_BYTES_MAX, check_events, check_file};
pub use ids::{
    OFFSETS_MAX, PARTITIONS_MAX, PRODUCERS_MAX, RUN_RECORDS_MAX, RecordId, Run, SEQUENCES_MAX, Span,
    TopicPartition,
};
pub use model::{Exact, Input, Mismatch, Model, Replay};
pub use recorder::{Recorded, Recorder};
pub use report::Report;
