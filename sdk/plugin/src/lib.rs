//! What a Tidemill plugin links: bindings over the plugin contract, views of records, builders of answers and a test harness.
//!
//! A plugin is a type that implements one of four traits, and a line that exports it:
//!
//! | trait | what it does | exported by |
//! | --- | --- | --- |
//! | [`Partitioner`] | picks the partition of each record before it is stored | [`export_partitioner!`] |
//! | [`Filter`] | keeps, drops, refuses or rewrites records | [`export_filter!`] |
//! | [`Transform`] | makes any number of records of each one | [`export_transform!`] |
//! | [`Consumer`] | whole batches, with state, timers and outputs | [`export_consumer!`] |
//!
//! A whole filter, with its test:
//!
//! ```
//! use tidemill_plugin::prelude::*;
//!
//! struct OnlyDevice { device: String }
//!
//! impl Filter for OnlyDevice {
//!     fn describe() -> Description {
//!         Description::new("Passes the events of one device.").required("device", "the device to pass")
//!     }
//!     fn new(ctx: &Context) -> Result<Self, String> { Ok(Self { device: ctx.text("device")?.to_owned() }) }
//!     fn keep(&self, record: &Record<'_>) -> bool { record.json_field("device").is_some_and(|d| d == self.device.as_str()) }
//! }
//! tidemill_plugin::export_filter!(OnlyDevice);
//!
//! use tidemill_plugin::testing::Setup;
//! let filter = Setup::new().config("device", "phone").filter::<OnlyDevice>().unwrap();
//! assert!(filter.keeps(r#"{"device":"phone"}"#));
//! assert!(!filter.keeps(r#"{"device":"radio"}"#));
//! ```
//!
//! Built for `wasm32-unknown-unknown` and wrapped as a component, it runs in the broker. Built for the host it is plain Rust: the
//! imports are then played by [`testing`], so `cargo test` needs neither WebAssembly nor a broker.
//!
//! # What a plugin may count on
//!
//! - It is called with whole batches, one call at a time. A batch is one buffer of data and an index; a [`Record`] is a view
//!   into it, and reading one allocates nothing.
//! - Only the parts named by `fields()` are there. Reading another one panics and says so.
//! - Filters and partitioners have no memory between calls: any instance may be discarded, and a fresh one must answer the same.
//!   So must a consumer, whose memory is only a cache of its [`state`].
//! - What a consumer emits, writes and schedules during a call is committed together with its position, or not at all.
//! - `HashMap` iterates in an order of its own. What reaches an output in that order differs on a replay: use `BTreeMap` or sort.

mod batch;
#[cfg(target_arch = "wasm32")]
mod bindings;
mod consumer;
mod context;
mod description;
mod export;
mod failure;
mod fields;
mod filter;
#[cfg(target_arch = "wasm32")]
mod guest;
mod headers;
mod host;
mod output;
mod partitioner;
mod transform;

pub mod emit;
#[cfg(feature = "json")]
pub mod json;
pub mod log;
pub mod metrics;
pub mod murmur2;
pub mod state;
#[cfg(not(target_arch = "wasm32"))]
pub mod testing;
pub mod timers;

pub use batch::{Batch, BatchParts, Record, Records};
pub use consumer::{Consumer, Outcome, Timer};
pub use context::{ConfigError, Context, ContextParts, Target};
pub use description::{ConfigKey, Description};
pub use failure::{Failure, Rejection};
pub use fields::Fields;
pub use filter::{Bitmap, Filter, Judgement, Selection, Verdict};
pub use headers::{Header, Headers};
pub use output::{Draft, Output, Replacement};
pub use partitioner::{ANY_PARTITION, Partitioner, Place, Placement};
pub use transform::{Emitter, Transform, Transforming};

/// What most plugins use, for one `use` line.
pub mod prelude {
    pub use crate::{
        Batch, Consumer, Context, Description, Emitter, Failure, Fields, Filter, Judgement, Outcome, Output,
        Partitioner, Place, Placement, Record, Rejection, Selection, Target, Timer, Transform, Verdict,
    };
}

/// What the export macros expand to. Not part of the API.
#[cfg(target_arch = "wasm32")]
#[doc(hidden)]
pub mod __component {
    pub use crate::bindings::{consumer, filter, lifecycle, partitioner};
    pub use crate::guest::{ConsumerGuest, FilterGuest, PartitionerGuest};
}
