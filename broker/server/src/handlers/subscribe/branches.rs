//! Partitions of a subscription that have no replica here: another broker serves them, over a stream of the same kind.
//!
//! ```text
//!   client <--- one stream ---> this broker, partitions that are here
//!                                 |--- branch ---> broker 2, partitions that it has
//!                                 '--- branch ---> broker 4, partitions that it has
//! ```
//!
//! A client asks the right broker by itself where it can; behind NAT it may reach one address alone. What it says of such a partition goes
//! to the partition's branch, and what the branch says comes to the client as it is. Credit is the client's own, so a branch is held up by
//! nobody but its reader. A branch that breaks off ends its partitions with `NOT_LEADER`, and the client adds them again.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tidemill_net::{FrameReader, FrameWriter, Stream};
use tidemill_protocol::frame::RawFrame;
use tidemill_protocol::messages::{
    Error, StreamOpen, SubscribeAdd, SubscribeControl, SubscribeEvent, SubscribeOpen, SubscribeOpened,
    stream_open, subscribe_control, subscribe_event,
};
use tidemill_protocol::{BrokerId, ErrorCode, ShardId, TopicPartition};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::places::Place;
use crate::connection::{Caller, Hop};
use crate::context::Context;
use crate::peers::Lane;

/// Control messages on the way to one branch, beside one that adds each partition that a subscription may have: a branch takes none before
/// it is open. Who sends more of them at once does not read what comes.
const CONTROLS_MAX: usize = 1024;
/// Frames of all branches that wait for the client, beside one that each has in its hands.
const FRAMES_MAX: usize = 2;
/// How long another broker may take to begin.
const OPEN_PATIENCE: Duration = Duration::from_secs(10);

/// The branches of one subscription.
pub(super) struct Branches {
    context: Arc<Context>,
    caller: Caller,
    /// What the client asked for goes along: the filter runs where the records are.
    open: SubscribeOpen,
    placed: HashMap<u32, Placed>,
    branches: HashMap<BrokerId, Branch>,
    /// Branches that there have been.
    opened: u64,
    news: (mpsc::Sender<News>, mpsc::Receiver<News>),
}

/// One branch among all that a subscription has had: what an earlier one to the same broker still has to say is not of the present one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BranchId {
    broker: BrokerId,
    number: u64,
}

/// A partition of a branch, by the client's id.
struct Placed {
    branch: BranchId,
    /// Of the last seek.
    generation: u64,
    /// Among the partitions of the connection.
    _place: Place,
}

struct Branch {
    id: BranchId,
    controls: mpsc::Sender<subscribe_control::Kind>,
    task: JoinHandle<()>,
}

impl Drop for Branch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What a branch has to say.
pub(super) enum News {
    Frame(BranchId, RawFrame),
    Ended(BranchId, Error),
}

/// What the client is to be told of it.
pub(super) enum Told {
    /// This frame, as it is.
    Frame(RawFrame),
    /// These partitions failed, each with its generation.
    Failed(Vec<(u32, u64)>, Error),
    Nothing,
}

impl Branches {
    pub(super) fn new(context: Arc<Context>, caller: Caller, open: SubscribeOpen) -> Self {
        Self {
            context,
            caller,
            open,
            placed: HashMap::new(),
            branches: HashMap::new(),
            opened: 0,
            news: mpsc::channel(FRAMES_MAX),
        }
    }

    /// Partitions that branches serve.
    pub(super) fn len(&self) -> usize {
        self.placed.len()
    }

    pub(super) fn serves(&self, id: u32) -> bool {
        self.placed.contains_key(&id)
    }

    /// The broker that serves a partition because this one can't; `None`: it is served or refused here.
    pub(super) fn broker_of(&self, partition: TopicPartition) -> Option<BrokerId> {
        let Hop::Direct = self.caller.hop else { return None };
        let shard: ShardId = self.context.view.now().shard_of(partition)?;
        if self.context.shards.serving(shard).is_some() {
            return None;
        }
        let connected = self.context.peers.as_ref()?.connected();
        self.context.holders(shard).into_iter().find(|broker| connected.contains(broker))
    }

    /// Adds a partition to a broker's branch, which is opened where there is none.
    pub(super) fn add(&mut self, broker: BrokerId, add: SubscribeAdd, place: Place) -> Told {
        let branch = match self.branches.get(&broker) {
            Some(branch) => branch.id,
            None => {
                metrics::counter!("tidemill_forwarded_streams_total").increment(1);
                self.opened += 1;
                let id = BranchId { broker, number: self.opened };
                self.branches.insert(broker, self.open_branch(id));
                id
            }
        };
        self.placed.insert(add.id, Placed { branch, generation: 0, _place: place });
        self.send(branch, subscribe_control::Kind::Add(add))
    }

    /// Tells a partition's branch what the client says of it.
    pub(super) fn tell(&mut self, id: u32, control: subscribe_control::Kind) -> Told {
        let Some(placed) = self.placed.get_mut(&id) else { return Told::Nothing };
        let branch = placed.branch;
        match &control {
            subscribe_control::Kind::Seek(seek) => placed.generation = seek.generation,
            subscribe_control::Kind::Remove(_) => _ = self.placed.remove(&id),
            _ => {}
        }
        self.send(branch, control)
    }

    fn send(&mut self, id: BranchId, control: subscribe_control::Kind) -> Told {
        let open = self.branches.get(&id.broker).filter(|branch| branch.id == id);
        let Some(branch) = open else { return Told::Nothing };
        match branch.controls.try_send(control) {
            // One that has ended says so itself.
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => Told::Nothing,
            // Waiting could be for ever: the branch waits for this stream, too.
            Err(mpsc::error::TrySendError::Full(_)) => {
                let (waiting, broker) = (branch.controls.max_capacity(), id.broker);
                let reason = format!(
                    "{waiting} messages of a subscription wait for broker {broker}; read what it sends"
                );
                self.ended(id, Error::new(ErrorCode::Overloaded, reason))
            }
        }
    }

