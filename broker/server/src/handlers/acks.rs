//! Acknowledgements of a produce stream: in order, several to a frame, never more waiting than the stream's limits.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use futures::future::Either;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use prost::Message;
use tidemill_controller::TopicRecord;
use tidemill_net::{FrameReader, FrameWriter, WriteError};
use tidemill_protocol::ErrorCode;
use tidemill_protocol::frame::RawFrame;
use tidemill_protocol::messages::{Error, ProduceAck, RoutedAck};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::connection::{ClientName, next_frame};
use crate::refusals;

/// A client that takes no acknowledgements for so long has its stream given up.
const WRITE_DEADLINE: Duration = Duration::from_secs(60);

/// Answers of a produce stream on their way: each becomes one acknowledgement, in the order of the requests.
pub(crate) struct AckQueue<F> {
    sender: mpsc::Sender<Held<F>>,
    window: Arc<Semaphore>,
    window_bytes: u32,
}

/// Room in a stream's window, until it is dropped.
pub(crate) struct Room {
    _permit: OwnedSemaphorePermit,
}

/// An answer, and the room that its batch takes until there is one.
pub(crate) struct Held<F> {
    answer: F,
    _room: Room,
}

/// What both kinds of acknowledgement have.
pub(crate) trait Ack {
    /// Why the batch is not stored, or not known to be.
    fn error(&self) -> Option<&Error>;
}

impl Ack for ProduceAck {
    fn error(&self) -> Option<&Error> {
        self.error.as_ref()
    }
}

impl Ack for RoutedAck {
    fn error(&self) -> Option<&Error> {
        self.error.as_ref()
    }
}

/// A stream whose answers are all there.
pub(crate) struct Written {
    writer: FrameWriter,
    /// What it is to be reset with: there is no acknowledgement that could say so.
    refusal: Option<Error>,
}

impl<F> AckQueue<F> {
    /// A queue for `in_flight_max` batches of `window_bytes` together, and its other end.
    pub(crate) fn new(in_flight_max: u32, window_bytes: u32) -> (Self, mpsc::Receiver<Held<F>>) {
        let capacity = usize::try_from(in_flight_max).unwrap_or(1).max(1);
        let (sender, receiver) = mpsc::channel(capacity);
        let window_bytes = window_bytes.max(1);
        let window = Arc::new(Semaphore::new(usize::try_from(window_bytes).unwrap_or(usize::MAX)));
        (Self { sender, window, window_bytes }, receiver)
    }

    /// Waits until a batch of `bytes` fits into the window beside those that have no answer yet. One alone always does. Meanwhile
    /// nothing is read from the stream.
    pub(crate) async fn room(&self, bytes: usize) -> Room {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX).min(self.window_bytes);
        let permit = Arc::clone(&self.window).acquire_many_owned(bytes).await;
        Room { _permit: permit.expect("a window is never closed") }
    }

    /// The stream's next frame; `None` where it is over, or its answers are wanted no more.
    pub(crate) async fn next_frame(&self, reader: &mut FrameReader) -> Result<Option<RawFrame>, Error> {
        tokio::select! {
            biased;
            frame = next_frame(reader) => frame,
            () = self.sender.closed() => Ok(None),
        }
    }

    /// Waits for a place; `false` where nobody writes acknowledgements any more.
    pub(crate) async fn push(&self, answer: F, room: Room) -> bool {
        self.sender.send(Held { answer, _room: room }).await.is_ok()
    }
}

impl<F: Future + Unpin> Future for Held<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut TaskContext<'_>) -> Poll<F::Output> {
        Pin::new(&mut self.answer).poll(context)
    }
}

/// How reading a produce stream ended.
pub(crate) struct ReadEnd {
    read: Result<(), Error>,
    reader: FrameReader,
}

/// Nothing more is read: an error is counted and logged, and the peer is told so at once. The queue's end lets the writer finish what
/// is under way.
pub(crate) fn no_more<F>(
    client: &ClientName,
    read: Result<(), Error>,
    mut reader: FrameReader,
    answers: AckQueue<F>,
) -> ReadEnd {
    if let Err(error) = &read {
        refusals::stream(&client.0, error);
        reader.stop(error.code);
    }
    drop(answers);
    ReadEnd { read, reader }
}

