//! What other brokers ask of this one.

use std::sync::Arc;
use std::time::Duration;

use tidemill_controller::{BrokerRecord, Controller};
use tidemill_net::{Connection, ReadError, Stream, WriteError};
use tidemill_protocol::messages::Error;
use tidemill_protocol::{BrokerId, ErrorCode, NodeId, ShardId};
use tidemill_raft::Replica;
use tokio::task::JoinSet;

use super::greeting::refused;
use super::messages::{
    AttemptOpen, ComponentOpen, ForwardOpen, HeldOpen, PeerOpen, Purpose, RaftOpen, ReplaceReply, SegmentOpen,
};
use super::{Peers, disks, replicas};
use crate::cluster::Lives;
use crate::context::Context;
use crate::refusals::{self, Refused};
use crate::shards::Shards;

/// A stream that says nothing for so long after it was opened is dropped; so is a connection without a hello.
const FIRST_FRAME_DEADLINE: Duration = Duration::from_secs(10);
/// How often it is looked whether those that are connected still belong to the cluster.
pub(super) const STANDING_INTERVAL: Duration = Duration::from_secs(2);
/// A broker that starts is asked before it can answer: what comes waits for so long.
const START_PATIENCE: Duration = Duration::from_secs(10);
/// Connections of brokers and of who wants to become one. More than one a broker, since a broken one may linger.
const CONNECTIONS_MAX: usize = 4096;

/// What answers other brokers.
pub(crate) struct PeerServices {
    pub(crate) shards: Shards,
    pub(crate) lives: Arc<Lives>,
    /// All that clients reach; `None` until clients are served.
    pub(crate) context: tokio::sync::watch::Receiver<Option<Arc<Context>>>,
}

impl PeerServices {
    /// Whether this broker knows of a cluster that was formed.
    pub(super) fn is_formed(&self) -> bool {
        self.controller().is_some_and(|controller| controller.identity().is_some())
    }

    /// Refuses whom the controller has removed, as far as this broker has heard.
    pub(crate) fn check_standing(&self, broker: BrokerId, incarnation: u32) -> Result<(), Error> {
        let Some(controller) = self.controller() else { return Ok(()) };
        check_standing(&controller, broker, incarnation)
    }

    /// Whether the controller has removed this life of a broker, as far as this broker has heard.
    pub(super) fn is_removed(&self, broker: BrokerId, incarnation: u32) -> bool {
        self.controller().is_some_and(|controller| is_removed(&controller, broker, incarnation))
    }

    fn controller(&self) -> Option<Arc<Controller>> {
        self.shards.state(ShardId::CONTROLLER).and_then(|shard| shard.controller())
    }

    async fn context(&self) -> Result<Arc<Context>, Error> {
        let mut context = self.context.clone();
        let waiting = context.wait_for(Option::is_some);
        match tokio::time::timeout(START_PATIENCE, waiting).await {
            Ok(Ok(context)) => context.clone().ok_or_else(not_yet),
            _ => Err(not_yet()),
        }
    }
}

fn check_standing(controller: &Controller, broker: BrokerId, incarnation: u32) -> Result<(), Error> {
    let Some(known) = controller.broker(broker) else { return Ok(()) };
    if is_life_removed(known, incarnation) {
        return Err(refused(format!(
            "broker {broker} was removed from the cluster, and this life of it never comes back; let it join with an empty data \
             directory and a token of `tidemill cluster add --broker {broker}`"
        )));
    }
    if incarnation < known.incarnation {
        return Err(refused(format!(
            "broker {broker} has begun another life (incarnation {}), and this is its incarnation {incarnation}: its data directory is an \
             old one, or a new one made from the plan; start it on the newer one, or on an empty one with a token of `tidemill cluster add \
             --broker {broker}`",
            known.incarnation
        )));
    }
    Ok(())
}

/// What was removed stays so, unless the broker is let in anew: then it has another life, and this says nothing of that.
fn is_removed(controller: &Controller, broker: BrokerId, incarnation: u32) -> bool {
    controller.broker(broker).is_some_and(|known| is_life_removed(known, incarnation))
}

fn is_life_removed(known: &BrokerRecord, incarnation: u32) -> bool {
    // After a recovery it may have had a life that only the lost brokers knew; who is let in anew gets a later one than all of these.
    !known.is_member() && incarnation < known.next_incarnation.max(known.incarnation.saturating_add(1))
}

