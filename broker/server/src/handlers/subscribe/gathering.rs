//! What one frame of a partition carries: read from the log, and passed by the filter.

use bytes::Bytes;
use tidemill_protocol::messages::Error;
use tidemill_protocol::{Offset, TopicPartition};
use tidemill_shard::{Batches, Fetch};

use super::filtering::{BatchFilter, Filtering};
use super::partition::{Subscribed, out_of_range};
use crate::context::Context;
use crate::errors;

/// A filter that passes nothing says how far it came after so many bytes of batches; where they have more, decompressed, those count.
const SCAN_BYTES_MAX: usize = 4 << 20;

/// Reads on from where a partition stands until there is a frame's worth, the end, or enough scanned in vain.
pub(super) async fn gather(
    context: &Context,
    filtering: &Filtering,
    frame_bytes: usize,
    partition: &Subscribed,
) -> Result<Option<Gathered>, Error> {
    let room = usize::try_from(partition.terms.credit).unwrap_or(0).min(frame_bytes);
    let mut gathered =
        Gathered { parts: Vec::new(), bytes: 0, scanned: 0, unpacked: 0, next: partition.next };
    while gathered.bytes < room && !gathered.has_scanned_enough() {
        let high_watermark = partition.high_watermark.get();
        if gathered.next >= high_watermark {
            break;
        }
        let (from, bytes_max) = (gathered.next, room - gathered.bytes);
        let fetched = partition.shard.now().map(|shard| shard.fetch(partition.partition, from, bytes_max));
        let Some(fetched) = fetched else {
            let name = context.view.now().partition_name(partition.partition);
            return Err(errors::left_behind(&name));
        };
        let batches = match fetched {
            Fetch::Memory(batches) => batches,
            Fetch::Disk(read) => tokio::task::spawn_blocking(move || read.run())
                .await
                .map_err(|_| errors::interrupted("reading the log"))?
                .map_err(|error| {
                    errors::read(&error, &context.view.now().partition_name(partition.partition))
                })?,
            Fetch::OutOfRange { log_start, high_watermark } => {
                let name = context.view.now().partition_name(partition.partition);
                return Err(out_of_range(&name, gathered.next, log_start, high_watermark));
            }
            Fetch::Unknown => {
                let name = context.view.now().partition_name(partition.partition);
                return Err(errors::deleted(&name));
            }
        };
        if batches.is_empty() {
            break;
        }
        match filtering {
            Filtering::None => gathered.take_all(batches),
            Filtering::By(filter) => gathered.take_passed(filter, partition.partition, &batches).await?,
        }
    }
    Ok((gathered.scanned > 0).then_some(gathered))
}

/// What one frame will carry.
pub(super) struct Gathered {
    pub(super) parts: Vec<Bytes>,
    /// Of the parts.
    pub(super) bytes: usize,
    /// Read from the log for it.
    pub(super) scanned: usize,
    /// The same, decompressed for a filter.
    unpacked: usize,
    pub(super) next: Offset,
}

impl Gathered {
    fn has_scanned_enough(&self) -> bool {
        self.scanned.max(self.unpacked) >= SCAN_BYTES_MAX
    }

    fn take_all(&mut self, batches: Batches) {
        self.scanned += batches.bytes;
        self.bytes += batches.bytes;
        self.next = batches.next;
        self.parts.extend(batches.parts);
    }

    /// What a filter passes of them: of all, or of so many that enough was scanned with the last.
    async fn take_passed(
        &mut self,
        filter: &BatchFilter,
        partition: TopicPartition,
        batches: &Batches,
    ) -> Result<(), Error> {
        for batch in batches.contiguous() {
            if self.has_scanned_enough() {
                return Ok(());
            }
            self.scanned += batch.len();
            let passed = filter.pass(partition, batch).await?;
            self.unpacked += passed.unpacked_bytes;
            self.next = self.next.max(passed.next);
            if let Some(kept) = passed.kept {
                self.bytes += kept.len();
                self.parts.push(kept);
            }
        }
        self.next = batches.next;
        Ok(())
    }
}
