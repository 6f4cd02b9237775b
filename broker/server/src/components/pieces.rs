//! A component on its way from another broker, piece by piece.

use std::fmt::Display;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt};

use super::Absence;

/// A component travels in pieces of this size: small enough that a slow way brings each in time.
pub(super) const PIECE_BYTES: usize = 256 << 10;
/// For the next piece. Whoever has begun to send and stops in the middle keeps a place from other components, which other brokers would
/// send.
const PIECE_PATIENCE: Duration = Duration::from_secs(10);

/// Puts together what comes, up to the announced size.
pub(super) async fn gather<E: Display>(
    size: u64,
    pieces: impl Stream<Item = Result<Bytes, E>>,
) -> Result<Bytes, Absence> {
    let mut pieces = std::pin::pin!(pieces);
    let mut bytes = BytesMut::new();
    loop {
        let piece = tokio::time::timeout(PIECE_PATIENCE, pieces.next()).await;
        let piece = piece.map_err(|_elapsed| Absence::unknown("it stopped sending in the middle"))?;
        let Some(piece) = piece else { return Ok(bytes.freeze()) };
        let piece = piece.map_err(Absence::unknown)?;
        if (bytes.len() + piece.len()) as u64 > size {
            return Err(Absence::unknown("it sends more than it announced"));
        }
        bytes.extend_from_slice(&piece);
    }
}

#[cfg(test)]
mod tests {
    use futures::stream;
    use tokio::time::Instant;

    use super::*;

    /// So many pieces, each after a pause.
    fn pieces(count: u8, pause: Duration) -> impl Stream<Item = Result<Bytes, String>> {
        stream::iter(0..count).then(move |number| async move {
            tokio::time::sleep(pause).await;
            Ok(Bytes::from(vec![number; 2]))
        })
    }

    #[tokio::test(start_paused = true)]
    async fn who_stops_in_the_middle_is_waited_for_no_longer_than_for_a_piece() {
        let pause = Duration::from_secs(1);
        let begun = Instant::now();
        let stopped = gather(100, pieces(3, pause).chain(stream::pending())).await;
        assert!(matches!(stopped, Err(Absence::Unknown(_))), "others may have it: {stopped:?}");
        assert!(begun.elapsed() < pause * 3 + PIECE_PATIENCE + pause);
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_slow_and_goes_on_is_waited_for() {
        let pause = PIECE_PATIENCE - Duration::from_secs(1);
        let begun = Instant::now();
        let gathered = gather(100, pieces(5, pause)).await.expect("all of it");
        assert_eq!(gathered[..], [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]);
        assert!(begun.elapsed() > PIECE_PATIENCE * 4);
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_is_taken_than_was_announced_and_a_broken_stream_is_no_end() {
        let more = gather(5, pieces(3, Duration::ZERO)).await;
        assert!(matches!(&more, Err(Absence::Unknown(reason)) if reason.contains("announced")), "{more:?}");
        let broken = pieces(1, Duration::ZERO).chain(stream::iter([Err("broken".to_owned())]));
        let broken = gather(5, broken).await;
        assert!(matches!(&broken, Err(Absence::Unknown(reason)) if reason == "broken"), "{broken:?}");
    }
}
