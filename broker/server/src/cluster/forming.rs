//! What a broker says while the cluster that it founds is not formed: that takes a majority of the founders.

use std::sync::Arc;
use std::time::Duration;

use tidemill_protocol::messages::Error;
use tidemill_protocol::{BrokerId, ErrorCode};
use tokio::time::Instant;

use super::majority;
use crate::context::Context;

/// Founders that are started together find each other within this time, and nothing needs to be said.
const FIRST_PATIENCE: Duration = Duration::from_secs(2);
/// That others are waited for is told again after this long.
const TELL_INTERVAL: Duration = Duration::from_secs(30);

/// Refuses what needs the controller while there is none yet: at once, so that whoever asks hears who is missing.
///
/// # Errors
/// [`ErrorCode::NotYetAdopted`], which may be asked again.
pub(crate) fn check(context: &Context) -> Result<(), Error> {
    if !waits(context) {
        return Ok(());
    }
    let (me, why) = (context.meta.broker_id, why(context));
    let reason = format!("as far as broker {me} has heard, the cluster is not formed yet: {why}");
    Err(Error::new(ErrorCode::NotYetAdopted, reason))
}

/// What is at risk before there is a cluster, for its status.
pub(crate) fn risk(context: &Context) -> String {
    let why = match waits(context) {
        true => why(context),
        // It was taken in, and has not heard from those who did.
        false => "a majority of its brokers must have started".to_owned(),
    };
    format!("the cluster is still being formed: {why}")
}

/// Who is waited for, as people name them, and what for: founders, or who makes up a majority of a cluster that was formed. `None` where the
/// cluster can decide, or is about to. Where it can't, that takes a moment to say: others may be starting.
pub(crate) async fn awaited(context: &Context) -> Option<String> {
    let mut view = context.view.clone();
    let formed = async {
        while waits(context) {
            if view.changed().await.is_none() {
                return;
            }
        }
    };
    if tokio::time::timeout(FIRST_PATIENCE, formed).await.is_ok() {
        return majority::awaited(context, FIRST_PATIENCE).await;
    }
    let missing = missing(context);
    // A majority is together: it is about to form the cluster.
    let is_majority_missing = 2 * missing.len() >= context.meta.forming.len();
    is_majority_missing.then(|| format!("{} to form the cluster", names(&missing)))
}

fn why(context: &Context) -> String {
    match missing(context).as_slice() {
        [] => "its brokers are connected, and about to form it; try again in a moment".to_owned(),
        missing => format!(
            "it takes a majority of its {} first brokers, and {} not connected to this one; start what is missing, or see in this broker's \
             log why it is not reached",
            context.meta.forming.len(),
            are(missing),
        ),
    }
}

/// Tells in the log who is waited for, until the cluster is formed.
pub(crate) async fn tell(context: Arc<Context>) {
    let mut view = context.view.clone();
    let mut next = Instant::now() + FIRST_PATIENCE;
    let mut has_told = false;
    while waits(&context) {
        tokio::select! {
            changed = view.changed() => if changed.is_none() { return },
            () = tokio::time::sleep_until(next) => {
                next = Instant::now() + TELL_INTERVAL;
                has_told = true;
                tell_once(&context);
            }
            () = context.stopping.cancelled() => return,
        }
    }
    if has_told {
        tracing::info!("the cluster is formed");
    }
}

fn tell_once(context: &Context) {
    let missing = missing(context);
    if missing.is_empty() {
        tracing::info!("waiting for the first election, which forms the cluster");
        return;
    }
    let (names, seeds) = (names(&missing), context.config.peers.seeds.join(", "));
    let troubles = context.peers.as_ref().map(|peers| peers.troubles(&missing)).unwrap_or_default();
    if troubles.is_empty() {
        tracing::info!(seeds, "waiting for {names} to form the cluster");
    } else {
        tracing::warn!(seeds, troubles = troubles.join("; "), "waiting for {names} to form the cluster");
    }
}

/// Whether this broker is to form a cluster with others, holds a replica of its controller, and knows of no cluster there yet.
fn waits(context: &Context) -> bool {
    let meta = &context.meta;
    meta.forming.iter().any(|broker| broker.get() != meta.broker_id)
        && context.shards.controller().is_some()
        && context.view.now().controller().identity().is_none()
}

/// The other founders that this broker has no connection to.
fn missing(context: &Context) -> Vec<BrokerId> {
    let reached = context.reached();
    let mut others = context.meta.forming.clone();
    others.retain(|broker| !reached.contains(broker));
    others
}

/// `brokers 2, 3 and 4`
pub(super) fn names(brokers: &[BrokerId]) -> String {
    let (last, before) = match brokers {
        [] => return "no broker".to_owned(),
        [one] => return format!("broker {one}"),
        [before @ .., last] => (last, before),
    };
    let before: Vec<String> = before.iter().map(ToString::to_string).collect();
    format!("brokers {} and {last}", before.join(", "))
}

fn are(brokers: &[BrokerId]) -> String {
    format!("{} {}", names(brokers), if brokers.len() == 1 { "is" } else { "are" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brokers_are_named_as_people_do() {
        let named = |brokers: &[u32]| {
            let brokers: Vec<BrokerId> = brokers.iter().copied().map(BrokerId::new).collect();
            are(&brokers)
        };
        assert_eq!(named(&[2]), "broker 2 is");
        assert_eq!(named(&[2, 3]), "brokers 2 and 3 are");
        assert_eq!(named(&[2, 3, 4]), "brokers 2, 3 and 4 are");
    }
}
