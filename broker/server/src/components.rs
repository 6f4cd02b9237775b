//! Components of plugins on this broker: those that are registered come here from the other brokers, and those that no plugin version and no
//! deployment names any more go from the disk, with what was compiled of them.
//!
//! An upload is registered when a majority of the brokers keep its component: it outlives the broker that took it in.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::{FuturesUnordered, unfold};
use tidemill_controller::Controller;
use tidemill_hosting::{
    ComponentError, ComponentHold, Filter, OpenError, Partitioner, PluginPlan, PluginProblem,
};
use tidemill_net::Stream;
use tidemill_protocol::messages::{Error, PayloadChunk};
use tidemill_protocol::{BrokerId, ErrorCode};
use tidemill_raft::Replica;
use tokio::time::Instant;

use crate::context::Context;
use crate::errors;
use crate::peers::messages::{ComponentOpen, ComponentReply, Purpose};
use crate::peers::{Peers, first_answer};

mod kept;
mod pieces;
mod resting;

pub(crate) use kept::{Kept, Registering};
use pieces::{PIECE_BYTES, gather};
use resting::Resting;

/// Looked at unasked: for uploads that were never registered.
const LOOK_INTERVAL: Duration = Duration::from_secs(300);

/// Looks at the start, whenever a digest is not named any more, and now and then.
pub(crate) async fn follow(context: Arc<Context>) {
    let mut view = context.view.clone();
    let mut before: Option<HashSet<[u8; 32]>> = None;
    let mut due = true;
    // Outside of the loop: in a busy cluster the view changes more often than that.
    let mut next_look = Instant::now() + LOOK_INTERVAL;
    loop {
        let now = named(view.now().controller());
        due |= context.kept.look(&now);
        if due || before.is_none_or(|before| !before.is_subset(&now)) {
            let_go(&context).await;
        }
        before = Some(now);
        due = tokio::select! {
            changed = view.changed() => {
                if changed.is_none() {
                    return;
                }
                false
            }
            () = tokio::time::sleep_until(next_look) => {
                next_look = Instant::now() + LOOK_INTERVAL;
                true
            }
            () = context.stopping.cancelled() => return,
        };
    }
}

async fn let_go(context: &Context) {
    let Some(controller) = context.shards.controller() else { return };
    // What is registered must be known as of now: a component must not go because the registry is behind.
    if controller.read_barrier().await.is_err() {
        return;
    }
    match context.hosting.let_go(move || registered(&controller)).await {
        Ok(0) => {}
        Ok(components) => tracing::info!(components, "components that nothing names any more are removed"),
        Err(error) => tracing::warn!(%error, "a component that nothing names any more could not be removed"),
    }
}

fn registered(controller: &Replica) -> Option<HashSet<[u8; 32]>> {
    controller.shard().controller().map(|controller| named(&controller))
}

/// The digests of all versions, and of all deployments, those included that a retry may still need.
fn named(controller: &Controller) -> HashSet<[u8; 32]> {
    let versions = controller.plugins().map(|plugin| plugin.digest);
    versions.chain(controller.deployments().map(|deployment| deployment.digest)).collect()
}

/// Keeps the component of an upload until it is known what came of its registration, or for long enough.
pub(crate) fn registering(context: &Context, digest: [u8; 32], hold: ComponentHold) -> Registering {
    let was_named = is_named(context, &digest);
    Registering { kept: Arc::clone(&context.kept), digest, was_named, hold: Some(hold) }
}

/// Whether something names a component, as far as this broker has heard.
fn is_named(context: &Context, digest: &[u8; 32]) -> bool {
    named(context.view.now().controller()).contains(digest)
}

/// For one component to come from another broker, or to be kept by it: it is compiled there.
const TRAVEL_DEADLINE: Duration = Duration::from_secs(180);
/// For the first word of a broker that is asked for a component: it may be starting, and reads all of it before.
const ANSWER_PATIENCE: Duration = Duration::from_secs(30);
/// How long an upload waits for brokers beyond the majority.
const REST_PATIENCE: Duration = Duration::from_secs(15);
/// A registered component that nobody had is looked for again after this long.
const FETCH_INTERVAL: Duration = Duration::from_secs(2);

