//! Looks for damage in this broker's segments before a reader does: round and round, slowly, and remembering nothing on the disk.
//!
//! ```text
//!   round:  shard 0, 1, ...  its sealed segments  steps of STEP_BYTES, each on a thread that may block, then a pause for the rate
//!   then a pause until a round has taken ROUND_MIN
//! ```
//! What it finds damaged it names to the shard, and goes on: [`repair`](crate::repair) sees to that.

use std::time::Duration;

use tidemill_log::segment::ScrubStep;
use tidemill_protocol::{Offset, ShardId, TopicPartition};
use tidemill_raft::ShardHandle;
use tidemill_shard::Shard;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::shards::Shards;

/// Checked at once: about as much as the rate lets through in a tenth of a second, within these.
const STEP_BYTES: std::ops::RangeInclusive<u64> = (4 << 10)..=(1 << 20);
/// Between two segments: many small ones are opened no faster than that.
const SEGMENT_PAUSE: Duration = Duration::from_millis(20);
/// A round takes no less: where there is little to check, the broker does nothing most of the time.
const ROUND_MIN: Duration = Duration::from_secs(3600);

/// Checks every sealed segment of every shard, again and again, until it is told to stop. A rate of 0 means not at all.
pub(crate) async fn scrub(shards: Shards, bytes_per_second: u64, stopping: CancellationToken) {
    if bytes_per_second == 0 {
        return;
    }
    let rounds = async {
        loop {
            let begun = Instant::now();
            round(&shards, bytes_per_second).await;
            metrics::counter!("tidemill_scrub_rounds_total").increment(1);
            tokio::time::sleep(ROUND_MIN.saturating_sub(begun.elapsed())).await;
        }
    };
    tokio::select! {
        () = stopping.cancelled() => {}
        () = rounds => {}
    }
}

async fn round(shards: &Shards, bytes_per_second: u64) {
    // It may take days, and holds none of the replicas for so long: one that ends meanwhile is not to be in the way of the next.
    let replicas: Vec<_> =
        shards.iter().map(|(id, replica)| (id, replica.handle(), replica.watch())).collect();
    for (id, shard, role) in replicas {
        let sealed = shard.now().map(|shard| shard.sealed_segments());
        for (partition, base_offset) in sealed.unwrap_or_default() {
            if role.borrow().stopped().is_some() {
                break;
            }
            segment((id, &shard), partition, base_offset, bytes_per_second).await;
            tokio::time::sleep(SEGMENT_PAUSE).await;
        }
    }
}

/// Checks one segment at the rate, of a shard that may go meanwhile.
async fn segment(
    (id, shard): (ShardId, &ShardHandle),
    partition: TopicPartition,
    base_offset: Offset,
    bytes_per_second: u64,
) {
    // The shard as it is now: a snapshot may have taken the place of the one that named the segment.
    let Some(checked) = shard.now() else { return };
    let Err(error) = check(checked, partition, base_offset, bytes_per_second).await else { return };
    metrics::counter!("tidemill_scrub_damaged_total").increment(1);
    tracing::warn!(shard = %id, %partition, segment = %base_offset, error, "a segment does not read; it is repaired if another replica has it whole");
    // Where another has taken its place meanwhile, that one looks whether its own reads.
    if let Some(shard) = shard.now() {
        shard.suspect(partition, base_offset);
    }
}

async fn check(
    shard: Shard,
    partition: TopicPartition,
    base_offset: Offset,
    bytes_per_second: u64,
) -> Result<(), String> {
    let step_bytes = (bytes_per_second / 10).clamp(*STEP_BYTES.start(), *STEP_BYTES.end());
    let begun = tokio::task::spawn_blocking(move || shard.scrub(partition, base_offset)).await;
    let Ok(begun) = begun else { return Ok(()) };
    let Some(mut scrub) = begun.map_err(|error| error.to_string())? else { return Ok(()) };
    loop {
        let from = scrub.position();
        let stepped = tokio::task::spawn_blocking(move || (scrub.step(step_bytes), scrub)).await;
        let Ok((step, walked)) = stepped else { return Ok(()) };
        let bytes = walked.position().saturating_sub(from);
        metrics::counter!("tidemill_scrub_bytes_total").increment(bytes);
        tokio::time::sleep(Duration::from_secs_f64(bytes as f64 / bytes_per_second as f64)).await;
        match step {
            Ok(ScrubStep::More) => scrub = walked,
            Ok(ScrubStep::Sound) => return Ok(()),
            Err(error) => return Err(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tidemill_controller::TopicConfig;
    use tidemill_log::fs::MemoryStorage;
    use tidemill_log::segment::{SegmentFiles, SegmentFilesConfig};
    use tidemill_log::wal::EntryId;
    use tidemill_protocol::record_batch::{BatchBuilder, BuilderOptions};
    use tidemill_protocol::{LogIndex, PartitionId, ShardId, Term, Timestamp, TopicId};
    use tidemill_shard::{AdoptTopic, Entry, ShardConfig, Unit, UnitResult};
    use uuid::Uuid;

    use super::*;

    fn apply(shard: &Shard, index: u64, units: Vec<Unit>) -> Vec<UnitResult> {
        let id = EntryId { index: LogIndex::new(index), term: Term::new(1), leader_node: 1 };
        shard.apply(id, &Entry { time: Timestamp::new(1_000), units }).expect("applied")
    }

    /// A shard with one partition, whose so many batches of a thousand bytes are all in one segment.
    fn shard_of(partition: TopicPartition, batches: usize) -> Shard {
        let files = SegmentFiles::new(Arc::new(MemoryStorage::new()), SegmentFilesConfig::default());
        let shard = Shard::open(ShardConfig::new(ShardId::new(1)), &files).expect("opened");
        let adopt = AdoptTopic {
            topic: partition.topic,
            version: 1,
            name: "plays".to_owned(),
            config: TopicConfig::default(),
            partitions: vec![partition.partition],
            deleted: false,
        };
        apply(&shard, 1, vec![Unit::AdoptTopic(adopt)]);
        let mut builder = BatchBuilder::new(BuilderOptions::default());
        builder.append(Timestamp::new(5), None, Some(&[7; 1_000]), []).expect("it fits");
        let batch = builder.build().expect("it builds");
        let append = Unit::Append { partition, batch, leader_epoch: None };
        let appended = apply(&shard, 2, vec![append; batches]);
        assert!(appended.iter().all(|result| matches!(result, UnitResult::Appended { .. })), "{appended:?}");
        shard.checkpoint(&|_| Ok(())).expect("written");
        shard
    }

    /// By a clock that moves only where all wait for it.
    #[tokio::test(start_paused = true)]
    async fn a_segment_is_checked_no_faster_than_the_rate_and_not_much_slower() {
        let partition = TopicPartition::new(TopicId::new(Uuid::from_u128(1)), PartitionId::new(0));
        let (shard, base_offset) = (shard_of(partition, 200), Offset::new(0));
        let mut walk = shard.scrub(partition, base_offset).expect("it reads").expect("it is here");
        let from = walk.position();
        assert_eq!(walk.step(u64::MAX).expect("it reads"), ScrubStep::Sound);
        let bytes = walk.position() - from;
        assert!(bytes > *STEP_BYTES.start() * 10, "{bytes} bytes are more than a few steps");
        let begun = Instant::now();
        check(shard, partition, base_offset, bytes / 2).await.expect("it is sound");
        let took = begun.elapsed().as_secs_f64();
        assert!((1.9..2.5).contains(&took), "{bytes} bytes at half of them in a second took {took} s");
    }
}
