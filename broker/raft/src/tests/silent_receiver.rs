//! Receivers of a snapshot that do nothing, and those that only take their time.

use std::time::Duration;

use openraft::errors::{ReplicationClosed, StreamingError};
use tokio::time::{Instant, sleep};

use super::store::{Sent, Store, opening, vote};
use super::wire::{clear, pair};
use crate::peers::PeerStream;
use crate::snapshot::{Message, Part, RECEIVER_PATIENCE, Range, SnapshotLimiter, send};

const MOMENT: Duration = Duration::from_secs(1);
/// Of a segment that is larger.
const RANGE: Range = Range { part: Part::Segment(0), position: 0, bytes: 5_000 };

/// Sends a snapshot to a receiver that the test plays.
async fn send_to(stream: PeerStream, source: &Store, limiter: &SnapshotLimiter) -> Sent {
    let never = std::future::pending::<ReplicationClosed>();
    send(stream, vote(1), source.snapshot(), never, (limiter, &source.is_unsound), opening).await
}

fn want(ranges: usize) -> bytes::Bytes {
    Message::Want(vec![RANGE; ranges]).encode()
}

#[tokio::test(start_paused = true)]
async fn a_receiver_that_does_nothing_ends_the_sending() {
    let source = Store::filled(2);
    // One says nothing more; the other asked for what it then does not take: the stream is full.
    for ranges in [0, 10] {
        let (ours, mut theirs) = pair(clear(), clear());
        theirs.sender.send(want(ranges), &[]).await.unwrap();
        let begun = Instant::now();
        let sent = send_to(ours, &source, &SnapshotLimiter::new(None)).await;
        let waited = begun.elapsed();
        assert!(matches!(sent, Err(StreamingError::Unreachable(_))), "{sent:?}");
        assert!((RECEIVER_PATIENCE..RECEIVER_PATIENCE + MOMENT).contains(&waited), "{waited:?}");
        // It was there to the end.
        drop(theirs);
    }
}

#[tokio::test(start_paused = true)]
async fn a_receiver_that_takes_its_time_gets_everything_and_so_it_does_where_the_sender_is_held_back() {
    let source = Store::filled(2);
    // At a byte per second what goes before holds up each piece for longer than a receiver may be silent.
    let limiter = SnapshotLimiter::new(Some(1));
    assert!(u64::from(RANGE.bytes) > RECEIVER_PATIENCE.as_secs());
    let (ours, mut theirs) = pair(clear(), clear());
    let receiving = async {
        theirs.receiver.next().await.unwrap().expect("an offer");
        for _ in 0..2 {
            sleep(RECEIVER_PATIENCE - MOMENT).await;
            theirs.sender.send(want(2), &[]).await.unwrap();
            for _ in 0..2 {
                let part = theirs.receiver.next().await.unwrap().expect("a part");
                assert_eq!(part.body.len(), RANGE.bytes as usize);
            }
        }
        sleep(RECEIVER_PATIENCE - MOMENT).await;
        theirs.sender.send(Message::Answer(vote(1)).encode(), &[]).await.unwrap();
    };
    let begun = Instant::now();
    let (sent, ()) = tokio::join!(send_to(ours, &source, &limiter), receiving);
    assert_eq!(sent.unwrap().vote, vote(1));
    assert!(begun.elapsed() > RECEIVER_PATIENCE * 4);
}