fn not_yet() -> Error {
    Error::new(ErrorCode::Overloaded, "the broker is still starting; try again")
}

/// Answers connections until the endpoint closes.
pub(super) async fn accept(peers: Peers) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = peers.0.endpoint.accept() => match accepted {
                Some(connection) if connections.len() >= CONNECTIONS_MAX => {
                    connection.close(ErrorCode::Overloaded.code(), "too many connections of brokers are open");
                }
                Some(connection) => {
                    connections.spawn(serve(peers.clone(), connection));
                }
                None => return,
            },
            Some(ended) = connections.join_next(), if !connections.is_empty() => {
                if let Err(error) = ended && error.is_panic() {
                    tracing::error!(%error, "the task of a broker's connection panicked; only that connection ended");
                }
            }
        }
    }
}

async fn serve(peers: Peers, connection: Connection) {
    let address = connection.peer().address;
    let greeted = match connection.peer().peer {
        Some(_) => greet(&peers, &connection).await,
        None => return serve_joiner(&peers, &connection).await,
    };
    match greeted {
        Ok((broker, incarnation)) => {
            tracing::debug!(%address, %broker, "a broker connected");
            tokio::select! {
                () = serve_streams(&peers, &connection, (broker, incarnation)) => {}
                error = out_of_standing(&peers, broker, incarnation) => {
                    refusals::note(Refused::Connection, &address, &error);
                    connection.close(error.code, &error.message);
                }
            }
            tracing::debug!(%address, %broker, "a broker's connection ended");
        }
        Err(unserved) => unserved.end(&connection, "hello"),
    }
}

/// Why a connection is not served.
enum Unserved {
    /// It ended, or nothing came, before it had said what it is for or heard the answer.
    Silent(Error),
    /// For what it shows or says.
    Refused(Error),
}

impl From<Error> for Unserved {
    fn from(error: Error) -> Self {
        Self::Refused(error)
    }
}

impl Unserved {
    fn silent(reason: impl Into<String>) -> Self {
        Self::Silent(refused(reason))
    }

    fn error(&self) -> &Error {
        match self {
            Self::Silent(error) | Self::Refused(error) => error,
        }
    }

    /// Counts it, says why at both ends, and closes the connection. Whoever said something wrong is counted under `refused_as`.
    fn end(&self, connection: &Connection, refused_as: &'static str) {
        let reason = match self {
            Self::Silent(_) => "silent",
            Self::Refused(_) => refused_as,
        };
        let error = self.error();
        metrics::counter!("tidemill_peer_refused_total", "reason" => reason).increment(1);
        refusals::note(Refused::Connection, &connection.peer().address, error);
        connection.close(error.code, &error.message);
    }
}

/// Comes back when the controller has removed a broker that is connected, or was not known yet when it was greeted. Dialling again it is
/// told so.
async fn out_of_standing(peers: &Peers, broker: BrokerId, incarnation: u32) -> Error {
    loop {
        tokio::time::sleep(STANDING_INTERVAL).await;
        let services = peers.0.services.borrow().clone();
        if let Some(Err(error)) = services.map(|services| services.check_standing(broker, incarnation)) {
            metrics::counter!("tidemill_peer_refused_total", "reason" => "standing").increment(1);
            return error;
        }
    }
}

/// The first stream of a broker's connection carries its hello. Answers who it is, and in which life.
async fn greet(peers: &Peers, connection: &Connection) -> Result<(BrokerId, u32), Unserved> {
    let identity = connection.peer().peer.ok_or_else(|| refused("it shows no broker's certificate"))?;
    let (purpose, mut stream) = first_stream(connection).await?;
    let Purpose::Hello(hello) = purpose else {
        return Err(refused("the first stream of a connection carries the hello").into());
    };
    let met = peers.meet(Some(hello), &identity).await;
    let welcome = match &met {
        Ok(hello) => peers.welcome(hello.protocol),
        Err(refusal) => refusal.welcome(),
    };
    let sent = async {
        stream.writer.send(&welcome, &[]).await?;
        stream.writer.finish().await
    };
    let sent = sent.await;
    if met.is_err() {
        // It must hear why before the connection closes.
        let _ = tokio::time::timeout(FIRST_FRAME_DEADLINE, stream.writer.delivered()).await;
    }
    let hello = met.map_err(|refusal| refusal.error)?;
    sent.map_err(|error: WriteError| Unserved::silent(error.to_string()))?;
    Ok((BrokerId::new(hello.broker.broker_id), hello.broker.incarnation))
}

