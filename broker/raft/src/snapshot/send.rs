//! The sender: says what there is, and answers what it is asked for.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use metrics::{Counter, counter, histogram};
use openraft::errors::{ReplicationClosed, StreamingError, Unreachable};
use openraft::raft::SnapshotResponse;
use tidemill_log::background::Background;
use tidemill_protocol::ShardId;
use tidemill_shard::{Shard, SnapshotError};
use tokio::time::Instant;

use super::message::{MANIFEST_BYTES_MAX, Message, Part, Range};
use super::{PIECE_BYTES_MAX, Snapshot, SnapshotLimiter};
use crate::codec::CodecError;
use crate::peers::{PeerError, PeerStream};
use crate::runtime::blocking;
use crate::types::{RaftSnapshot, TypeConfig, Vote, log_id};

/// Sends a snapshot over a stream of its own, whose first head is what `opening` makes of the offer's: what the stream is for is said there. Its checkpoint is pinned meanwhile; if a newer one was made since openraft asked, it is that one.
/// Ends soon after `cancel` does. `is_unsound` is set where what this replica has can't be sent: it does not read, or the receiver found it
/// to be something else.
pub(crate) async fn send(
    stream: PeerStream,
    vote: Vote,
    snapshot: RaftSnapshot,
    cancel: impl Future<Output = ReplicationClosed>,
    (limiter, is_unsound): (&SnapshotLimiter, &AtomicBool),
    opening: impl FnOnce(Bytes) -> Bytes,
) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
    let sending = async {
        let Snapshot::Source { shard, .. } = snapshot.snapshot else { return Err(SendError::NotASource) };
        let sent = match Sender::begin(stream, shard, limiter).await {
            Ok(mut sender) => match sender.run(vote, opening).await {
                Ok(vote) => Ok(vote),
                Err(error) => Err(sender.failed(error).await),
            },
            Err(error) => Err(error),
        };
        if sent.as_ref().is_err_and(SendError::is_of_source) {
            is_unsound.store(true, Ordering::Relaxed);
        }
        sent
    };
    tokio::select! {
        biased;
        closed = cancel => Err(StreamingError::Closed(closed)),
        // Whatever it is, it is tried again after a pause. A segment of the leader's that can't be read is no reason to end the leader.
        answer = sending => match answer {
            Ok(vote) => Ok(SnapshotResponse::new(vote)),
            Err(error) => Err(StreamingError::Unreachable(Unreachable::new(&error))),
        },
    }
}

/// How long the sender listens for why the receiver broke the stream off.
const LAST_WORD_PATIENCE: Duration = Duration::from_secs(1);

/// How long the receiver may neither say anything nor take what is sent. It waits for its turn, copies what it has of its segments before
/// it asks for the rest, and opens its shard, all in silence; what it had done it need not do again at the next try. Without a bound one
/// whose broker stands still would have the checkpoint pinned here, and the lead held, for as long as it does. What this broker's own
/// limit holds back does not count.
pub(crate) const RECEIVER_PATIENCE: Duration = Duration::from_secs(600);

