//! Units that other brokers propose here, because this replica leads or they think so.

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tidemill_protocol::NodeId;
use tidemill_shard::{Unit, UnitResult};

use crate::error::ProposeError;
use crate::peers::{MessageReceiver, MessageSender, PeerError};
use crate::replica::Replica;
use crate::rpc::{Answer, Request};

/// The most units of one stream that are not answered yet.
pub(crate) const PROPOSALS_IN_FLIGHT_MAX: usize = 256;

/// Serves a stream of proposals, whose first one was read. Answers come in the order in which units are applied.
pub(super) async fn serve(
    replica: &Replica,
    from: NodeId,
    first: (u64, Unit),
    mut sender: Box<dyn MessageSender>,
    mut receiver: Box<dyn MessageReceiver>,
) -> Result<(), PeerError> {
    let inner = replica.inner();
    let bytes_max = inner.limits.append_in_flight_bytes_max;
    let propose = |(tag, unit): (u64, Unit)| {
        let bytes = unit.bytes();
        async move { (tag, bytes, admitted(replica, unit).await) }
    };
    let mut bytes = first.1.bytes();
    let mut flying = FuturesUnordered::from_iter([propose(first)]);
    let (mut open, mut refusal) = (true, None);
    while open || !flying.is_empty() {
        let room = open && flying.len() < PROPOSALS_IN_FLIGHT_MAX && (bytes < bytes_max || flying.is_empty());
        // Answers first: those in flight are bounded, and more are taken in once they are fewer.
        tokio::select! {
            biased;
            Some((tag, done, outcome)) = flying.next() => {
                bytes -= done;
                let (head, body) = Answer::Proposed { tag, outcome }.encode();
                sender.send(head, &body).await?;
            }
            message = receiver.next(), if room => match message? {
                None => open = false,
                Some(message) => match super::asked(inner, from, &message) {
                    Ok(Request::Propose { tag, unit }) => {
                        bytes += unit.bytes();
                        flying.push(propose((tag, *unit)));
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

/// Proposes a unit as if it had come to this broker first.
async fn admitted(replica: &Replica, unit: Unit) -> Result<UnitResult, ProposeError> {
    let _held = match &replica.inner().gate {
        // Who does not lead says so first: whether there is room is the leader's to know.
        Some(gate) if replica.watch().borrow().is_leader() => Some(gate.admit(replica, &unit).await?),
        _ => None,
    };
    replica.propose(unit).await
}
