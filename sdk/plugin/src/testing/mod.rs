//! A native test harness: batches of records in, answers out, with the broker's part played on the host.
//!
//! ```
//! use tidemill_plugin::prelude::*;
//! use tidemill_plugin::testing::{Setup, TestRecord, batch_of};
//! # struct Upper;
//! # impl Transform for Upper {
//! #     fn describe() -> Description { Description::new("Upper case.") }
//! #     fn new(_: &Context) -> Result<Self, String> { Ok(Self) }
//! #     fn transform(&mut self, record: &Record<'_>, out: &mut Emitter<'_>) -> Result<(), String> {
//! #         Ok(out.record(Target(0)).value(record.value().ok_or("null")?.to_ascii_uppercase()).push())
//! #     }
//! # }
//! let mut upper = Setup::new().target("loud").transform::<Upper>().unwrap();
//! upper.handle(&batch_of([TestRecord::value("hello")])).unwrap();
//! assert_eq!(upper.emitted("loud")[0].value_text(), "HELLO");
//! ```
//!
//! The harness is as strict as the broker: a plugin sees only the parts that it asked for, and an answer that the broker would
//! refuse fails the test.

mod answers;
mod consumer;
mod filter;
mod partitioner;
mod record;
mod setup;

pub use consumer::ConsumerTest;
pub use filter::{FilterTest, Filtered};
pub use partitioner::PartitionerTest;
pub use record::{TestBatch, TestRecord, batch_of};
pub use setup::Setup;

#[cfg(test)]
pub(crate) use answers::emitted_records;