/// Fetches what is registered and not here, whenever there is such a thing.
pub(crate) async fn fetch_missing(context: Arc<Context>) {
    let Some(peers) = context.peers.clone() else { return };
    let mut view = context.view.clone();
    let mut here: HashSet<[u8; 32]> = HashSet::new();
    let mut resting = Resting::default();
    loop {
        let mut missing = false;
        for digest in named(view.now().controller()) {
            if here.contains(&digest) || resting.rests(&digest) {
                continue;
            }
            match ensure(&context, &peers, digest, &peers.connected()).await {
                Ok(()) => {
                    resting.end(&digest);
                    here.insert(digest);
                }
                Err(error @ Absence::Refused(_)) => {
                    resting.begin(digest);
                    tracing::warn!(%error, "a plugin's component can't be kept or used on this broker");
                }
                Err(error) => {
                    missing = true;
                    tracing::debug!(%error, "a plugin's component is not here yet");
                }
            }
        }
        let pause = if missing { Some(FETCH_INTERVAL) } else { resting.left() };
        tokio::select! {
            changed = view.changed() => {
                if changed.is_none() {
                    return;
                }
                let now = named(view.now().controller());
                here.retain(|digest| now.contains(digest));
                resting.retain(&now);
            }
            () = tokio::time::sleep(pause.unwrap_or_default()), if pause.is_some() => {}
            () = context.stopping.cancelled() => return,
        }
    }
}

/// Has a component kept by as many brokers as make a majority, this one included, and waits a while for the others: whichever is asked for the
/// plugin next has it.
pub(crate) async fn spread(context: &Arc<Context>, digest: [u8; 32]) -> Result<(), Error> {
    let Some(peers) = &context.peers else { return Ok(()) };
    let view = context.view.now();
    let me = BrokerId::new(context.meta.broker_id);
    let all: Vec<BrokerId> =
        view.controller().brokers().filter(|record| record.is_member()).map(|record| record.broker).collect();
    let majority = all.len() / 2 + 1;
    let mut kept = usize::from(all.contains(&me));
    let mut asked: FuturesUnordered<_> = all
        .iter()
        .filter(|broker| **broker != me)
        .map(|broker| async move {
            let kept = tokio::time::timeout(TRAVEL_DEADLINE, keep_there(peers, *broker, digest)).await;
            kept.unwrap_or_else(|_| Err("no answer in time".to_owned())).map_err(|reason| (*broker, reason))
        })
        .collect();
    let mut troubles = Vec::new();
    while kept < majority {
        match asked.next().await {
            Some(Ok(())) => kept += 1,
            Some(Err((broker, reason))) => troubles.push(format!("broker {broker}: {reason}")),
            None => {
                let message = format!(
                    "the component is kept by {kept} of {} brokers, and a majority must; upload it again when more of them are there ({})",
                    all.len(),
                    troubles.join("; ")
                );
                return Err(Error::new(ErrorCode::NoQuorum, message));
            }
        }
    }
    let rest = async { while asked.next().await.is_some() {} };
    let _ = tokio::time::timeout(REST_PATIENCE, rest).await;
    Ok(())
}

async fn keep_there(peers: &Peers, broker: BrokerId, digest: [u8; 32]) -> Result<(), String> {
    let open = ComponentOpen { digest: Bytes::copy_from_slice(&digest) };
    let asked = peers.ask(broker, Purpose::Keep(open)).await;
    let reply: ComponentReply = asked.map_err(|error| error.reason)?;
    reply.error.map_or(Ok(()), |error| Err(error.message))
}

/// Keeps a component that another broker asks to be kept, and says when it is.
pub(crate) async fn keep(context: &Arc<Context>, from: BrokerId, open: &ComponentOpen, mut stream: Stream) {
    let error = match (<[u8; 32]>::try_from(open.digest.as_ref()), &context.peers) {
        (Ok(digest), Some(peers)) => match context.hosting.hold(digest).await {
            Ok(hold) => {
                let was_named = is_named(context, &digest);
                match ensure(context, peers, digest, &[from]).await {
                    Ok(()) => {
                        // Until it is registered.
                        context.kept.keep(digest, hold, was_named);
                        None
                    }
                    Err(Absence::Refused(error)) => Some(error),
                    Err(absence) => Some(Error::new(ErrorCode::UnknownPlugin, absence.to_string())),
                }
            }
            Err(_) => Some(errors::stopping()),
        },
        _ => Some(errors::bad_message("a component's digest has 32 bytes")),
    };
    if stream.writer.send(&ComponentReply { error, size: 0 }, &[]).await.is_ok() {
        let _ = stream.writer.finish().await;
    }
}