/// Who shows no certificate may ask for one, with a token, and for nothing else.
async fn serve_joiner(peers: &Peers, connection: &Connection) {
    let address = connection.peer().address;
    let answered = async {
        let (purpose, mut stream) = first_stream(connection).await?;
        let Purpose::Join(request) = purpose else {
            return Err(Unserved::from(refused("who shows no certificate may only join")));
        };
        let services = services(peers).await?;
        let context = services.context().await?;
        let reply = crate::cluster::take_in(&context, peers, request).await;
        if let Some(error) = &reply.error {
            metrics::counter!("tidemill_peer_refused_total", "reason" => "join").increment(1);
            refusals::note(Refused::Request, &address, error);
        }
        let failed = |error: WriteError| Unserved::silent(error.to_string());
        stream.writer.send(&reply, &[]).await.map_err(failed)?;
        stream.writer.finish().await.map_err(failed)?;
        // The answer must be there before the connection closes.
        let _ = tokio::time::timeout(FIRST_FRAME_DEADLINE, stream.writer.delivered()).await;
        Ok(())
    };
    match answered.await {
        Ok(()) => connection.close(0, "answered"),
        Err(unserved) => unserved.end(connection, "join"),
    }
}

async fn first_stream(connection: &Connection) -> Result<(Purpose, Stream), Unserved> {
    let opened = tokio::time::timeout(FIRST_FRAME_DEADLINE, async {
        match connection.accept_stream().await {
            Ok(Some(stream)) => first_frame(stream).await,
            Ok(None) => Err(Unserved::silent("the connection ended before it said what it is for")),
            Err(error) => Err(Unserved::silent(error.to_string())),
        }
    });
    opened.await.unwrap_or_else(|_| Err(Unserved::silent("no hello came")))
}

async fn first_frame(mut stream: Stream) -> Result<(Purpose, Stream), Unserved> {
    let frame = match stream.reader.next().await {
        Ok(Some(frame)) => frame,
        Ok(None) => return Err(Unserved::silent("a stream ended before it said what it is for")),
        Err(error @ (ReadError::Reset { .. } | ReadError::Connection(_) | ReadError::Closed)) => {
            return Err(Unserved::silent(error.to_string()));
        }
        Err(error) => return Err(refused(error.to_string()).into()),
    };
    let purpose = frame.message::<PeerOpen>().ok().and_then(|open| open.purpose);
    Ok((purpose.ok_or_else(|| refused("the first frame of a stream says what the stream is for"))?, stream))
}

async fn services(peers: &Peers) -> Result<Arc<PeerServices>, Error> {
    let mut services = peers.0.services.subscribe();
    let waiting = services.wait_for(Option::is_some);
    match tokio::time::timeout(START_PATIENCE, waiting).await {
        Ok(Ok(services)) => services.clone().ok_or_else(not_yet),
        _ => Err(not_yet()),
    }
}

/// Serves what a broker asks, in the life that it said it is in.
async fn serve_streams(peers: &Peers, connection: &Connection, from: (BrokerId, u32)) {
    let (broker, _) = from;
    let mut streams = JoinSet::new();
    loop {
        tokio::select! {
            accepted = connection.accept_stream() => match accepted {
                // How many there may be at once QUIC itself bounds (`PeerLimits`).
                Ok(Some(stream)) => {
                    streams.spawn(serve_stream(peers.clone(), from, stream));
                }
                Ok(None) => break,
                Err(error) => {
                    tracing::debug!(%broker, %error, "a broker's connection broke off");
                    break;
                }
            },
            Some(ended) = streams.join_next(), if !streams.is_empty() => {
                if let Err(error) = ended && error.is_panic() {
                    metrics::counter!("tidemill_stream_panics_total").increment(1);
                    tracing::error!(%broker, %error, "the task of a broker's stream panicked; only that stream ended");
                }
            }
        }
    }
    streams.shutdown().await;
}

/// What a stream is for, with what it takes to serve it.
enum Ready {
    Replica(Replica, NodeId),
    Client(Arc<Context>, ForwardOpen),
    Component(Arc<Context>, ComponentOpen),
    Keep(Arc<Context>, ComponentOpen),
    Replace(Arc<PeerServices>, ShardId, NodeId),
    Attempt(Arc<Context>, AttemptOpen),
    Held(Arc<Context>, HeldOpen),
    Status(Arc<Context>),
    Disk(Arc<Context>),
    Segment(Arc<Context>, SegmentOpen),
}

