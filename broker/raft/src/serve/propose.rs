//! Units that other brokers propose here, because this replica leads or they think so.

use std::collections::VecDeque;
use std::pin::pin;

use futures::future::{Fuse, FusedFuture, FutureExt};
use futures::stream::{FuturesUnordered, StreamExt};
use tidemill_protocol::NodeId;
use tidemill_shard::{Unit, UnitResult};

use crate::error::ProposeError;
use crate::peers::{MessageReceiver, MessageSender, PeerError};
use crate::pending::Pending;
use crate::replica::Replica;
use crate::rpc::{Answer, Request};

/// The most units of one stream that are not answered yet.
pub(crate) const PROPOSALS_IN_FLIGHT_MAX: usize = 256;

/// A unit's tag, its bytes, and what became of it.
type Done = (u64, usize, Result<UnitResult, ProposeError>);

/// Serves a stream of proposals, whose first one was read. Units are queued in the order in which they come, each after the one before it
/// has found room or was refused; answers come in the order in which they are applied.
pub(super) async fn serve(
    replica: &Replica,
    from: NodeId,
    first: (u64, Unit),
    mut sender: Box<dyn MessageSender>,
    mut receiver: Box<dyn MessageReceiver>,
) -> Result<(), PeerError> {
    let inner = replica.inner();
    let bytes_max = inner.limits.append_in_flight_bytes_max;
    let mut bytes = first.1.bytes();
    let mut waiting = VecDeque::from([first]);
    let mut entering = pin!(Fuse::terminated());
    let mut flying = FuturesUnordered::new();
    let (mut open, mut refusal) = (true, None);
    while open || !flying.is_empty() || !waiting.is_empty() || !entering.is_terminated() {
        if entering.is_terminated()
            && let Some((tag, unit)) = waiting.pop_front()
        {
            entering.set(enter(replica, tag, unit).fuse());
        }
        let here = flying.len() + waiting.len() + usize::from(!entering.is_terminated());
        let room = open && here < PROPOSALS_IN_FLIGHT_MAX && (bytes < bytes_max || bytes == 0);
        // Answers first: those in flight are bounded, and more are taken in once they are fewer.
        tokio::select! {
            biased;
            Some((tag, done, outcome)) = flying.next() => {
                bytes -= done;
                let (head, body) = Answer::Proposed { tag, outcome }.encode();
                sender.send(head, &body).await?;
            }
            (tag, bytes, entered) = &mut entering, if !entering.is_terminated() => {
                flying.push(outcome(tag, bytes, entered));
            }
            message = receiver.next(), if room => match message? {
                None => open = false,
                Some(message) => match super::asked(inner, from, &message) {
                    Ok(Request::Propose { tag, unit }) => {
                        bytes += unit.bytes();
                        waiting.push_back((tag, *unit));
                    }
                    Ok(_) => (open, refusal) = (false, Some("a stream of proposals has nothing else".to_owned())),
                    Err(reason) => (open, refusal) = (false, Some(reason)),
                },
            },
        }
    }
    match refusal {
        Some(reason) => super::refuse(sender, reason).await,
        None => sender.finish().await,
    }
}

/// Queues a unit as if it had come to this broker first, and its room with it: whoever brought it may not wait for the answer.
async fn enter(replica: &Replica, tag: u64, unit: Unit) -> (u64, usize, Result<Pending, ProposeError>) {
    let bytes = unit.bytes();
    let entering = async {
        let held = match &replica.inner().gate {
            // Who does not lead says so first: whether there is room is the leader's to know.
            Some(gate) if replica.watch().borrow().is_leader() => Some(gate.admit(replica, &unit).await?),
            _ => None,
        };
        replica.queue(unit, held).await
    };
    (tag, bytes, entering.await)
}

async fn outcome(tag: u64, bytes: usize, entered: Result<Pending, ProposeError>) -> Done {
    let outcome = match entered {
        Ok(answer) => answer.await,
        Err(error) => Err(error),
    };
    (tag, bytes, outcome)
}
