//! Plugins that consume topics inside the broker.

use crate::batch::Batch;
use crate::context::Context;
use crate::description::Description;
use crate::failure::{Failure, Rejection};
use crate::fields::Fields;

/// Consumes batches with [`state`](crate::state), [`timers`](crate::timers) and [`emit`](crate::emit).
///
/// What a call does is committed together with the position that it reached, or not at all. The instance's own memory is only a
/// cache: it is discarded with every call that did not commit.
pub trait Consumer: Sized + 'static {
    /// What the plugin is and how it is configured.
    fn describe() -> Description;

    /// A new instance; an error refuses the deployment.
    fn new(ctx: &Context) -> Result<Self, String>;

    /// What it reads of each record: keys and values, unless said otherwise.
    fn fields(&self) -> Fields {
        Fields::KEY | Fields::VALUE
    }

    /// Handles a batch, or a part of it from its start.
    fn handle(&mut self, batch: &Batch) -> Result<Outcome, Failure>;

    /// Handles timers that are due by the log's time.
    fn on_timers(&mut self, _due: &[Timer], _now: i64) -> Result<(), Failure> {
        Ok(())
    }
}

/// How far a call came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// How many records, from the start of the batch, were handled; the rest comes again.
    pub processed: u32,
    /// Those of them that are refused.
    pub rejections: Vec<Rejection>,
}

impl Outcome {
    /// The whole batch was handled.
    pub fn all(batch: &Batch) -> Self {
        Self::first(batch.len() as u32)
    }

    /// The first records were handled; the rest comes again.
    pub fn first(processed: u32) -> Self {
        Self { processed, rejections: Vec::new() }
    }

    /// Refuses a record.
    pub fn reject(&mut self, ordinal: u32, reason: impl Into<String>) {
        self.rejections.push(Rejection { ordinal, reason: reason.into() });
    }
}

/// A timer that was set, or is due.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timer {
    /// What it is called: setting the same key again moves it.
    pub key: Vec<u8>,
    /// When it was to fire, by the log's time, milliseconds since 1970.
    pub at: i64,
}