async fn serve_stream(peers: Peers, (broker, incarnation): (BrokerId, u32), stream: Stream) {
    let opened = tokio::time::timeout(FIRST_FRAME_DEADLINE, first_frame(stream)).await;
    let (purpose, mut stream) = match opened {
        Ok(Ok(opened)) => opened,
        // Whoever stops, or has no replica of a shard yet, lets go of what was opened for it: nobody is refused.
        Ok(Err(Unserved::Silent(error))) => {
            let why = error.message;
            return tracing::debug!(%broker, why, "a broker let go of a stream before it said what it is for");
        }
        Ok(Err(Unserved::Refused(error))) => return refusals::stream(&broker, &error),
        Err(_) => return tracing::debug!(%broker, "a broker opened a stream, and nothing came on it"),
    };
    match ready(&peers, broker, purpose).await {
        Ok(Ready::Replica(replica, from)) => replica.serve_peer(from, replicas::stream(stream)).await,
        Ok(Ready::Client(context, open)) => {
            crate::cluster::serve_forwarded(context, broker, open, stream).await
        }
        Ok(Ready::Component(context, open)) => crate::components::serve(&context, &open, stream).await,
        Ok(Ready::Keep(context, open)) => crate::components::keep(&context, broker, &open, stream).await,
        Ok(Ready::Replace(services, shard, old)) => {
            let reply = match replacement(&services, incarnation, shard, old).await {
                Ok(node) => ReplaceReply { error: None, node: node.get() },
                Err(error) => ReplaceReply { error: Some(error), node: 0 },
            };
            answer(stream, &reply).await;
        }
        Ok(Ready::Attempt(context, open)) => {
            answer(stream, &crate::handlers::routed::remembered(&context, &open).await).await;
        }
        Ok(Ready::Disk(context)) => disks::tell(&context, stream).await,
        Ok(Ready::Held(context, open)) => {
            answer(stream, &crate::adopter::held_here(&context, &open).await).await;
        }
        Ok(Ready::Status(context)) => answer(stream, &crate::handlers::status::own(&context)).await,
        Ok(Ready::Segment(context, open)) => crate::repair::serve(&context, &open, stream).await,
        Err(error) => {
            tracing::debug!(%broker, %error, "a broker's stream is refused");
            stream.reader.stop(error.code);
            stream.writer.reset(error.code);
        }
    }
}

async fn answer(mut stream: Stream, answer: &impl prost::Message) {
    if stream.writer.send(answer, &[]).await.is_ok() {
        let _ = stream.writer.finish().await;
    }
}

async fn ready(peers: &Peers, broker: BrokerId, purpose: Purpose) -> Result<Ready, Error> {
    let services = services(peers).await?;
    Ok(match purpose {
        Purpose::Raft(open) => {
            Ready::Replica(asked_for(&services, broker, &open).await?, NodeId::from_raw(open.from))
        }
        Purpose::Forward(open) => Ready::Client(services.context().await?, open),
        Purpose::Component(open) => Ready::Component(services.context().await?, open),
        Purpose::Keep(open) => Ready::Keep(services.context().await?, open),
        Purpose::Replace(open) => {
            let old = NodeId::from_raw(open.node);
            if old.broker() != broker {
                return Err(refused("it speaks for another broker's replica"));
            }
            let shard = u16::try_from(open.shard).map_err(|_| refused("there is no such shard"))?;
            Ready::Replace(services, ShardId::new(shard), old)
        }
        Purpose::Attempt(open) => Ready::Attempt(services.context().await?, open),
        Purpose::Held(open) => Ready::Held(services.context().await?, open),
        Purpose::Status(_) => Ready::Status(services.context().await?),
        Purpose::Disk(_) => Ready::Disk(services.context().await?),
        Purpose::Segment(open) => Ready::Segment(services.context().await?, open),
        Purpose::Hello(_) | Purpose::Join(_) => {
            return Err(Error::new(ErrorCode::UnexpectedStream, "a connection has said its hello already"));
        }
    })
}

