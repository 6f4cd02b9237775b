//! Segments that do not read, mended with what another broker has.
//!
//! ```text
//!   scrubber, readers -> shard.suspects() -> [ this task, one segment at a time ]
//!                                              looks for itself: it may read again
//!                                              asks the brokers of the shard, one after the other  -- SegmentOpen -->
//!                                              stages what comes, checks it, swaps it in  <-- SegmentReply, pieces --
//! ```
//! Until then readers of the damaged range get `STORAGE_FAILED`, which may be tried again. Where nobody has the segment whole, that is
//! said once and counted for as long as it stays so, and tried again now and then.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use tidemill_log::segment::{ScrubStep, SegmentEnd, SegmentPin};
use tidemill_net::Stream;
use tidemill_protocol::messages::{Error, PayloadChunk};
use tidemill_protocol::{
    BrokerId, ErrorCode, Offset, PartitionId, ShardId, Timestamp, TopicId, TopicPartition,
};
use tidemill_raft::Replica;
use tidemill_shard::{SegmentRepair, Shard};
use tokio::sync::SemaphorePermit;
use tokio::time::Instant;

use crate::context::Context;
use crate::errors;
use crate::peers::messages::{Purpose, SegmentOpen, SegmentReply};
use crate::peers::{Peers, first_answer};

/// How often the shards are asked for segments that do not read.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// A segment that nobody could mend is tried again after this long, then twice as long, and so on up to a bound: a broker that was just
/// started does not reach the others yet.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);
/// The try after which that is said.
const ALARM_AT_TRY: u32 = 3;
/// For the next piece of a segment: the other broker checks all of it before the first.
const PIECE_PATIENCE: Duration = Duration::from_secs(120);
/// For all of a segment, beside what it takes at the least rate that is worth waiting for: whoever is slower keeps a place from others,
/// and another broker may be faster.
const TRANSFER_PATIENCE: Duration = Duration::from_secs(120);
const BYTES_PER_SECOND_LEAST: u64 = 1 << 20;
/// A segment travels in pieces of this size.
const PIECE_BYTES: usize = 256 << 10;

type Place = (ShardId, TopicPartition, Offset);

/// A segment that could not be mended yet.
struct Waiting {
    tries: u32,
    again: Instant,
}

/// Why a segment is not whole yet.
struct NotMended {
    reason: String,
    /// Others may have it, and had no place to send it just now: that is no try.
    only_busy: bool,
}

impl From<String> for NotMended {
    fn from(reason: String) -> Self {
        Self { reason, only_busy: false }
    }
}

/// Mends what does not read, until the broker stops.
pub(crate) async fn repair(context: Arc<Context>) {
    let mut waiting: BTreeMap<Place, Waiting> = BTreeMap::new();
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
            () = context.stopping.cancelled() => return,
        }
        let suspects = suspects(&context);
        waiting.retain(|place, _| suspects.iter().any(|(suspect, _)| suspect == place));
        for (place, replica) in suspects {
            if waiting.get(&place).is_some_and(|waiting| Instant::now() < waiting.again) {
                continue;
            }
            let mended = tokio::select! {
                mended = mend(&context, &replica, place) => mended,
                () = context.stopping.cancelled() => return,
            };
            match mended {
                Ok(()) => drop(waiting.remove(&place)),
                Err(NotMended { reason, only_busy }) => {
                    let before = waiting.get(&place).map_or(0, |waiting| waiting.tries);
                    let tries = if only_busy { before } else { before.saturating_add(1) };
                    let pause =
                        RETRY_FIRST.saturating_mul(1 << tries.saturating_sub(1).min(10)).min(RETRY_MAX);
                    waiting.insert(place, Waiting { tries, again: Instant::now() + pause });
                    if tries == ALARM_AT_TRY && before < tries {
                        alarm(&context, place, &reason);
                    }
                }
            }
        }
        let lasting = waiting.values().filter(|waiting| waiting.tries >= ALARM_AT_TRY).count();
        let lasting = u32::try_from(lasting).unwrap_or(u32::MAX);
        context.segments_unrepaired.store(lasting, Ordering::Relaxed);
        metrics::gauge!("tidemill_segments_unrepaired").set(waiting.len() as f64);
    }
}

/// What the shards here name, with the replica that each is of.
fn suspects(context: &Context) -> Vec<(Place, Replica)> {
    let healthy = context.shards.iter().filter(|(_, replica)| replica.watch().borrow().stopped().is_none());
    let named = healthy.flat_map(|(shard, replica)| {
        let suspects = replica.shard().suspects();
        suspects.into_iter().map(move |(partition, base)| ((shard, partition, base), replica.clone()))
    });
    named.collect()
}

fn alarm(context: &Context, (shard, partition, base_offset): Place, reason: &str) {
    metrics::counter!("tidemill_segment_repairs_failed_total").increment(1);
    let name = context.view.now().partition_name(partition);
    tracing::error!(
        %shard,
        partition = name,
        segment = %base_offset,
        reason,
        "a segment does not read and could not be repaired: readers of its damaged range get STORAGE_FAILED here. It is tried again; bring back \
         the brokers that have a replica of the shard, or restore the file"
    );
}

