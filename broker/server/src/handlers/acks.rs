//! Acknowledgements of a produce stream: in order, several to a frame, never more waiting than the stream's limit.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context as TaskContext, Poll};

use std::time::Duration;

use futures::future::Either;
use prost::Message;
use tidemill_net::{FrameWriter, WriteError};
use tidemill_protocol::ErrorCode;
use tokio::sync::mpsc;

/// A client that takes no acknowledgements for so long has its stream given up.
const WRITE_DEADLINE: Duration = Duration::from_secs(60);

/// Answers of a produce stream on their way: each becomes one acknowledgement, in the order of the requests.
pub(crate) struct AckQueue<F> {
    sender: mpsc::Sender<F>,
}

impl<F> AckQueue<F> {
    /// A queue for `in_flight_max` requests, and its other end.
    pub(crate) fn new(in_flight_max: u32) -> (Self, mpsc::Receiver<F>) {
        let capacity = usize::try_from(in_flight_max).unwrap_or(1).max(1);
        let (sender, receiver) = mpsc::channel(capacity);
        (Self { sender }, receiver)
    }

    /// Waits for a place; `false` where nobody writes acknowledgements any more.
    pub(crate) async fn push(&self, answer: F) -> bool {
        self.sender.send(answer).await.is_ok()
    }
}

/// Writes acknowledgements until the queue ends: whatever is ready goes out in one frame.
///
/// `join` makes a frame of some acknowledgements.
pub(crate) async fn write<F, A, M>(
    mut queue: mpsc::Receiver<F>,
    mut writer: FrameWriter,
    join: impl Fn(Vec<A>) -> M,
) -> Result<(), WriteError>
where
    F: Future<Output = A> + Unpin,
    M: Message,
{
    let mut waiting: Option<F> = None;
    loop {
        let first = match waiting.take() {
            Some(answer) => answer,
            None => match queue.recv().await {
                Some(answer) => answer,
                None => {
                    writer.finish().await?;
                    return Ok(());
                }
            },
        };
        let mut acks = vec![first.await];
        // What has its answer already joins the frame; the first that has not is waited for next.
        while acks.len() < queue.max_capacity()
            && let Ok(answer) = queue.try_recv()
        {
            match now_or_later(answer).await {
                Either::Left(ack) => acks.push(ack),
                Either::Right(answer) => {
                    waiting = Some(answer);
                    break;
                }
            }
        }
        if let Ok(sent) = tokio::time::timeout(WRITE_DEADLINE, writer.send(&join(acks), &[])).await {
            sent?;
        } else {
            writer.reset(ErrorCode::Deadline.code());
            return Ok(());
        }
    }
}

/// Polls once: the answer, or the future again.
fn now_or_later<F: Future + Unpin>(future: F) -> NowOrLater<F> {
    NowOrLater(Some(future))
}

struct NowOrLater<F>(Option<F>);

impl<F: Future + Unpin> Future for NowOrLater<F> {
    type Output = Either<F::Output, F>;

    fn poll(mut self: Pin<&mut Self>, context: &mut TaskContext<'_>) -> Poll<Self::Output> {
        let mut future = self.0.take().expect("polled once, as it always is ready");
        match Pin::new(&mut future).poll(context) {
            Poll::Ready(output) => Poll::Ready(Either::Left(output)),
            Poll::Pending => Poll::Ready(Either::Right(future)),
        }
    }
}