/// Reads a produce stream and writes its answers, to the end of both: what is under way is acknowledged, then the stream ends as
/// reading it and the answers say. On an error it is reset with its code in both directions.
///
/// Both are of one task: a batch that is taken would otherwise wake a task that has nothing to write yet, usually on another core. Each
/// is polled only when it was woken itself: looking whether something came takes the connection's lock.
pub(crate) async fn serve(
    reading: impl Future<Output = ReadEnd>,
    writing: impl Future<Output = Result<Written, WriteError>>,
) {
    let mut sides = FuturesUnordered::new();
    sides.push(reading.map(Side::Read).left_future());
    sides.push(writing.map(Side::Written).right_future());
    let (mut read_end, mut written_end) = (None, None);
    while let Some(side) = sides.next().await {
        match side {
            Side::Read(end) => read_end = Some(end),
            Side::Written(end) => written_end = Some(end),
        }
    }
    let (Some(ReadEnd { read, mut reader }), Some(written)) = (read_end, written_end) else { return };
    let Ok(Written { mut writer, refusal }) = written else { return };
    match read.err().or(refusal) {
        None => drop(writer.finish().await),
        Some(error) => {
            reader.stop(error.code);
            writer.reset(error.code);
        }
    }
}

enum Side {
    Read(ReadEnd),
    Written(Result<Written, WriteError>),
}

/// Takes the answers until the queue ends, and says them where the client wants acknowledgements.
pub(crate) async fn answer<F, A, M>(
    acknowledged: bool,
    queue: mpsc::Receiver<Held<F>>,
    writer: FrameWriter,
    topic: Arc<TopicRecord>,
    join: impl Fn(Vec<A>) -> M,
) -> Result<Written, WriteError>
where
    F: Future<Output = A> + Unpin,
    A: Ack,
    M: Message,
{
    if acknowledged { write(queue, writer, topic, join).await } else { discard(queue, writer, topic).await }
}

/// Writes acknowledgements until the queue ends, and gives the writer back: whatever is ready goes out in one frame. What is refused is
/// counted and logged here, whoever refused it.
///
/// `join` makes a frame of some acknowledgements.
async fn write<F, A, M>(
    mut queue: mpsc::Receiver<Held<F>>,
    mut writer: FrameWriter,
    topic: Arc<TopicRecord>,
    join: impl Fn(Vec<A>) -> M,
) -> Result<Written, WriteError>
where
    F: Future<Output = A> + Unpin,
    A: Ack,
    M: Message,
{
    let mut waiting: Option<Held<F>> = None;
    loop {
        let first = match waiting.take() {
            Some(answer) => answer,
            None => match queue.recv().await {
                Some(answer) => answer,
                None => return Ok(Written { writer, refusal: None }),
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
        for error in acks.iter().filter_map(Ack::error) {
            refusals::batch(&topic.name, error);
        }
        if let Ok(sent) = tokio::time::timeout(WRITE_DEADLINE, writer.send(&join(acks), &[])).await {
            sent?;
        } else {
            writer.reset(ErrorCode::Deadline.code());
            return Err(WriteError::Closed);
        }
    }
}

/// Waits for the answers and says none of them: where the client wants no acknowledgements, what is under way is bounded all the same.
/// The first refusal, from whomever, takes no more batches and ends the stream: there is no other way to tell of it.
async fn discard<F, A>(
    mut queue: mpsc::Receiver<Held<F>>,
    writer: FrameWriter,
    topic: Arc<TopicRecord>,
) -> Result<Written, WriteError>
where
    F: Future<Output = A> + Unpin,
    A: Ack,
{
    let mut refusal = None;
    while let Some(answer) = queue.recv().await {
        let ack = answer.await;
        let Some(error) = ack.error() else { continue };
        refusals::batch(&topic.name, error);
        if refusal.is_none() {
            refusal = Some(error.clone());
            queue.close();
        }
    }
    Ok(Written { writer, refusal })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_under_way_stays_within_the_window() {
        let (queue, mut answers) = AckQueue::new(8, 100);
        let room = queue.room(60).await;
        assert!(queue.push(std::future::ready(1), room).await);
        let second = queue.room(40).now_or_never().expect("the window is full, not more than that");
        assert!(queue.push(std::future::ready(2), second).await);
        assert!(queue.room(1).now_or_never().is_none(), "nothing more fits");
        let first = answers.recv().await.expect("the first answer");
        assert!(queue.room(60).now_or_never().is_none(), "it counts until it is there");
        assert_eq!(first.await, 1);
        assert!(queue.room(61).now_or_never().is_none());
        let third = queue.room(60).now_or_never().expect("its room is free again");
        assert!(queue.push(std::future::ready(3), third).await);
        // One that is larger than the window waits until it is alone.
        assert!(queue.room(1_000).now_or_never().is_none());
        drop(answers);
        drop(queue.room(1_000).await);
    }
}
