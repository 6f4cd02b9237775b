//! openraft's network over the seam to other brokers.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use openraft::base::{BoxFuture, BoxStream};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable};
use openraft::network::{RPCOption, RPCTypes, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult, TransferLeaderError,
    TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{EmptyNode, OptionalSend};
use parking_lot::Mutex;
use tidemill_log::wal::Wal;
use tidemill_protocol::{NodeId, ShardId};
use tokio::time::Instant;

use crate::append_stream::AppendStream;
use crate::catch_up::{CatchUp, Metrics};
use crate::codec::CodecError;
use crate::peers::{PeerDialer, PeerError, PeerStream};
use crate::rpc::{Address, Answer, Outgoing, TransferRefused, request};
use crate::snapshot::{self, Snapshot, SnapshotLimiter};
use crate::types::{LogId, RaftSnapshot, TypeConfig, Vote};

/// That a replica has lost what it acknowledged is told again after this long.
const LOST_TOLD_INTERVAL: Duration = Duration::from_secs(10);

/// The way from one replica to the others of its group.
pub(crate) struct PeerLinks {
    dialer: Arc<dyn PeerDialer>,
    shard: ShardId,
    node: NodeId,
    pub(crate) snapshot_limiter: Arc<SnapshotLimiter>,
    /// As soon as openraft runs.
    pub(crate) metrics: OnceLock<Metrics>,
    /// Where entries are kept that others lack, and how large it is when they had better have them soon. Not where nothing is led.
    pub(crate) log: Option<(Wal, u64)>,
    /// See [`Replica::sends_unsound_snapshots`](crate::Replica::sends_unsound_snapshots).
    pub(crate) is_unsound: AtomicBool,
    /// To other replicas, just now.
    pub(crate) snapshots_under_way: AtomicUsize,
    /// Of appends to one peer that it has not answered.
    pub(crate) append_in_flight_bytes_max: usize,
    /// The last entry that a peer said to hold, under which leadership. One that says later that it does not has lost
    /// what it acknowledged, and must not be fed again.
    acknowledged: Mutex<BTreeMap<NodeId, (Vote, LogId)>>,
    /// Those that were found to have lost some of that, and when that was last told.
    lost: Mutex<BTreeMap<NodeId, Instant>>,
}

/// One of so many, until it is dropped.
struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Why a call has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CallError {
    #[error(transparent)]
    Peer(#[from] PeerError),
    #[error("node {node} refused: {reason}")]
    Refused { node: NodeId, reason: String },
    #[error("node {node} answered what was not asked: {what}")]
    Nonsense { node: NodeId, what: String },
    #[error("node {node} did not answer within {patience:?}")]
    Late { node: NodeId, patience: Duration },
}

impl PeerLinks {
    pub(crate) fn new(
        dialer: Arc<dyn PeerDialer>,
        shard: ShardId,
        node: NodeId,
        append_in_flight_bytes_max: usize,
        snapshot_limiter: Arc<SnapshotLimiter>,
        log: Option<(Wal, u64)>,
    ) -> Arc<Self> {
        let (acknowledged, lost) = (Mutex::default(), Mutex::default());
        Arc::new(Self {
            dialer,
            shard,
            node,
            snapshot_limiter,
            metrics: OnceLock::new(),
            log,
            is_unsound: AtomicBool::new(false),
            snapshots_under_way: AtomicUsize::new(0),
            append_in_flight_bytes_max,
            acknowledged,
            lost,
        })
    }

    pub(crate) fn address(&self, to: NodeId) -> Address {
        Address { shard: self.shard, from: self.node, to }
    }

    pub(crate) async fn open(&self, to: NodeId, patience: Duration) -> Result<PeerStream, CallError> {
        let opened = tokio::time::timeout(patience, self.dialer.open(to, self.shard)).await;
        opened.map_err(|_elapsed| CallError::Late { node: to, patience })?.map_err(CallError::Peer)
    }

    /// One message, one answer, on a stream of their own.
    pub(crate) async fn call(
        &self,
        to: NodeId,
        asked: Outgoing,
        patience: Duration,
    ) -> Result<Answer, CallError> {
        let exchange = async {
            let mut stream = self.dialer.open(to, self.shard).await?;
            let (head, body) = asked;
            stream.sender.send(head, &body).await?;
            stream.sender.finish().await?;
            match stream.receiver.next().await? {
                Some(message) => Answer::decode(&message).map_err(|error| nonsense(to, &error)),
                None => Err(PeerError::Broken("it ended without an answer".to_owned()).into()),
            }
        };
        match tokio::time::timeout(patience, exchange).await {
            Ok(Ok(Answer::Refused(reason))) => Err(CallError::Refused { node: to, reason }),
            Ok(done) => done,
            Err(_elapsed) => Err(CallError::Late { node: to, patience }),
        }
    }

    /// Takes note that a peer holds the log up to there.
    pub(crate) fn acknowledged(&self, peer: NodeId, vote: Vote, upto: LogId) {
        let mut acknowledged = self.acknowledged.lock();
        let noted = acknowledged.entry(peer).or_insert((vote, upto));
        *noted = if noted.0 == vote { (vote, upto.max(noted.1)) } else { (vote, upto) };
    }

    /// Whether the peer, which says that it does not hold an entry, once said under the same leader that it does. It is logged, but not each
    /// time: openraft goes on asking it.
    pub(crate) fn has_lost(&self, peer: NodeId, vote: Vote, missing: &LogId) -> bool {
        let acknowledged = self.acknowledged.lock();
        let has_lost = acknowledged
            .get(&peer)
            .is_some_and(|(under, upto)| *under == vote && missing.index <= upto.index);
        drop(acknowledged);
        if has_lost {
            self.note_lost(peer, missing);
        }
        has_lost
    }

    fn note_lost(&self, peer: NodeId, missing: &LogId) {
        let now = Instant::now();
        let mut lost = self.lost.lock();
        if lost.get(&peer).is_some_and(|told| now.duration_since(*told) < LOST_TOLD_INTERVAL) {
            return;
        }
        lost.insert(peer, now);
        drop(lost);
        tracing::error!(
            shard = %self.shard, node = %peer, entry = missing.index,
            "a replica has lost what it acknowledged; it must come back under a new incarnation"
        );
    }

    pub(crate) fn lost(&self) -> BTreeSet<NodeId> {
        self.lost.lock().keys().copied().collect()
    }
}

pub(crate) fn nonsense(node: NodeId, what: &CodecError) -> CallError {
    CallError::Nonsense { node, what: what.to_string() }
}

pub(crate) fn unreachable_peer(reason: impl Display) -> Unreachable<TypeConfig> {
    Unreachable::from_string(reason)
}

/// Who can't be reached, refuses or talks nonsense is left alone for a while; a stream that broke off is opened anew at once.
pub(crate) fn rpc_error(action: RPCTypes, id: NodeId, error: CallError) -> RPCError<TypeConfig> {
    match error {
        CallError::Late { node, patience } => {
            RPCError::Timeout(Timeout { action, id, target: node, timeout: patience })
        }
        CallError::Peer(broken @ PeerError::Broken(_)) => RPCError::Network(NetworkError::new(&broken)),
        error => RPCError::Unreachable(unreachable_peer(error)),
    }
}

/// Makes a [`PeerNetwork`] for each member, and a second one for its heartbeats, which so wait behind no entries.
pub(crate) struct PeerNetworks(pub(crate) Arc<PeerLinks>);

impl RaftNetworkFactory<TypeConfig> for PeerNetworks {
    type Network = PeerNetwork;

    async fn new_client(&mut self, target: NodeId, _node: &EmptyNode) -> PeerNetwork {
        let links = Arc::clone(&self.0);
        let catch_up = CatchUp::new(Arc::clone(&links), target);
        PeerNetwork { links, target, kept: Mutex::new(None), catch_up }
    }
}

/// The way to one member.
pub(crate) struct PeerNetwork {
    pub(crate) links: Arc<PeerLinks>,
    pub(crate) target: NodeId,
    /// The stream for appends, between two sessions that ended in order.
    pub(crate) kept: Mutex<Option<PeerStream>>,
    pub(crate) catch_up: CatchUp,
}

impl PeerNetwork {
    async fn call(
        &self,
        action: RPCTypes,
        asked: Outgoing,
        option: &RPCOption,
    ) -> Result<Answer, RPCError<TypeConfig>> {
        let answer = self.links.call(self.target, asked, option.soft_ttl()).await;
        answer.map_err(|error| rpc_error(action, self.links.node, error))
    }

    fn other_answer<T>(&self, answer: &Answer) -> Result<T, RPCError<TypeConfig>> {
        let error = CallError::Nonsense { node: self.target, what: format!("{answer:?}") };
        Err(RPCError::Unreachable(unreachable_peer(error)))
    }

    async fn ask_for_vote(
        &self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
        pre: bool,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let asked = request::vote(&self.links.address(self.target), &rpc, pre);
        match self.call(RPCTypes::Vote, asked, &option).await? {
            Answer::Voted(response) => Ok(response),
            other => self.other_answer(&other),
        }
    }
}

impl RaftNetworkV2<TypeConfig> for PeerNetwork {
    type SnapshotData = Snapshot;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        let (asked, _bytes) = request::append(&self.links.address(self.target), &rpc);
        match self.call(RPCTypes::AppendEntries, asked, &option).await? {
            Answer::Appended(_) => Ok(AppendEntriesResponse::Success),
            Answer::Conflict(_) => Ok(AppendEntriesResponse::Conflict),
            Answer::HigherVote(vote) => Ok(AppendEntriesResponse::HigherVote(vote)),
            other => self.other_answer(&other),
        }
    }

    fn stream_append<'s, S>(
        &'s mut self,
        mut input: S,
        option: RPCOption,
    ) -> BoxFuture<
        's,
        Result<
            BoxStream<'s, Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>>,
            RPCError<TypeConfig>,
        >,
    >
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        Box::pin(async move {
            // It is in here that openraft pauses after a failure: to dial without asking for it would be to dial without a pause.
            let Some(first) = input.next().await else {
                return Ok(Box::pin(stream::empty()) as BoxStream<'s, _>);
            };
            let input = stream::iter([first]).chain(input);
            let kept = self.kept.get_mut().take();
            let stream = match kept {
                Some(stream) => stream,
                None => {
                    let opened = self.links.open(self.target, option.soft_ttl()).await;
                    opened.map_err(|error| rpc_error(RPCTypes::AppendEntries, self.links.node, error))?
                }
            };
            let answers: BoxStream<'s, _> = Box::pin(AppendStream::begin(self, stream, input).answers());
            Ok(answers)
        })
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.ask_for_vote(rpc, option, false).await
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.ask_for_vote(rpc, option, true).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: RaftSnapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let opened = self.links.open(self.target, option.soft_ttl()).await;
        let stream = opened.map_err(|error| StreamingError::Unreachable(unreachable_peer(error)))?;
        let address = self.links.address(self.target);
        let addressed = |offer: Bytes| request::snapshot(&address, &offer).0;
        let (limiter, is_unsound) = (&*self.links.snapshot_limiter, &self.links.is_unsound);
        let _counted = Counted::new(&self.links.snapshots_under_way);
        snapshot::send(stream, vote, snapshot, cancel, (limiter, is_unsound), addressed).await
    }

    async fn transfer_leader(
        &mut self,
        rpc: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        let asked = request::take_the_lead(&self.links.address(self.target), &rpc);
        let expected = *rpc.from_leader();
        match self.call(RPCTypes::TransferLeader, asked, &option).await? {
            Answer::TakeTheLead(Ok(())) => Ok(Ok(())),
            Answer::TakeTheLead(Err(TransferRefused::OtherVote(actual))) => {
                Ok(Err(TransferLeaderError::VoteChanged { expected, actual }))
            }
            Answer::TakeTheLead(Err(TransferRefused::NotThatFar(actual))) => {
                Ok(Err(TransferLeaderError::LogNotFlushed { expected: rpc.last_log_id().copied(), actual }))
            }
            other => self.other_answer(&other),
        }
    }
}