/// Makes a segment readable again, or says why it is not.
async fn mend(
    context: &Context,
    replica: &Replica,
    (shard_id, partition, base_offset): Place,
) -> Result<(), NotMended> {
    let shard = replica.shard();
    if reads_again(&shard, partition, base_offset).await {
        shard.trust(partition, base_offset);
        return Ok(());
    }
    if context.disk.is_nearly_full() {
        return Err("the disk has no room for a copy".to_owned().into());
    }
    let others = others(replica);
    let Some(peers) = context.peers.as_ref().filter(|_| !others.is_empty()) else {
        return Err("no other broker has a replica of the shard".to_owned().into());
    };
    let (mut troubles, mut only_busy) = (Vec::new(), true);
    for broker in others {
        let begun = {
            let shard = shard.clone();
            tokio::task::spawn_blocking(move || shard.begin_repair(partition, base_offset)).await
        };
        let begun = begun.map_err(|_| "it was interrupted".to_owned())?;
        let Some(repair) = begun.map_err(|error| error.to_string())? else {
            return Err("it is still being written; it is repaired when it is sealed".to_owned().into());
        };
        match fetch(peers, broker, shard_id, partition, repair).await {
            Ok(bytes) => {
                metrics::counter!("tidemill_segment_repairs_total").increment(1);
                let name = context.view.now().partition_name(partition);
                tracing::info!(shard = %shard_id, partition = name, segment = %base_offset, bytes, from = %broker, "a damaged segment was repaired");
                return Ok(());
            }
            Err(trouble) => {
                only_busy &= trouble.only_busy;
                troubles.push(format!("broker {broker}: {}", trouble.reason));
            }
        }
    }
    Err(NotMended { reason: troubles.join("; "), only_busy })
}

/// How long all of a segment may take on its way.
fn transfer_patience(bytes: u64) -> Duration {
    TRANSFER_PATIENCE + Duration::from_secs(bytes / BYTES_PER_SECOND_LEAST)
}

/// Whether all of the segment reads, or it is gone.
async fn reads_again(shard: &Shard, partition: TopicPartition, base_offset: Offset) -> bool {
    let shard = shard.clone();
    let looked = tokio::task::spawn_blocking(move || {
        let Ok(scrub) = shard.scrub(partition, base_offset) else { return false };
        let Some(mut scrub) = scrub else { return true };
        loop {
            match scrub.step(u64::MAX) {
                Ok(ScrubStep::More) => {}
                Ok(ScrubStep::Sound) => return true,
                Err(_) => return false,
            }
        }
    });
    looked.await.unwrap_or(false)
}

/// The other brokers with a replica of the shard: those that vote first.
fn others(replica: &Replica) -> Vec<BrokerId> {
    let (members, mine) = (replica.members(), replica.node().broker());
    let all = members.voters.iter().chain(&members.learners).map(|node| node.broker());
    let mut others: Vec<BrokerId> = Vec::new();
    for broker in all.filter(|broker| *broker != mine) {
        if !others.contains(&broker) {
            others.push(broker);
        }
    }
    others
}

/// Has a segment sent by another broker, and puts it in its place. Answers its bytes.
async fn fetch(
    peers: &Peers,
    broker: BrokerId,
    shard: ShardId,
    partition: TopicPartition,
    repair: SegmentRepair,
) -> Result<u64, NotMended> {
    let open = SegmentOpen::new(shard, partition, repair.end());
    let bytes = repair.end().bytes;
    let deadline = Instant::now() + transfer_patience(bytes);
    let mut stream = peers.open(broker, Purpose::Segment(open)).await.map_err(|error| error.to_string())?;
    let reply: SegmentReply = in_time(deadline, first_answer(&mut stream)).await?;
    if let Some(error) = reply.error {
        let only_busy = error.code == ErrorCode::Overloaded.code();
        return Err(NotMended { reason: error.message, only_busy });
    }
    let (mut position, mut repair) = (0, repair);
    while let Some(frame) = in_time(deadline, stream.reader.next()).await? {
        let piece = frame.payload;
        let at = position;
        position += piece.len() as u64;
        let written = tokio::task::spawn_blocking(move || (repair.write(at, &piece), repair)).await;
        let (wrote, staged) = written.map_err(|_| "it was interrupted".to_owned())?;
        wrote.map_err(|error| error.to_string())?;
        repair = staged;
    }
    let finished = tokio::task::spawn_blocking(move || repair.finish()).await;
    finished.map_err(|_| "it was interrupted".to_owned())?.map_err(|error| error.to_string())?;
    Ok(bytes)
}