/// How long whoever wants to use a plugin waits for its component to come.
const USE_PATIENCE: Duration = Duration::from_secs(10);

/// Opens a filter. A component that is registered and not here yet, as on a broker that has just joined, is fetched first. Where another
/// broker can serve whoever asks, [`elsewhere`] says so of what comes back.
pub(crate) async fn filter(context: &Context, plan: &PluginPlan) -> Result<Filter, Error> {
    match context.hosting.filter(plan).await {
        Ok(filter) => return Ok(filter),
        Err(error) => bring(context, plan, &error).await?,
    }
    context.hosting.filter(plan).await.map_err(|error| errors::open_plugin(&error))
}

/// Opens a partitioner, as [`filter`] does a filter.
pub(crate) async fn partitioner(context: &Context, plan: &PluginPlan) -> Result<Partitioner, Error> {
    match context.hosting.partitioner(plan).await {
        Ok(partitioner) => return Ok(partitioner),
        Err(error) => bring(context, plan, &error).await?,
    }
    context.hosting.partitioner(plan).await.map_err(|error| errors::open_plugin(&error))
}

/// Lets a plugin look at its configuration, as [`filter`] opens a filter.
pub(crate) async fn validate(context: &Context, plan: &PluginPlan) -> Result<(), Error> {
    match context.hosting.validate(plan).await {
        Ok(()) => return Ok(()),
        Err(error) => bring(context, plan, &error).await?,
    }
    context.hosting.validate(plan).await.map_err(|error| errors::open_plugin(&error))
}

/// Brings the component here for want of which a plugin could not be opened.
async fn bring(context: &Context, plan: &PluginPlan, error: &OpenError) -> Result<(), Error> {
    let Some(peers) = context.peers.as_ref() else { return Err(errors::open_plugin(error)) };
    if error.problem() != PluginProblem::Missing {
        return Err(errors::open_plugin(error));
    }
    let connected = peers.connected();
    let ensured = ensure(context, peers, plan.digest, &connected);
    match tokio::time::timeout(USE_PATIENCE, ensured).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(Absence::Nowhere(_))) if others(context).all(|broker| connected.contains(&broker)) => {
            Err(errors::open_plugin(error))
        }
        Ok(Err(Absence::Refused(reason))) => Err(reason),
        Ok(Err(absence)) => Err(errors::component_to_come(error, &absence.to_string())),
        Err(_) => Err(errors::component_to_come(error, "it is still on its way here")),
    }
}

/// A failure of this broker's storage is none of the others': where there are such, whoever was refused tries them. Not for what only this
/// broker can do, as taking batches for a partition that it leads.
pub(crate) fn elsewhere(context: &Context, error: Error) -> Error {
    let may_pass = error.error_code() == Some(ErrorCode::StorageFailed) && others(context).next().is_some();
    Error { retriable: error.retriable || may_pass, ..error }
}

/// The members of the cluster but this one.
fn others(context: &Context) -> impl Iterator<Item = BrokerId> {
    let me = BrokerId::new(context.meta.broker_id);
    let view = context.view.now();
    let members = view.controller().brokers().filter(|record| record.is_member() && record.broker != me);
    members.map(|record| record.broker).collect::<Vec<_>>().into_iter()
}

/// Why a component did not come here.
#[derive(Debug, thiserror::Error)]
enum Absence {
    /// Each broker that was asked says so of itself.
    #[error("{0}")]
    Nowhere(String),
    /// At least one that was asked did not say.
    #[error("{0}")]
    Unknown(String),
    /// This broker can't keep it, or not use it, whoever has it.
    #[error("{}", .0.message)]
    Refused(Error),
}

