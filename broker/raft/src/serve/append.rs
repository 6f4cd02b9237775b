//! Entries from a leader, and its heartbeats.

use std::pin::pin;
use std::sync::Arc;

use futures::{Stream, StreamExt, stream};
use openraft::raft::{AppendEntriesRequest, StreamAppendError};
use parking_lot::Mutex;
use tidemill_protocol::NodeId;
use tokio::sync::oneshot;

use crate::peers::{MessageReceiver, MessageSender, PeerError};
use crate::replica::Inner;
use crate::rpc::{Answer, Request};
use crate::state_machine::Machine;
use crate::types::TypeConfig;
use crate::window::Window;

type Append = (AppendEntriesRequest<TypeConfig>, usize);

/// Serves a stream of appends, whose first one was read.
pub(super) async fn serve(
    inner: &Arc<Inner>,
    from: NodeId,
    first: Append,
    mut sender: Box<dyn MessageSender>,
    receiver: Box<dyn MessageReceiver>,
) -> Result<(), PeerError> {
    let window = Window::new(inner.limits.append_in_flight_bytes_max);
    let failed = Arc::new(Mutex::new(None));
    let intake = Intake {
        checks: Checks { inner: Arc::downgrade(inner), from },
        machine: Arc::clone(&inner.machine),
        first: Some(first),
        receiver,
        window: Arc::clone(&window),
        failed: Arc::clone(&failed),
    };
    // openraft reads the requests in a task of its own, which is to end with this.
    let (_end, ended) = oneshot::channel::<()>();
    let mut answers = pin!(inner.raft.stream_append(intake.requests().take_until(ended)));
    while let Some(appended) = answers.next().await {
        window.answered();
        let answer = match appended {
            Ok(Ok(upto)) => Answer::Appended(upto),
            Ok(Err(StreamAppendError::Conflict(missing))) => Answer::Conflict(missing),
            Ok(Err(StreamAppendError::HigherVote(vote))) => Answer::HigherVote(vote),
            Err(fatal) => Answer::Refused(fatal.to_string()),
        };
        let goes_on = matches!(answer, Answer::Appended(_));
        if goes_on || matches!(answer, Answer::Conflict(_)) {
            inner.last_word.note();
        }
        let (head, body) = answer.encode();
        sender.send(head, &body).await?;
        if !goes_on {
            return sender.finish().await;
        }
    }
    let failed = failed.lock().take();
    match failed {
        None => sender.finish().await,
        Some(Failed::Broken(error)) => Err(error),
        Some(Failed::Refused(reason)) => {
            tracing::warn!(shard = %inner.shard, %from, reason, "refused what a leader sent");
            super::refuse(sender, reason).await
        }
    }
}

enum Failed {
    Broken(PeerError),
    Refused(String),
}

struct Checks {
    /// What is read ahead does not keep the replica.
    inner: std::sync::Weak<Inner>,
    from: NodeId,
}

/// What the leader sends, as far as there is room for it.
struct Intake {
    checks: Checks,
    machine: Arc<Machine>,
    first: Option<Append>,
    receiver: Box<dyn MessageReceiver>,
    window: Arc<Window<()>>,
    failed: Arc<Mutex<Option<Failed>>>,
}

impl Intake {
    fn requests(self) -> impl Stream<Item = AppendEntriesRequest<TypeConfig>> + Send {
        stream::unfold(self, |mut intake| async move {
            let (append, bytes) = match intake.first.take() {
                Some(first) => first,
                None => match intake.receive().await {
                    Ok(more) => more?,
                    Err(failed) => {
                        *intake.failed.lock() = Some(failed);
                        return None;
                    }
                },
            };
            intake.window.admit(|| (), bytes).await;
            if !append.entries.is_empty() {
                intake.machine.room_to_append().await;
            }
            Some((append, intake))
        })
    }

    async fn receive(&mut self) -> Result<Option<Append>, Failed> {
        let Some(message) = self.receiver.next().await.map_err(Failed::Broken)? else { return Ok(None) };
        let Some(inner) = self.checks.inner.upgrade() else { return Ok(None) };
        match super::asked(&inner, self.checks.from, &message).map_err(Failed::Refused)? {
            Request::Append { append, bytes } => Ok(Some((append, bytes))),
            _ => Err(Failed::Refused("a stream of appends has nothing else".to_owned())),
        }
    }
}