/// The id under which a replica of another broker comes back. Only the life of the broker that has its place is told: what is planned where
/// another directory has taken that is the other one's, and two must never live under one id.
async fn replacement(
    services: &PeerServices,
    incarnation: u32,
    shard: ShardId,
    old: NodeId,
) -> Result<NodeId, Error> {
    let node = crate::cluster::losses::replacement(&services.shards, shard, old).await?;
    let controller = services.shards.controller_now().await.ok_or_else(not_yet)?;
    check_standing(&controller, old.broker(), incarnation)?;
    Ok(node)
}

/// The replica that a stream is for. That it has begun to answer is on the disk when this returns.
async fn asked_for(services: &PeerServices, broker: BrokerId, open: &RaftOpen) -> Result<Replica, Error> {
    let shard = u16::try_from(open.shard).map(ShardId::new).map_err(|_| refused("there is no such shard"))?;
    if NodeId::from_raw(open.from).broker() != broker {
        return Err(refused("it speaks for another broker's replica"));
    }
    let (mine, asked) = (services.lives.node(shard), NodeId::from_raw(open.to));
    if asked != mine {
        services.lives.note_asked_for(shard, asked);
        return Err(refused(format!("replica {asked} of shard {shard} is asked for, and {mine} lives here")));
    }
    let replica = services.shards.replica(shard).filter(|replica| replica.node() == asked);
    let replica = replica.ok_or_else(not_yet)?;
    if !services.lives.has_begun(shard) {
        let lives = Arc::clone(&services.lives);
        let begun = tokio::task::spawn_blocking(move || lives.begin(shard, asked)).await;
        begun
            .map_err(|_| not_yet())?
            .map_err(|error| Error::new(ErrorCode::StorageFailed, error.to_string()))?;
    }
    Ok(replica)
}

#[cfg(test)]
mod tests {
    use tidemill_controller::{ClusterIdentity, ControllerCommand, Durability, JoinRequest};
    use tidemill_protocol::{ClusterId, DirectoryId, Timestamp};
    use uuid::Uuid;

    use super::*;

    const NOW: Timestamp = Timestamp::new(1_700_000_000_000);

    fn apply(controller: &mut Controller, command: &ControllerCommand) {
        controller.apply(command, NOW).expect("it is taken");
    }

    /// Lets broker 4 in, with a token and a directory that are both called by this number.
    fn let_in(controller: &mut Controller, number: u8) {
        let (hash, broker) = ([number; 32], BrokerId::new(4));
        let expires_at = NOW.plus_ms(1_000);
        apply(controller, &ControllerCommand::CreateJoinToken { hash, broker: Some(broker), expires_at });
        let join = JoinRequest {
            hash,
            broker,
            directory: DirectoryId::new(Uuid::from_u128(number.into())),
            addresses: Vec::new(),
            peer_addresses: Vec::new(),
            rack: String::new(),
        };
        apply(controller, &ControllerCommand::Join(join));
    }

    #[test]
    fn a_life_that_was_removed_stays_so_and_the_next_one_is_another() {
        let (four, stranger) = (BrokerId::new(4), BrokerId::new(9));
        let mut controller = Controller::default();
        assert!(!is_removed(&controller, four, 1) && check_standing(&controller, four, 1).is_ok());
        let cluster = ClusterId::new(Uuid::from_u128(7));
        let identity = ClusterIdentity { cluster, data_shards: 1, durability: Durability::Fsync };
        let brokers = (1..=3).map(BrokerId::new).collect();
        apply(&mut controller, &ControllerCommand::FormCluster { identity, brokers });
        let_in(&mut controller, 1);
        assert!(!is_removed(&controller, four, 1) && check_standing(&controller, four, 1).is_ok());

        apply(&mut controller, &ControllerCommand::Remove { broker: four });
        assert!(is_removed(&controller, four, 1));
        let refused = check_standing(&controller, four, 1).expect_err("it was removed");
        assert!(refused.message.contains("was removed from the cluster"), "{refused}");
        // A broker that has not heard yet of its being let in again does not stand in its way.
        assert!(!is_removed(&controller, four, 2) && check_standing(&controller, four, 2).is_ok());

        let_in(&mut controller, 2);
        // Whoever has heard of it and not met it yet looks for it where it was before.
        assert!(!is_removed(&controller, four, 1) && !is_removed(&controller, four, 2));
        let said = check_standing(&controller, four, 1).expect_err("an older life").message;
        assert!(said.contains("another life (incarnation 2)") && said.contains("--broker 4`"), "{said}");
        assert!(!is_removed(&controller, stranger, 1), "of whom nothing was heard nobody was removed");
    }
}
