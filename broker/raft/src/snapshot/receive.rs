//! The receiver: knows what it lacks, asks for it, believes nothing.

mod plan;

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use metrics::{Counter, counter, histogram};
use openraft::Raft;
use openraft::raft::SnapshotResponse;
use tidemill_protocol::{NodeId, ShardId};
use tidemill_shard::{InstallError, ManifestError, SnapshotInstall, SnapshotManifest};
use tokio::time::Instant;

use self::plan::Plan;
use super::message::{Message, Part, RANGES_MAX, Range};
use super::staged::Turn;
use super::{PIECE_BYTES_MAX, Snapshot, Staged, WINDOW_BYTES};
use crate::codec::{self, CodecError};
use crate::peers::{PeerError, PeerMessage, PeerStream};
use crate::runtime::blocking;
use crate::state_machine::{Machine, StateMachine};
use crate::types::{LogId, RaftSnapshot, SnapshotMeta, StoredMembership, TypeConfig, Vote, log_id};

/// So many parts of one transfer may turn out to be something else before it ends. Its leader then looks for damage in what it sent, has it
/// mended from others, and hands the lead to one of them, which sends what is missing still.
const REFUSALS_MAX: u32 = 3;

/// Why a snapshot was not received. What is staged stays.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReceiveError {
    #[error(transparent)]
    Peer(#[from] PeerError),
    #[error(transparent)]
    Codec(#[from] CodecError),
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error(transparent)]
    Install(#[from] InstallError),
    #[error("the sender gave up: {0}")]
    GivenUp(String),
    #[error("the sender ended the stream before everything was there")]
    Ended,
    #[error("the sender said something that is not its part: {0}")]
    Unexpected(&'static str),
    #[error(
        "{times} parts were not what the manifest says; the leader looks at its own, and another sends them"
    )]
    Refused { times: u32, last: Part },
    #[error("a newer transfer to this replica took over")]
    Overtaken,
    #[error("the replica stopped: {0}")]
    Stopped(String),
}

/// Serves a stream that [`send`](super::send) opened at the other side: stages what is offered beside the machine's shard, has openraft
/// install it, and answers. `first` is the first message, its head without what was put before the offer.
pub(crate) async fn receive(
    machine: &Arc<Machine>,
    raft: &Raft<TypeConfig, StateMachine>,
    from: NodeId,
    first: PeerMessage,
    stream: PeerStream,
) -> Result<(), ReceiveError> {
    let install = async |vote, snapshot| {
        let installed = raft.install_full_snapshot(vote, snapshot).await;
        installed.map_err(|fatal| ReceiveError::Stopped(fatal.to_string()))
    };
    receive_with(machine, from, first, stream, install).await
}

pub(crate) async fn receive_with(
    machine: &Arc<Machine>,
    from: NodeId,
    first: PeerMessage,
    mut stream: PeerStream,
    install: impl AsyncFnOnce(Vote, RaftSnapshot) -> Result<SnapshotResponse<TypeConfig>, ReceiveError>,
) -> Result<(), ReceiveError> {
    let shard = machine.id();
    let received_bytes = counter!("tidemill_snapshot_received_bytes_total", "shard" => shard.to_string());
    let mut receiver = Receiver { machine, shard, from, stream: &mut stream, received_bytes, refused: 0 };
    let answered = match receiver.run(first, install).await {
        Ok(vote) => receiver.durable().await.map(|()| vote),
        Err(error) => Err(error),
    };
    let vote = match answered {
        Ok(vote) => vote,
        Err(error) => {
            // So that the sender's log says why, too; the stream may be broken as well.
            let reason = error.to_string();
            let word = match error {
                ReceiveError::Refused { last: part, .. } => Message::Refused { part, reason },
                _ => Message::Failed(reason),
            };
            let _told = stream.sender.send(word.encode(), &[]).await;
            let _told = stream.sender.finish().await;
            return Err(error);
        }
    };
    stream.sender.send(Message::Answer(vote).encode(), &[]).await?;
    Ok(stream.sender.finish().await?)
}