    fn ended(&mut self, branch: BranchId, error: Error) -> Told {
        if self.branches.get(&branch.broker).is_none_or(|open| open.id != branch) {
            return Told::Nothing;
        }
        self.branches.remove(&branch.broker);
        let of_it = self.placed.iter().filter(|(_, placed)| placed.branch == branch);
        let failed: Vec<(u32, u64)> = of_it.map(|(id, placed)| (*id, placed.generation)).collect();
        failed.iter().for_each(|(id, _)| _ = self.placed.remove(id));
        Told::Failed(failed, error)
    }

    /// Waits for what branches have to say.
    pub(super) async fn next(&mut self) -> Option<News> {
        self.news.1.recv().await
    }

    /// What branches have to say already.
    pub(super) fn try_next(&mut self) -> Option<News> {
        self.news.1.try_recv().ok()
    }

    /// What the client is told of news.
    pub(super) fn told(&mut self, news: News) -> Told {
        match news {
            News::Frame(branch, frame) => {
                let event = frame.message::<SubscribeEvent>().ok().and_then(|event| event.kind);
                let Some(event) = event else { return Told::Nothing };
                let (id, is_over) = match &event {
                    subscribe_event::Kind::Started(started) => (started.id, false),
                    subscribe_event::Kind::Data(data) => (data.id, false),
                    subscribe_event::Kind::Progress(progress) => (progress.id, false),
                    subscribe_event::Kind::Failed(failed) => (failed.id, true),
                };
                if self.placed.get(&id).is_none_or(|placed| placed.branch != branch) {
                    // The client has taken it out meanwhile, or the branch had ended and this was still on its way.
                    return Told::Nothing;
                }
                if is_over {
                    self.placed.remove(&id);
                }
                Told::Frame(frame)
            }
            News::Ended(branch, error) => self.ended(branch, error),
        }
    }

    fn open_branch(&self, id: BranchId) -> Branch {
        let partitions_max = self.context.config.limits.subscription_partitions_max;
        let partitions_max = usize::try_from(partitions_max).unwrap_or(usize::MAX);
        // A queue takes memory for what is in it only.
        let bound = CONTROLS_MAX.saturating_add(partitions_max).min(tokio::sync::Semaphore::MAX_PERMITS);
        let (controls, queue) = mpsc::channel(bound);
        let (context, caller) = (Arc::clone(&self.context), self.caller.clone());
        let (open, news) = (self.open.clone(), self.news.0.clone());
        let task = tokio::spawn(async move {
            let begun = tokio::time::timeout(OPEN_PATIENCE, begin(&context, &caller, id.broker, open)).await;
            let error = match begun {
                Ok(Ok(stream)) => serve(id, stream, queue, &news).await,
                Ok(Err(error)) => error,
                Err(_) => broken(id.broker, "it does not answer"),
            };
            let _ = news.send(News::Ended(id, error)).await;
        });
        Branch { id, controls, task }
    }
}

/// Opens a subscription at another broker on the client's behalf.
async fn begin(
    context: &Context,
    caller: &Caller,
    broker: BrokerId,
    open: SubscribeOpen,
) -> Result<Stream, Error> {
    let broken = |reason: String| broken(broker, &reason);
    let peers = context.peers.as_ref().ok_or_else(|| broken("this broker has no others".to_owned()))?;
    let forward = caller.forward(context, &BTreeSet::new());
    let mut stream = peers.open_for_client(broker, Lane::Streams, forward).await?;
    let open = StreamOpen { kind: Some(stream_open::Kind::Subscribe(open)) };
    stream.writer.send(&open, &[]).await.map_err(|error| broken(error.to_string()))?;
    let opened = stream.reader.next().await.map_err(|error| broken(error.to_string()))?;
    let opened = opened.and_then(|frame| frame.message::<SubscribeOpened>().ok());
    match opened.ok_or_else(|| broken("it ended the stream".to_owned()))?.error {
        None => Ok(stream),
        Some(error) => Err(error),
    }
}

/// Carries both directions of a branch until one of them ends; answers why.
async fn serve(
    branch: BranchId,
    stream: Stream,
    controls: mpsc::Receiver<subscribe_control::Kind>,
    news: &mpsc::Sender<News>,
) -> Error {
    let Stream { reader, writer, .. } = stream;
    let reason = tokio::select! {
        reason = send(writer, controls) => reason,
        reason = receive(branch, reader, news) => reason,
    };
    broken(branch.broker, &reason)
}

async fn send(mut writer: FrameWriter, mut controls: mpsc::Receiver<subscribe_control::Kind>) -> String {
    while let Some(control) = controls.recv().await {
        if let Err(error) = writer.send(&SubscribeControl { kind: Some(control) }, &[]).await {
            return error.to_string();
        }
    }
    "the subscription is over".to_owned()
}

async fn receive(branch: BranchId, mut reader: FrameReader, news: &mpsc::Sender<News>) -> String {
    loop {
        match reader.next().await {
            Ok(Some(frame)) => {
                if news.send(News::Frame(branch, frame)).await.is_err() {
                    return "the subscription is over".to_owned();
                }
            }
            Ok(None) => return "it ended the stream".to_owned(),
            Err(error) => return error.to_string(),
        }
    }
}

fn broken(broker: BrokerId, reason: &str) -> Error {
    Error::new(
        ErrorCode::NotLeader,
        format!(
            "broker {broker}, which has the partition, does not serve it any more: {reason}; add it again"
        ),
    )
}