/// Why a snapshot was not sent.
#[derive(Debug, thiserror::Error)]
enum SendError {
    #[error(transparent)]
    Peer(#[from] PeerError),
    #[error(transparent)]
    Codec(#[from] CodecError),
    #[error("the snapshot can't be read: {0}")]
    Source(#[from] SnapshotError),
    #[error("the receiver gave up: {0}")]
    GivenUp(String),
    #[error("the receiver does not take it: {reason}")]
    Refused { part: Part, reason: String },
    #[error("the receiver ended the stream without an answer")]
    NoAnswer,
    #[error("the receiver has neither said nor taken anything for {0:?}")]
    Silent(Duration),
    #[error("the receiver said something that is not its part: {0:?}")]
    Unexpected(Message),
    #[error("the receiver asked for what there is not: {0:?}")]
    UnknownRange(Range),
    #[error("the manifest has {0} bytes, more than a receiver takes")]
    ManifestTooLarge(usize),
    #[error("a snapshot that is staged here is nobody's source")]
    NotASource,
    #[error("a thread panicked: {0}")]
    Panicked(#[from] io::Error),
}

impl SendError {
    /// Whether another replica might send what this one can't.
    fn is_of_source(&self) -> bool {
        match self {
            Self::Refused { .. } => true,
            Self::Source(error) => {
                !matches!(error, SnapshotError::Nothing | SnapshotError::Closed | SnapshotError::UnknownPart)
            }
            _ => false,
        }
    }
}

/// Waits for what the receiver has its part in, while that may still come.
async fn patiently<T>(done: impl Future<Output = Result<T, PeerError>>) -> Result<T, SendError> {
    match tokio::time::timeout(RECEIVER_PATIENCE, done).await {
        Ok(done) => Ok(done?),
        Err(_elapsed) => Err(SendError::Silent(RECEIVER_PATIENCE)),
    }
}

struct Sender<'a> {
    stream: PeerStream,
    shard: ShardId,
    source: Shard,
    background: Arc<dyn Background>,
    pinned: Arc<tidemill_shard::Snapshot>,
    limiter: &'a SnapshotLimiter,
    /// The chunk that was asked for last: a large one is asked for in pieces.
    chunk: Option<(u32, Bytes)>,
    sent_bytes: Counter,
}

impl<'a> Sender<'a> {
    async fn begin(
        stream: PeerStream,
        source: Shard,
        limiter: &'a SnapshotLimiter,
    ) -> Result<Self, SendError> {
        let background = Arc::clone(source.background());
        let shown = source.clone();
        let pinned = blocking(&background, move || shown.snapshot()).await??;
        let shard = pinned.manifest().shard;
        let sent_bytes = counter!("tidemill_snapshot_sent_bytes_total", "shard" => shard.to_string());
        let pinned = Arc::new(pinned);
        Ok(Self { stream, shard, source, background, pinned, limiter, chunk: None, sent_bytes })
    }

    async fn run(&mut self, vote: Vote, opening: impl FnOnce(Bytes) -> Bytes) -> Result<Vote, SendError> {
        let started = Instant::now();
        self.offer(vote, opening).await?;
        loop {
            let message = patiently(self.stream.receiver.next()).await?;
            let Some(message) = message else { return Err(SendError::NoAnswer) };
            match Message::decode(&message.head)? {
                Message::Want(ranges) => {
                    for range in ranges {
                        let body = self.read(range).await?;
                        let head = Message::Part { part: range.part, position: range.position };
                        self.piece(head.encode(), body).await?;
                    }
                }
                Message::Answer(vote) => {
                    histogram!("tidemill_snapshot_send_seconds", "shard" => self.shard.to_string())
                        .record(started.elapsed());
                    // The receiver has said all that it had to say, whether this arrives or not.
                    let _told = patiently(self.stream.sender.finish()).await;
                    return Ok(vote);
                }
                Message::Failed(reason) => return Err(SendError::GivenUp(reason)),
                Message::Refused { part, reason } => return Err(SendError::Refused { part, reason }),
                other => return Err(SendError::Unexpected(other)),
            }
        }
    }

    async fn offer(&mut self, vote: Vote, opening: impl FnOnce(Bytes) -> Bytes) -> Result<(), SendError> {
        let manifest = self.pinned.manifest();
        let last = log_id(&manifest.applied());
        let encoded = Bytes::from(manifest.encode());
        let length = u32::try_from(encoded.len()).ok().filter(|_| encoded.len() <= MANIFEST_BYTES_MAX);
        let manifest_bytes = length.ok_or(SendError::ManifestTooLarge(encoded.len()))?;
        let mut head = opening(Message::Offer { vote, last, manifest_bytes }.encode());
        let mut position = 0;
        loop {
            let end = encoded.len().min(position + PIECE_BYTES_MAX);
            self.piece(head, encoded.slice(position..end)).await?;
            if end == encoded.len() {
                return Ok(());
            }
            position = end;
            head = Message::Manifest { position: u32::try_from(position).unwrap_or(u32::MAX) }.encode();
        }
    }

    async fn piece(&mut self, head: Bytes, body: Bytes) -> Result<(), SendError> {
        self.limiter.take(body.len()).await;
        let bytes = body.len() as u64;
        patiently(self.stream.sender.send(head, &[body])).await?;
        self.sent_bytes.increment(bytes);
        Ok(())
    }

    async fn read(&mut self, range: Range) -> Result<Bytes, SendError> {
        let bytes = match range.part {
            Part::Chunk(number) => self.read_chunk(number, range).await?,
            Part::Segment(number) => self.read_segment(number, range).await?,
        };
        if bytes.len() == range.bytes as usize { Ok(bytes) } else { Err(SendError::UnknownRange(range)) }
    }

    async fn read_chunk(&mut self, number: u32, range: Range) -> Result<Bytes, SendError> {
        let chunk = match self.chunk.take() {
            Some((held, chunk)) if held == number => chunk,
            _ => {
                let pinned = Arc::clone(&self.pinned);
                blocking(&self.background, move || pinned.chunk(number as usize)).await??
            }
        };
        let start = usize::try_from(range.position).unwrap_or(usize::MAX);
        let end = start.saturating_add(range.bytes as usize);
        let bytes = if end <= chunk.len() {
            Ok(chunk.slice(start..end))
        } else {
            Err(SendError::UnknownRange(range))
        };
        if end < chunk.len() {
            self.chunk = Some((number, chunk));
        }
        bytes
    }

    async fn read_segment(&mut self, number: u32, range: Range) -> Result<Bytes, SendError> {
        let segments = &self.pinned.manifest().segments;
        let segment = *segments.get(number as usize).ok_or(SendError::UnknownRange(range))?;
        let pinned = Arc::clone(&self.pinned);
        let read = blocking(&self.background, move || {
            let mut buffer = vec![0; range.bytes as usize];
            let base = segment.end.base_offset;
            let read = pinned.read_segment(segment.partition, base, range.position, &mut buffer)?;
            buffer.truncate(read);
            Ok::<_, SnapshotError>(Bytes::from(buffer))
        });
        Ok(read.await??)
    }

    /// Tells the receiver, or hears from it, why.
    async fn failed(&mut self, error: SendError) -> SendError {
        let error = match error {
            SendError::Peer(broken) => {
                let word = tokio::time::timeout(LAST_WORD_PATIENCE, self.last_word()).await;
                word.ok().flatten().unwrap_or(SendError::Peer(broken))
            }
            SendError::GivenUp(_)
            | SendError::Refused { .. }
            | SendError::NoAnswer
            | SendError::Silent(_) => error,
            _ => {
                // So that the receiver's log says why, too; the stream may be broken as well.
                let said = Message::Failed(error.to_string()).encode();
                let _told = patiently(self.stream.sender.send(said, &[])).await;
                let _told = patiently(self.stream.sender.finish()).await;
                error
            }
        };
        if let SendError::Refused { part: Part::Segment(number), .. } = error {
            self.look_for_damage(number).await;
        }
        tracing::warn!(shard = %self.shard, %error, "a snapshot was not sent; the next try goes on where this one ended");
        error
    }

    /// A segment that the receiver does not take may be damaged here: then it is repaired before it is sent again.
    async fn look_for_damage(&self, number: u32) {
        let Some(segment) = self.pinned.manifest().segments.get(number as usize).copied() else { return };
        let source = self.source.clone();
        let checked =
            blocking(&self.background, move || source.sound_copy(segment.partition, &segment.end).map(drop))
                .await;
        if let Ok(Err(error)) = checked {
            tracing::warn!(shard = %self.shard, partition = %segment.partition, %error, "what a receiver did not take is looked at here");
        }
    }

    async fn last_word(&mut self) -> Option<SendError> {
        while let Ok(Some(message)) = self.stream.receiver.next().await {
            match Message::decode(&message.head) {
                Ok(Message::Failed(reason)) => return Some(SendError::GivenUp(reason)),
                Ok(Message::Refused { part, reason }) => return Some(SendError::Refused { part, reason }),
                _ => {}
            }
        }
        None
    }
}