async fn in_time<T, E: ToString>(
    deadline: Instant,
    said: impl Future<Output = Result<T, E>>,
) -> Result<T, String> {
    let said = tokio::time::timeout_at(deadline.min(Instant::now() + PIECE_PATIENCE), said).await;
    said.map_err(|_| "it sent nothing for too long, or too slowly".to_owned())?
        .map_err(|error| error.to_string())
}

/// Sends a segment to a broker whose own copy does not read, if this one's does.
pub(crate) async fn serve(context: &Context, open: &SegmentOpen, mut stream: Stream) {
    let sending = async {
        let (pin, end, _place) = match copy(context, open).await {
            Ok(found) => found,
            Err(error) => {
                stream.writer.send(&SegmentReply { error: Some(error) }, &[]).await?;
                return stream.writer.finish().await;
            }
        };
        stream.writer.send(&SegmentReply { error: None }, &[]).await?;
        let (mut position, mut pin) = (0, pin);
        while position < end.bytes {
            let base_offset = end.base_offset;
            let read = tokio::task::spawn_blocking(move || {
                let mut piece = vec![0; PIECE_BYTES];
                let length = pin.read_raw(base_offset, position, &mut piece).unwrap_or(0);
                piece.truncate(length);
                (Bytes::from(piece), pin)
            });
            // What is cut short, the receiver finds wanting.
            let Ok((piece, held)) = read.await else { break };
            if piece.is_empty() {
                break;
            }
            pin = held;
            position += piece.len() as u64;
            stream.writer.send(&PayloadChunk {}, std::slice::from_ref(&piece)).await?;
        }
        stream.writer.finish().await
    };
    // Whoever does not read gives its place back.
    match tokio::time::timeout(transfer_patience(open.bytes), sending).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a segment was not sent"),
        Err(_) => tracing::debug!("a segment was not sent: it was read too slowly"),
    }
}

/// This broker's copy of a segment, checked; and a place among those that are sent.
async fn copy<'a>(
    context: &'a Context,
    open: &SegmentOpen,
) -> Result<(SegmentPin, SegmentEnd, SemaphorePermit<'a>), Error> {
    let (shard, partition, end) =
        open.read().ok_or_else(|| errors::bad_message("a segment is named by its partition and its end"))?;
    let place = context.repairs_sent.try_acquire().map_err(|_| {
        Error::new(ErrorCode::Overloaded, "other segments are being sent just now; ask again")
    })?;
    let replica = context
        .shards
        .replica(shard)
        .ok_or_else(|| Error::new(ErrorCode::NotLeader, format!("it has no replica of shard {shard}")))?;
    let shard = replica.shard();
    let found = tokio::task::spawn_blocking(move || shard.sound_copy(partition, &end)).await;
    let found = found.map_err(|_| errors::interrupted("checking a segment"))?;
    let pin = found.map_err(|error| Error::new(ErrorCode::StorageFailed, error.to_string()))?;
    Ok((pin, end, place))
}

impl SegmentOpen {
    fn new(shard: ShardId, partition: TopicPartition, end: &SegmentEnd) -> Self {
        Self {
            shard: u32::from(shard.get()),
            topic: Bytes::copy_from_slice(&partition.topic.bytes()),
            partition: partition.partition.get(),
            base_offset: end.base_offset.get(),
            next_offset: end.next_offset.get(),
            bytes: end.bytes,
            batches: end.batches,
            max_timestamp: end.max_timestamp.get(),
            digest: end.digest,
        }
    }

    /// Which segment of which shard, and what it must be. What is left of the end is each broker's own.
    fn read(&self) -> Option<(ShardId, TopicPartition, SegmentEnd)> {
        let shard = ShardId::new(u16::try_from(self.shard).ok()?);
        let topic = <[u8; 16]>::try_from(self.topic.as_ref()).ok()?;
        let topic = TopicId::new(uuid::Uuid::from_bytes(topic));
        let end = SegmentEnd {
            next_offset: Offset::new(self.next_offset),
            bytes: self.bytes,
            batches: self.batches,
            max_timestamp: Timestamp::new(self.max_timestamp),
            sealed: true,
            digest: self.digest,
            ..SegmentEnd::empty(Offset::new(self.base_offset))
        };
        Some((shard, TopicPartition::new(topic, PartitionId::new(self.partition)), end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_is_asked_for_as_it_was_recorded() {
        let partition = TopicPartition::new(TopicId::new(uuid::Uuid::from_u128(7)), PartitionId::new(3));
        let end = SegmentEnd {
            next_offset: Offset::new(900),
            bytes: 5000,
            batches: 12,
            max_timestamp: Timestamp::new(77),
            sealed: true,
            digest: u64::MAX - 5,
            ..SegmentEnd::empty(Offset::new(30))
        };
        let open = SegmentOpen::new(ShardId::new(2), partition, &end);
        assert_eq!(open.read(), Some((ShardId::new(2), partition, end)));
        assert_eq!(SegmentOpen { topic: Bytes::from_static(b"short"), ..open.clone() }.read(), None);
        assert_eq!(SegmentOpen { shard: 1 << 16, ..open }.read(), None);
    }
}
