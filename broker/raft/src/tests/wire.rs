//! A stream between two replicas, in memory, that a test can watch, cut and falsify.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::mpsc;

use crate::peers::{MessageReceiver, MessageSender, PeerError, PeerMessage, PeerStream};

/// Messages under way in each direction.
const QUEUE: usize = 4;

/// What becomes of a message.
pub(super) enum Fate {
    Pass,
    /// The stream breaks instead.
    Cut,
}

/// Sees every message before it is sent, and may change it.
pub(super) type Tap = Arc<dyn Fn(&mut PeerMessage) -> Fate + Send + Sync>;

/// Leaves everything as it is.
pub(super) fn clear() -> Tap {
    Arc::new(|_| Fate::Pass)
}

/// Both ends; `there` taps what the first sends, `back` what the second does.
pub(super) fn pair(there: Tap, back: Tap) -> (PeerStream, PeerStream) {
    let (to_second, second) = mpsc::channel(QUEUE);
    let (to_first, first) = mpsc::channel(QUEUE);
    let end = |sender, tap, receiver| PeerStream {
        sender: Box::new(Sender { sender: Some(sender), tap }),
        receiver: Box::new(Receiver { receiver, ended: false }),
    };
    (end(to_second, there, first), end(to_first, back, second))
}

struct Sender {
    sender: Option<mpsc::Sender<Option<PeerMessage>>>,
    tap: Tap,
}

struct Receiver {
    receiver: mpsc::Receiver<Option<PeerMessage>>,
    ended: bool,
}

fn broken() -> PeerError {
    PeerError::Broken("cut".to_owned())
}

impl Sender {
    async fn put(&mut self, item: Option<PeerMessage>) -> Result<(), PeerError> {
        let sender = self.sender.as_ref().ok_or_else(broken)?;
        sender.send(item).await.map_err(|_gone| broken())
    }
}

impl MessageSender for Sender {
    fn send<'a>(&'a mut self, head: Bytes, body: &'a [Bytes]) -> BoxFuture<'a, Result<(), PeerError>> {
        async move {
            let mut joined = BytesMut::new();
            body.iter().for_each(|piece| joined.extend_from_slice(piece));
            let mut message = PeerMessage { head, body: joined.freeze() };
            if let Fate::Cut = (self.tap)(&mut message) {
                self.sender = None;
            }
            self.put(Some(message)).await
        }
        .boxed()
    }

    fn finish(&mut self) -> BoxFuture<'_, Result<(), PeerError>> {
        async move {
            let finished = self.put(None).await;
            self.sender = None;
            finished
        }
        .boxed()
    }
}

impl MessageReceiver for Receiver {
    fn next(&mut self) -> BoxFuture<'_, Result<Option<PeerMessage>, PeerError>> {
        async move {
            if self.ended {
                return Ok(None);
            }
            let item = self.receiver.recv().await.ok_or_else(broken)?;
            self.ended = item.is_none();
            Ok(item)
        }
        .boxed()
    }
}