/// Has a component here: found, or fetched from one of these brokers, checked and compiled.
async fn ensure(
    context: &Context,
    peers: &Peers,
    digest: [u8; 32],
    from: &[BrokerId],
) -> Result<(), Absence> {
    if is_here(context, digest).await? {
        return Ok(());
    }
    let _place = context.fetches.acquire().await.map_err(|_| stopping())?;
    // Whoever had the place may have brought it.
    if is_here(context, digest).await? {
        return Ok(());
    }
    let mut absence = Absence::Nowhere("no broker that has the component is connected".to_owned());
    for broker in from {
        let fetched = tokio::time::timeout(TRAVEL_DEADLINE, fetch(context, peers, *broker, digest)).await;
        let fetched = fetched.unwrap_or_else(|_| Err(Absence::Unknown("no answer in time".to_owned())));
        let component = match fetched {
            Ok(component) => component,
            // What is registered is the same everywhere.
            Err(refused @ Absence::Refused(_)) => return Err(refused),
            Err(next) => {
                absence = absence.and(*broker, &next);
                continue;
            }
        };
        let _compiles = context.compiles.acquire().await.map_err(|_| stopping())?;
        // What came has its digest: another broker's copy would fare the same.
        let checked = context.hosting.check_upload(component).await;
        return checked.map(|_| ()).map_err(|error| Absence::Refused(errors::brought(&error)));
    }
    Err(absence)
}

/// Whether a component is here. What the storage can't read it would hardly keep: nothing is fetched and compiled for that.
async fn is_here(context: &Context, digest: [u8; 32]) -> Result<bool, Absence> {
    match context.hosting.component(digest).await {
        Ok(_) => Ok(true),
        Err(ComponentError::Absent(_)) => Ok(false),
        Err(error @ ComponentError::Storage(_)) => Err(Absence::Refused(errors::component(&error))),
    }
}

fn stopping() -> Absence {
    Absence::Refused(errors::stopping())
}

impl Absence {
    /// Of one more broker: it is nowhere only where all say so.
    fn and(self, broker: BrokerId, next: &Self) -> Self {
        let told = format!("broker {broker}: {next}");
        match (self, next) {
            (Self::Nowhere(_), Self::Nowhere(_)) => Self::Nowhere(told),
            (Self::Nowhere(_), _) => Self::Unknown(told),
            (unknown, _) => unknown,
        }
    }

    fn unknown(reason: impl std::fmt::Display) -> Self {
        Self::Unknown(reason.to_string())
    }
}

async fn fetch(
    context: &Context,
    peers: &Peers,
    broker: BrokerId,
    digest: [u8; 32],
) -> Result<Bytes, Absence> {
    let open = ComponentOpen { digest: Bytes::copy_from_slice(&digest) };
    let opened = peers.open(broker, Purpose::Component(open)).await;
    let mut stream = opened.map_err(Absence::unknown)?;
    let answered = tokio::time::timeout(ANSWER_PATIENCE, first_answer::<ComponentReply>(&mut stream)).await;
    let answered = answered.unwrap_or_else(|_| Err("no answer in time".to_owned()));
    let reply = answered.map_err(Absence::Unknown)?;
    if let Some(error) = reply.error {
        return Err(match error.error_code() {
            Some(ErrorCode::UnknownPlugin) => Absence::Nowhere(error.message),
            _ => Absence::Unknown(error.message),
        });
    }
    let limit = context.config.limits.plugin_bytes_max;
    if reply.size > limit {
        return Err(Absence::Refused(errors::too_large_here(reply.size, limit)));
    }
    let pieces = unfold(&mut stream.reader, |reader| async move {
        let frame = reader.next().await.transpose()?;
        Some((frame.map(|frame| frame.payload), reader))
    });
    let bytes = gather(reply.size, pieces).await?;
    match *blake3::hash(&bytes).as_bytes() == digest {
        true => Ok(bytes),
        false => Err(Absence::unknown("what it sends has another digest")),
    }
}

/// Sends a component to another broker.
pub(crate) async fn serve(context: &Context, open: &ComponentOpen, mut stream: Stream) {
    let found = match <[u8; 32]>::try_from(open.digest.as_ref()) {
        Ok(digest) => context.hosting.component(digest).await.map_err(|error| errors::component(&error)),
        Err(_) => Err(errors::bad_message("a component's digest has 32 bytes")),
    };
    let sending = async {
        let component = match found {
            Ok(component) => component,
            Err(error) => {
                stream.writer.send(&ComponentReply { error: Some(error), size: 0 }, &[]).await?;
                return stream.writer.finish().await;
            }
        };
        stream.writer.send(&ComponentReply { error: None, size: component.len() as u64 }, &[]).await?;
        let mut rest = component;
        while !rest.is_empty() {
            let piece = rest.split_to(rest.len().min(PIECE_BYTES));
            stream.writer.send(&PayloadChunk {}, std::slice::from_ref(&piece)).await?;
        }
        stream.writer.finish().await
    };
    if let Err(error) = sending.await {
        tracing::debug!(%error, "a component was not sent");
    }
}