struct Offer {
    vote: Vote,
    last: LogId,
    manifest_bytes: usize,
}

struct Receiver<'a> {
    machine: &'a Arc<Machine>,
    shard: ShardId,
    from: NodeId,
    stream: &'a mut PeerStream,
    received_bytes: Counter,
    refused: u32,
}

impl Receiver<'_> {
    async fn run(
        &mut self,
        first: PeerMessage,
        install: impl AsyncFnOnce(Vote, RaftSnapshot) -> Result<SnapshotResponse<TypeConfig>, ReceiveError>,
    ) -> Result<Vote, ReceiveError> {
        let Message::Offer { vote, last, manifest_bytes } = Message::decode(&first.head)? else {
            return Err(ReceiveError::Unexpected("a snapshot's stream begins with an offer"));
        };
        let offer = Offer { vote, last, manifest_bytes: manifest_bytes as usize };
        // Before it takes the turn from a better one.
        if let Some(vote) = self.answer_at_once(&offer)? {
            return Ok(vote);
        }
        let turns = self.machine.staging_turns();
        let mut newer = turns.come();
        let machine = Arc::clone(self.machine);
        let staging = async move {
            let turn = machine.staging_turns().take().await;
            self.transfer(offer, first.body, turn, install).await
        };
        tokio::select! {
            biased;
            _ = newer.changed() => Err(ReceiveError::Overtaken),
            vote = staging => vote,
        }
    }

    /// Refuses what no leader offers: openraft would take it for the end of the world.
    fn answer_at_once(&self, offer: &Offer) -> Result<Option<Vote>, ReceiveError> {
        if let Some(newer) = self.machine.vote().filter(|vote| *vote > offer.vote) {
            return Ok(Some(newer));
        }
        if !offer.vote.is_committed() || offer.last.leader_id > *offer.vote.leader_id() {
            return Err(ReceiveError::Unexpected("its snapshot goes beyond its leadership"));
        }
        let applied = self.machine.applied();
        Ok(applied.filter(|id| id.index.get() >= offer.last.index).map(|_| offer.vote))
    }

    /// Waits until all that was applied here is on the device. A follower applies what the others have, though its own log may still be
    /// writing it; but who says that it needs no snapshot says that it has what the snapshot holds, whatever happens to it.
    async fn durable(&self) -> Result<(), ReceiveError> {
        let wal = self.machine.wal();
        let applied = self.machine.applied().map(|id| id.index);
        let flushed = wal.flushed(self.shard).max(self.machine.checkpointed()).map(|id| id.index);
        if applied <= flushed {
            return Ok(());
        }
        let (done, flushed) = tokio::sync::oneshot::channel();
        wal.flush(Box::new(move |result| drop(done.send(result))));
        match flushed.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(ReceiveError::Stopped(format!("write-ahead log: {error}"))),
            Err(_closed) => Err(ReceiveError::Stopped("the write-ahead log was closed".to_owned())),
        }
    }

    async fn transfer(
        &mut self,
        offer: Offer,
        first_piece: Bytes,
        turn: Turn,
        install: impl AsyncFnOnce(Vote, RaftSnapshot) -> Result<SnapshotResponse<TypeConfig>, ReceiveError>,
    ) -> Result<Vote, ReceiveError> {
        let started = Instant::now();
        // Whoever had the turn before may have brought as much.
        if let Some(vote) = self.answer_at_once(&offer)? {
            return Ok(vote);
        }
        let manifest = self.manifest(&offer, first_piece).await?;
        let last_membership = match manifest.membership() {
            Some(membership) => codec::decode_stored_membership(membership)?,
            None => StoredMembership::default(),
        };
        if log_id(&manifest.applied()) != offer.last {
            return Err(ReceiveError::Unexpected("its manifest is of another entry than it offered"));
        }
        if last_membership.log_id().as_ref().is_some_and(|id| id.index > offer.last.index) {
            return Err(ReceiveError::Unexpected(
                "its manifest names members of a later entry than it ends with",
            ));
        }
        let live = self.machine.shard();
        let staged = beside(self.machine, move || Staged::begin(&live, manifest, turn)).await??;
        self.fetch(&staged).await?;
        let seconds = started.elapsed().as_secs_f64();
        histogram!("tidemill_snapshot_receive_seconds", "shard" => self.shard.to_string()).record(seconds);
        tracing::info!(shard = %self.shard, peer = %self.from, seconds, last = %offer.last, "a snapshot is all there");
        let meta = SnapshotMeta { last_log_id: Some(offer.last), last_membership };
        let snapshot = RaftSnapshot { meta, snapshot: Snapshot::Staged(staged.clone()) };
        let response = install(offer.vote, snapshot).await?;
        self.tidy(staged, &offer).await?;
        Ok(response.vote)
    }

    /// What openraft did not install, since the shard has gone further by itself, is in the way.
    async fn tidy(&mut self, staged: Staged, offer: &Offer) -> Result<(), ReceiveError> {
        let applied = self.machine.applied();
        let needless = applied.is_some_and(|id| id.index.get() >= offer.last.index);
        let live = self.machine.shard();
        beside(self.machine, move || {
            if needless
                && staged.take().is_some()
                && let Err(error) = SnapshotInstall::discard(&live)
            {
                tracing::warn!(%error, "a staged snapshot that is not needed could not be removed");
            }
        })
        .await
    }

    async fn next(&mut self) -> Result<(Message, Bytes), ReceiveError> {
        let Some(PeerMessage { head, body }) = self.stream.receiver.next().await? else {
            return Err(ReceiveError::Ended);
        };
        match Message::decode(&head)? {
            Message::Failed(reason) => Err(ReceiveError::GivenUp(reason)),
            message => Ok((message, body)),
        }
    }

    async fn manifest(
        &mut self,
        offer: &Offer,
        first_piece: Bytes,
    ) -> Result<SnapshotManifest, ReceiveError> {
        // Grows with what comes, not with what is announced.
        let mut encoded = BytesMut::from(first_piece);
        while encoded.len() < offer.manifest_bytes {
            match self.next().await? {
                (Message::Manifest { position }, body)
                    if position as usize == encoded.len() && !body.is_empty() =>
                {
                    encoded.extend_from_slice(&body);
                }
                _ => return Err(ReceiveError::Unexpected("the rest of its manifest was to come")),
            }
        }
        if encoded.len() > offer.manifest_bytes {
            return Err(ReceiveError::Unexpected("its manifest is longer than it said"));
        }
        self.received_bytes.increment(encoded.len() as u64);
        Ok(SnapshotManifest::decode(&encoded)?)
    }

    /// Asks for what is missing until nothing is.
    async fn fetch(&mut self, staged: &Staged) -> Result<(), ReceiveError> {
        let mut plan = installing(staged, Plan::new)?;
        tracing::info!(
            shard = %self.shard, peer = %self.from, parts = plan.parts(), "a snapshot is on its way"
        );
        let mut chunk = BytesMut::new();
        loop {
            while plan.wants_more() {
                let ranges = self.next_run(staged, &mut plan).await?;
                if ranges.is_empty() {
                    break;
                }
                self.stream.sender.send(Message::Want(ranges).encode(), &[]).await?;
            }
            let Some(range) = plan.expect() else { return Ok(()) };
            match self.next().await? {
                (Message::Part { part, position }, body)
                    if (part, position, body.len()) == (range.part, range.position, range.bytes as usize) =>
                {
                    self.received_bytes.increment(body.len() as u64);
                    self.take(staged, &mut plan, range, body, &mut chunk).await?;
                }
                _ => return Err(ReceiveError::Unexpected("it was asked for something else")),
            }
        }
    }

    /// The next ranges to ask for, as many as the window has room for.
    async fn next_run(&mut self, staged: &Staged, plan: &mut Plan) -> Result<Vec<Range>, ReceiveError> {
        let mut ranges = Vec::new();
        while ranges.len() < RANGES_MAX && plan.has_room() {
            if let Some(range) = plan.next_range() {
                ranges.push(range);
                continue;
            }
            let Some(part) = plan.next_part() else { break };
            let Part::Segment(number) = part else { continue };
            let received =
                on_staged(self.machine, staged, move |install| install.received(number as usize)).await?;
            plan.resume(received);
            if plan.is_all_here() {
                plan.skip();
                let finished =
                    on_staged(self.machine, staged, move |install| finish_segment(install, number)).await?;
                self.judge(plan, part, finished)?;
            }
        }
        Ok(ranges)
    }

    async fn take(
        &mut self,
        staged: &Staged,
        plan: &mut Plan,
        range: Range,
        body: Bytes,
        chunk: &mut BytesMut,
    ) -> Result<(), ReceiveError> {
        let last = plan.ends(range);
        match range.part {
            Part::Chunk(number) => {
                let whole = if last && chunk.is_empty() {
                    body
                } else {
                    chunk.extend_from_slice(&body);
                    if !last {
                        return Ok(());
                    }
                    std::mem::take(chunk).freeze()
                };
                let put = on_staged(self.machine, staged, move |install| {
                    refusal(install.put_chunk(number as usize, whole))
                });
                let put = put.await?;
                self.judge(plan, range.part, put)
            }
            Part::Segment(number) => {
                let put = on_staged(self.machine, staged, move |install| {
                    install.put_segment(number as usize, range.position, &body)?;
                    if last { finish_segment(install, number) } else { Ok(None) }
                });
                let put = put.await?;
                self.judge(plan, range.part, put)
            }
        }
    }

    /// A part that is something else is asked for again, and the sender is trusted less.
    fn judge(
        &mut self,
        plan: &mut Plan,
        part: Part,
        refused: Option<InstallError>,
    ) -> Result<(), ReceiveError> {
        let Some(reason) = refused else { return Ok(()) };
        tracing::warn!(
            shard = %self.shard, ?part, peer = %self.from, %reason,
            "a part of a snapshot is not what its manifest says; it is thrown away and fetched again"
        );
        counter!("tidemill_snapshot_parts_rejected_total", "shard" => self.shard.to_string()).increment(1);
        self.refused += 1;
        if self.refused >= REFUSALS_MAX {
            return Err(ReceiveError::Refused { times: self.refused, last: part });
        }
        plan.again(part);
        Ok(())
    }
}

