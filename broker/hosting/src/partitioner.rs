//! Partitioners: a plugin's, or the broker's own.

use std::sync::Arc;

use tidemill_protocol::Timestamp;
use tidemill_protocol::partitioner::partition_for_key;
use tidemill_protocol::record_batch::{BatchLimits, RecordBatch, Records};
use tidemill_wasm::{ANY_PARTITION, Fields, PartitionerPool};

use crate::batch_view::view_of;
use crate::failure::CallFailure;
use crate::logs::DeploymentLog;
use crate::meter::Meter;
use crate::plan::{BatchPlace, Lane};
use crate::runtime::PluginRuntime;

/// Decides the partition of each record. Cheap to clone.
#[derive(Clone)]
pub struct Partitioner {
    inner: Option<Arc<PartitionerInner>>,
}

pub(crate) struct PartitionerInner {
    pub(crate) name: String,
    pub(crate) pool: PartitionerPool,
    pub(crate) fields: Fields,
    pub(crate) limits: BatchLimits,
    pub(crate) runtime: Arc<PluginRuntime>,
    pub(crate) log: Option<Arc<DeploymentLog>>,
    /// Where calls are measured.
    pub(crate) meter: Option<Arc<Meter>>,
}

/// Where a batch's records go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// A partition number per record.
    pub partitions: Vec<u32>,
    /// Records that the plugin will not accept, by ordinal, with its reasons.
    pub rejections: Vec<(u32, String)>,
}

impl Partitioner {
    /// The broker's own: murmur2 of the key as Kafka's clients place records; records without a key stay together.
    #[must_use]
    pub const fn by_key() -> Self {
        Self { inner: None }
    }

    pub(crate) fn plugin(inner: PartitionerInner) -> Self {
        Self { inner: Some(Arc::new(inner)) }
    }

    /// Places a batch's records in `partitions` partitions. The same arguments give the same answer.
    ///
    /// `tie` decides for records that may go anywhere: all of a batch to one partition, batches in turn.
    ///
    /// # Errors
    /// [`CallFailure`] where there is no usable answer.
    pub async fn place(
        &self,
        batch: &RecordBatch,
        partitions: u32,
        tie: u64,
        now: Timestamp,
    ) -> Result<Placement, CallFailure> {
        let limits = self.inner.as_ref().map_or(&BatchLimits::STORED, |inner| &inner.limits);
        let name = self.inner.as_ref().map_or("placing by key", |inner| &inner.name);
        // The batch was checked when it came; what a filter left of it has gaps.
        let records = batch.records(limits).map_err(|error| CallFailure::batch(name, &error))?;
        self.place_all(&records, partitions, tie, now).await
    }

    /// The same for records that are at hand, decompressed.
    ///
    /// # Errors
    /// As [`place`](Self::place).
    pub async fn place_all(
        &self,
        records: &Records,
        partitions: u32,
        tie: u64,
        now: Timestamp,
    ) -> Result<Placement, CallFailure> {
        let any = u32::try_from(tie % u64::from(partitions.max(1))).unwrap_or(0);
        let Some(inner) = &self.inner else {
            let placed = place_by_key(records, partitions, any);
            return placed.map_err(|error| CallFailure::batch("placing by key", &error));
        };
        inner.ask_all(records, partitions, now).await.map(|placement| Placement {
            partitions: placement
                .partitions
                .into_iter()
                .map(|partition| if partition == ANY_PARTITION { any } else { partition })
                .collect(),
            rejections: placement.rejections.into_iter().map(|r| (r.ordinal, r.reason)).collect(),
        })
    }
}

impl PartitionerInner {
    /// The plugin's own answer: some records may go anywhere.
    pub(crate) async fn ask(
        &self,
        batch: &RecordBatch,
        partitions: u32,
        now: Timestamp,
    ) -> Result<tidemill_wasm::Placement, CallFailure> {
        let records = batch.records(&self.limits);
        let records = records.map_err(|error| CallFailure::batch(&self.name, &error))?;
        self.ask_all(&records, partitions, now).await
    }

    async fn ask_all(
        &self,
        records: &Records,
        partitions: u32,
        now: Timestamp,
    ) -> Result<tidemill_wasm::Placement, CallFailure> {
        let place = BatchPlace { topic: 0, partition: BatchPlace::UNPLACED };
        let view = view_of(records, self.fields, place, now.get());
        let view = view.map_err(|error| CallFailure::batch(&self.name, &error))?;
        let call = self.pool.partition(view, partitions);
        let answer = match &self.meter {
            None => self.runtime.run(Lane::Produce, call).await,
            Some(meter) => self.runtime.run(Lane::Produce, Arc::clone(meter).measure(call)).await,
        };
        let answer = answer.map_err(|_| CallFailure::stopped(&self.name))?;
        let placement = answer.map_err(|error| CallFailure::of(&self.name, &error));
        if let Some(log) = &self.log {
            count(log, records, &placement);
        }
        placement
    }
}

fn place_by_key(
    records: &Records,
    partitions: u32,
    any: u32,
) -> Result<Placement, tidemill_protocol::record_batch::BatchError> {
    let mut placed = Vec::with_capacity(records.len());
    for record in records {
        placed.push(match record?.key {
            Some(key) => partition_for_key(key, partitions).get(),
            None => any,
        });
    }
    Ok(Placement { partitions: placed, rejections: Vec::new() })
}

fn count(log: &DeploymentLog, records: &Records, placement: &Result<tidemill_wasm::Placement, CallFailure>) {
    log.count("calls", 1);
    log.count("records_in", records.len() as u64);
    match placement {
        Ok(placement) if !placement.rejections.is_empty() => {
            log.count("rejections", placement.rejections.len() as u64);
        }
        Ok(_) => {}
        Err(failure) => {
            log.count("failures", 1);
            log.line(tidemill_wasm::LogLevel::Error, None, &failure.message);
        }
    }
}
