//! Rehearsals: a plugin run over given records as the broker would run it, twice.
//!
//! ```text
//! records -- cut evenly ---------------> calls, instances kept between them  -> first run --+
//!        \-- cut otherwise, unevenly --> calls, each in a fresh instance     -> second run -+--> the first difference
//! ```
//!
//! Both go through the engine, the limits and the checks that deployments go through; a consumer's task runs on shards in memory
//! ([`MemoryPort`](crate::MemoryPort)). How records are cut into calls, and how long an instance lives, is nobody's promise: where the answers differ the plugin depends on
//! it, and a broker that retries, restarts or lags would show it.
//!
//! Time is the log's. It is at each record's timestamp when the record comes, never goes back, and stops at every timer in between.

mod compare;
mod cuts;
mod record;
mod run;
mod stateless;
mod task;

use std::sync::Arc;

use tidemill_protocol::DeploymentId;

use crate::failure::OpenError;
use crate::hosting::{Hosting, Inner};
use crate::meter::Meter;
use crate::plan::{PluginKind, PluginPlan};
pub use compare::{Cause, ComparedOutputs, Difference, DifferenceAt};
use cuts::Cuts;
pub use record::PlainRecord;
pub use run::{Answer, EmittedRecord, FailedAt, FiredTimer, RehearsedCall, Run, RunFailure, Verdict};

/// Log lines of a first run that are kept.
const LOG_LINES_MAX: usize = 1000;

/// What is rehearsed.
#[derive(Debug, Clone)]
pub struct Rehearsal {
    /// The plugin, as it would be deployed.
    pub plugin: PluginPlan,
    /// All of one partition, in the order of their offsets, from 0.
    pub records: Vec<PlainRecord>,
    /// What a call of the first run gets.
    pub records_per_call: usize,
    /// Partitions of the topic, for partitioners.
    pub partitions: u32,
    /// Partitions of each of the plan's targets, for consumers.
    pub target_partitions: Vec<u32>,
    /// State of the task, for consumers.
    pub state_bytes_max: u64,
    /// How much of the log's time passes behind the last record.
    pub run_timers_for_ms: i64,
    /// What of the outputs must be the same in both runs.
    pub compared_outputs: ComparedOutputs,
}

/// What came of it.
#[derive(Debug, Clone)]
pub struct Rehearsed {
    /// Even cuts, instances that live on.
    pub first: Run,
    /// Other cuts, fresh instances; not played where the first one failed.
    pub second: Option<Run>,
    /// The first difference between them.
    pub difference: Option<Difference>,
}

/// Why nothing was rehearsed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RehearsalError {
    /// The plugin can't be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A record is none that the log would take.
    #[error("record {record} can't be a record of the log: {reason}")]
    Record {
        /// Its number, from 0.
        record: usize,
        /// Why not.
        reason: String,
    },
    /// The outputs do not fit into memory.
    #[error(
        "the plugin has emitted more than {bytes_max} bytes by record {record}; rehearse it with fewer records"
    )]
    TooMuchOutput {
        /// The last record that was handled.
        record: usize,
        /// The bound.
        bytes_max: usize,
    },
}

/// How one run is played.
struct Manner {
    cuts: Cuts,
    /// Each call gets an instance of its own.
    fresh: bool,
}

impl Hosting {
    /// Plays a rehearsal.
    ///
    /// # Errors
    /// [`RehearsalError`] where it can't begin or go on. What the plugin does wrong is in the answer.
    pub async fn rehearse(&self, rehearsal: &Rehearsal) -> Result<Rehearsed, RehearsalError> {
        let stage = Stage { hosting: self.inner(), rehearsal };
        let per_call = rehearsal.records_per_call;
        let mut first = stage.play(Manner { cuts: Cuts::even(per_call), fresh: false }).await?;
        let id = stage.deployment();
        first.log = self.logs(id, 0, LOG_LINES_MAX);
        first.counters = self.counters(id);
        if first.failure.is_some() {
            return Ok(Rehearsed { first, second: None, difference: None });
        }
        let second = stage.play(Manner { cuts: Cuts::uneven(per_call), fresh: true }).await?;
        let compared = rehearsal.compared_outputs;
        let mut difference = compare::difference(&first, &second, compared);
        if let Some(found) = &mut difference {
            // Which of the two it is: the same cuts again, in fresh instances.
            let third = stage.play(Manner { cuts: Cuts::even(per_call), fresh: true }).await?;
            let remembers = compare::difference(&first, &third, compared).is_some();
            found.cause = if remembers { Cause::Memory } else { Cause::Cuts };
        }
        Ok(Rehearsed { first, second: Some(second), difference })
    }
}

/// Where runs are played.
struct Stage<'a> {
    hosting: &'a Arc<Inner>,
    rehearsal: &'a Rehearsal,
}

impl Stage<'_> {
    fn deployment(&self) -> DeploymentId {
        self.rehearsal.plugin.deployment_id.unwrap_or_default()
    }

    async fn play(&self, manner: Manner) -> Result<Run, RehearsalError> {
        let meter = Arc::new(Meter::default());
        match self.rehearsal.plugin.kind {
            PluginKind::Partitioner => stateless::partitioner(self, manner, meter).await,
            PluginKind::Filter => stateless::filter(self, manner, meter).await,
            PluginKind::Consumer => task::consumer(self, manner, meter).await,
        }
    }
}
