//! Emitted records become record batches, one or more per target partition.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use tidemill_protocol::record_batch::{
    AppendError, BatchBuilder, BatchLimits, BuilderOptions, Compression, Header, HeadersView, RecordBatch,
};
use tidemill_protocol::{PartitionId, Timestamp, TopicPartition};
use tidemill_wasm::{MadeRecord, Part};

use super::policy::Disposed;
use super::reading::TaskRecord;
use crate::failure::CallFailure;
use crate::hosting::Inner;
use crate::partitioner::Partitioner;
use crate::plan::{TargetPlan, TaskPlan};
use crate::port::TaskOutput;

/// One output batch, before compression; none is larger than what the log takes.
const OUTPUT_BYTES_MAX: usize = 4 << 20;

/// Turns what calls emitted into outputs.
pub(crate) struct Outputs<'a> {
    pub(crate) plan: &'a TaskPlan,
    pub(crate) hosting: &'a Arc<Inner>,
}

/// One record on its way out.
struct Outgoing<'a> {
    key: Option<&'a [u8]>,
    value: Option<&'a [u8]>,
    headers: HeadersView<'a>,
    timestamp: Timestamp,
    partition: Option<u32>,
}

impl Outputs<'_> {
    /// The batches for what a call emitted. `inputs` are the records that it was given.
    pub(crate) async fn of(
        &self,
        emitted: &[(u32, tidemill_wasm::Records)],
        inputs: &[TaskRecord],
        now: Timestamp,
    ) -> Result<Vec<TaskOutput>, CallFailure> {
        let mut batches = Batches::default();
        for (target, records) in emitted {
            let target = usize::try_from(*target).ok().and_then(|index| self.plan.targets.get(index));
            let Some(target) = target else { continue };
            let outgoing: Vec<Outgoing<'_>> =
                records.iter().map(|made| self.outgoing(&made, inputs, now)).collect::<Result<_, _>>()?;
            self.place(target, outgoing, &mut batches).await?;
        }
        batches.finish().map_err(|reason| self.bad(&reason))
    }

    /// The batches that send records to the dead-letter topic, each with where it is from and why.
    pub(crate) async fn dead_letters(
        &self,
        target: &TargetPlan,
        source: &str,
        disposed: &[Disposed],
    ) -> Result<Vec<TaskOutput>, CallFailure> {
        let mut batches = Batches::default();
        for Disposed { record, reason } in disposed {
            let offset = record.offset.to_string();
            let added = [
                Header::new("tidemill-deployment", self.plan.plugin.deployment.as_bytes()),
                Header::new("tidemill-source", source.as_bytes()),
                Header::new("tidemill-offset", offset.as_bytes()),
                Header::new("tidemill-reason", reason.as_bytes()),
            ];
            let mut headers: Vec<Header<'_>> = record.headers().iter().collect();
            headers.extend(added);
            let encoded = encode_headers(&headers).map_err(|reason| self.bad(&reason))?;
            let outgoing = Outgoing {
                key: record.key.as_deref(),
                value: record.value.as_deref(),
                headers: HeadersView::parse(&encoded).map_err(|error| self.bad(&error))?,
                timestamp: record.timestamp,
                partition: None,
            };
            self.place(target, vec![outgoing], &mut batches).await?;
        }
        batches.finish().map_err(|reason| self.bad(&reason))
    }

    fn bad(&self, reason: &dyn std::fmt::Display) -> CallFailure {
        CallFailure::answer(&self.plan.plugin.deployment, reason)
    }

    fn outgoing<'r>(
        &self,
        made: &MadeRecord<'r>,
        inputs: &[TaskRecord],
        now: Timestamp,
    ) -> Result<Outgoing<'r>, CallFailure> {
        let input = made.ordinal.and_then(|ordinal| inputs.get(usize::try_from(ordinal).ok()?));
        let timestamp = match (made.timestamp, input) {
            (Some(timestamp), _) => Timestamp::new(timestamp),
            (None, Some(input)) => input.timestamp,
            (None, None) => now,
        };
        let bytes = |part: Part<'r>| match part {
            Part::Bytes(bytes) => Some(bytes),
            Part::Null | Part::AsInput => None,
        };
        let headers = match bytes(made.headers) {
            Some(bytes) => HeadersView::parse(bytes).map_err(|error| self.bad(&error))?,
            None => HeadersView::EMPTY,
        };
        Ok(Outgoing {
            key: bytes(made.key),
            value: bytes(made.value),
            headers,
            timestamp,
            partition: made.partition,
        })
    }

    /// Gives each record its partition, and adds it to that partition's batch in the order of emission.
    async fn place(
        &self,
        target: &TargetPlan,
        outgoing: Vec<Outgoing<'_>>,
        batches: &mut Batches,
    ) -> Result<(), CallFailure> {
        let placed = self.placements(target, &outgoing).await?;
        for (record, partition) in outgoing.iter().zip(placed) {
            let partition = TopicPartition::new(target.topic, PartitionId::new(partition));
            batches.add(partition, record).map_err(|reason| self.bad(&reason))?;
        }
        Ok(())
    }

    async fn placements(
        &self,
        target: &TargetPlan,
        outgoing: &[Outgoing<'_>],
    ) -> Result<Vec<u32>, CallFailure> {
        let mut builder =
            BatchBuilder::new(BuilderOptions { batch_bytes_max: usize::MAX, ..BuilderOptions::default() });
        for record in outgoing.iter().filter(|record| record.partition.is_none()) {
            builder
                .append_encoded(record.timestamp, record.key, record.value, record.headers)
                .map_err(|error| self.bad(&error))?;
        }
        let mut rest = if builder.is_empty() {
            Vec::new()
        } else {
            let batch = builder.build_batch().map_err(|error| self.bad(&error))?;
            self.ask(target, &batch).await?
        }
        .into_iter();
        outgoing
            .iter()
            .map(|record| {
                record
                    .partition
                    .or_else(|| rest.next())
                    .ok_or_else(|| self.bad(&"too few partitions were answered"))
            })
            .collect()
    }

    /// What the target's own partitioner says.
    async fn ask(&self, target: &TargetPlan, batch: &RecordBatch) -> Result<Vec<u32>, CallFailure> {
        let partitioner = match &target.partitioner {
            None => Partitioner::by_key(),
            Some(plan) => self.hosting.partitioner(plan).await.map_err(|error| CallFailure {
                kind: crate::CallFailureKind::Broker,
                message: error.to_string(),
            })?,
        };
        // Records without a key stay with the task's own number: the same on every try.
        let tie = u64::from(self.plan.partition.get());
        // The records' own time, as in routed produce: the answer depends on them alone.
        let now = batch.header().max_timestamp;
        let placement = partitioner.place(batch, target.partitions, tie, now).await?;
        match placement.rejections.first() {
            None => Ok(placement.partitions),
            Some((_, reason)) => {
                Err(self.bad(&format!("the partitioner of '{}' refuses an output: {reason}", target.name)))
            }
        }
    }
}