/// Tells apart what is wrong with a part, which is judged, from what ends the transfer.
fn refusal(done: Result<(), InstallError>) -> Result<Option<InstallError>, InstallError> {
    match done {
        Ok(()) => Ok(None),
        Err(error) if error.is_of_part() => Ok(Some(error)),
        Err(error) => Err(error),
    }
}

fn finish_segment(install: &mut SnapshotInstall, number: u32) -> Result<Option<InstallError>, InstallError> {
    refusal(install.finish_segment(number as usize))
}

fn installing<T>(staged: &Staged, action: impl FnOnce(&mut SnapshotInstall) -> T) -> Result<T, ReceiveError> {
    staged.with(action).ok_or(ReceiveError::Overtaken)
}

/// Does something with what is staged, where blocking is allowed.
async fn on_staged<T: Send + 'static>(
    machine: &Machine,
    staged: &Staged,
    action: impl FnOnce(&mut SnapshotInstall) -> Result<T, InstallError> + Send + 'static,
) -> Result<T, ReceiveError> {
    let staged = staged.clone();
    Ok(beside(machine, move || installing(&staged, action)).await???)
}

/// Does what blocks beside the machine's shard.
async fn beside<T: Send + 'static>(
    machine: &Machine,
    action: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ReceiveError> {
    blocking(machine.background(), action).await.map_err(|error| ReceiveError::Stopped(error.to_string()))
}
