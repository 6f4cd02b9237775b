//! Producing without acknowledgements: nobody hears of each batch, so the stream's end has to say how it went.
//!
//! A broker that refuses a batch on such a stream resets it with the code. One that has dealt with everything answers the end of the
//! stream with its own. So a flush ends the stream and waits for the answer; what comes later opens another.

use std::time::Duration;

use tidemill_protocol::ErrorCode;

use super::completion::Placed;
use super::lane_task::{LaneTask, StreamEnd};
use super::stream::Open;
use super::{Acks, DeliveryError};
use crate::ServerError;
use crate::transport::ReadError;

impl LaneTask {
    /// Whether a flush waits for the stream's end, and nothing stands before it. What others send meanwhile stands behind it, and
    /// goes over another stream.
    pub(super) fn is_to_end(&self, open: &Open) -> bool {
        self.shared.options.acks == Acks::None
            && !open.wire.writer.has_queued()
            && self.in_flight.is_empty()
            && self.lane.is_to_end()
    }

    /// The stream broke, by the broker's code or without one.
    pub(super) fn broke(&self, open: &Open, code: Option<u64>, reason: String) -> StreamEnd {
        self.note_loss(open, code);
        if open.connection.is_over() { StreamEnd::Lost(reason) } else { StreamEnd::Retry(reason) }
    }

    /// The stream did not come to a good end: without acknowledgements nobody hears what of it arrived.
    pub(super) fn note_loss(&self, open: &Open, code: Option<u64>) {
        if self.shared.options.acks == Acks::None && open.next_request_id > 0 {
            let code = code.and_then(|code| u32::try_from(code).ok()).and_then(ErrorCode::from_code);
            self.shared.broken(
                code.map_or(DeliveryError::Lost, |code| DeliveryError::Unacknowledged(ServerError::of(code))),
            );
        }
    }

    /// Ends the stream and waits for the broker's end of it, which it sends when it has dealt with every batch.
    pub(super) async fn finish(&mut self, mut open: Open, patience: Duration) -> StreamEnd {
        let ends = self.lane.take_ends();
        let ended = async {
            if let Err(error) = open.wire.writer.finish().await {
                return Err((error.reset_code(), error.to_string()));
            }
            loop {
                match open.wire.reader.next().await {
                    Ok(Some(_)) => {}
                    Ok(None) => return Ok(()),
                    Err(error @ ReadError::Reset(_)) => return Err((error.reset_code(), error.to_string())),
                    Err(error) => return Err((None, error.to_string())),
                }
            }
        };
        let stopped = self.shared.stopped.clone();
        let ended = tokio::select! {
            ended = tokio::time::timeout(patience, ended) => ended,
            // Whoever waits for the flush hears that it was cut short.
            () = stopped.cancelled() => Ok(Err((None, "the producer was closed".to_owned()))),
        };
        let ended =
            ended.unwrap_or_else(|_| Err((None, "the broker did not end the stream in time".to_owned())));
        if let Err((code, reason)) = ended {
            self.last_problem = Some(reason.clone());
            let _ = self.broke(&open, code, reason);
        }
        // How it went is remembered: a flush tells the first failure of all.
        ends.iter().for_each(|end| end.complete(Ok(Placed::Sent)));
        if stopped.is_cancelled() { StreamEnd::Stopped } else { StreamEnd::Finished }
    }

    /// No stream is open: an end that is reached is none of any stream's.
    pub(super) fn nothing_to_end(&self) {
        self.lane.take_ends().iter().for_each(|end| end.complete(Ok(Placed::Sent)));
    }
}