/// Batches under construction, and those that are full.
#[derive(Default)]
struct Batches {
    open: BTreeMap<TopicPartition, BatchBuilder>,
    done: Vec<TaskOutput>,
}

impl Batches {
    fn add(&mut self, target: TopicPartition, record: &Outgoing<'_>) -> Result<(), String> {
        let builder = self.open.entry(target).or_insert_with(|| {
            BatchBuilder::new(BuilderOptions {
                compression: Compression::None,
                batch_bytes_max: OUTPUT_BYTES_MAX,
                ..BuilderOptions::default()
            })
        });
        let append = |builder: &mut BatchBuilder| {
            builder.append_encoded(record.timestamp, record.key, record.value, record.headers)
        };
        match append(builder) {
            Err(AppendError::Full { .. }) if !builder.is_empty() => {
                let batch = builder.build().map_err(|error| error.to_string())?;
                self.done.push(TaskOutput { target, batch });
                append(builder).map_err(|error| error.to_string())
            }
            outcome => outcome.map_err(|error| error.to_string()),
        }
    }

    /// In the order of the targets; several of one target in the order of emission.
    fn finish(mut self) -> Result<Vec<TaskOutput>, String> {
        for (target, mut builder) in self.open {
            if !builder.is_empty() {
                let batch = builder.build().map_err(|error| error.to_string())?;
                self.done.push(TaskOutput { target, batch });
            }
        }
        Ok(self.done)
    }
}

/// Headers in their encoded form, by way of a batch of one record.
fn encode_headers(headers: &[Header<'_>]) -> Result<Bytes, String> {
    let mut builder = BatchBuilder::new(BuilderOptions::default());
    builder
        .append(Timestamp::new(0), None, None, headers.iter().copied())
        .map_err(|error| error.to_string())?;
    let batch = builder.build_batch().map_err(|error| error.to_string())?;
    let records = batch.records(&BatchLimits::default()).map_err(|error| error.to_string())?;
    let record = records.iter().next().ok_or("no record")?.map_err(|error| error.to_string())?;
    Ok(records.slice_of(record.headers.as_bytes()))
}
