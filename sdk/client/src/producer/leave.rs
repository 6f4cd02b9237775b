//! Leaving a stream, because the producer stops or because the stream belongs over another broker.

use std::time::Duration;

use tokio::time::Instant;

use super::Acks;
use super::lane_task::{LaneTask, StreamEnd};
use super::stream::Open;
use crate::timer::sleep_until;
use crate::transport::Wire;

/// How long a stream whose batches can't be told from their repetitions may take to its end.
const LEAVE_PATIENCE: Duration = Duration::from_secs(2);

impl LaneTask {
    /// Ends the stream as is best for what is under way on it.
    pub(super) async fn leave(&mut self, open: Open) -> StreamEnd {
        if self.shared.stopped.is_cancelled() {
            self.note_loss(&open, None);
            return StreamEnd::Stopped;
        }
        tracing::debug!(topic = %self.shared.topic.name, target = ?self.lane.target, broker = %open.connection.broker, "a produce stream moves");
        let was_of_use = open.answers > 0;
        let end = self.leave_as_fits(open).await;
        match end {
            // Where nobody better is found the next stream may be no better than this one: not without pause.
            StreamEnd::Moved if !was_of_use => {
                StreamEnd::Retry("the stream had to be moved at once".to_owned())
            }
            end => end,
        }
    }

    async fn leave_as_fits(&mut self, open: Open) -> StreamEnd {
        match (self.shared.options.acks, self.numbering.identity) {
            // The next broker knows what is a duplicate: nothing is won by waiting for this one.
            (Acks::Quorum, Some(_)) => {
                let mut open = open;
                open.wire.writer.reset();
                StreamEnd::Moved
            }
            (Acks::Quorum, None) => self.leave_when_answered(open).await,
            (Acks::None, _) => self.leave_when_taken(open).await,
        }
    }

    /// What is answered here is not sent again, and so is not there twice.
    async fn leave_when_answered(&mut self, mut open: Open) -> StreamEnd {
        let stopped = self.shared.stopped.clone();
        let overdue = Instant::now() + LEAVE_PATIENCE;
        while self.in_flight.iter().any(|batch| batch.request_id.is_some() && !batch.refused) {
            let is_writing = open.wire.writer.has_queued();
            let Wire { reader, writer } = &mut open.wire;
            let acks = tokio::select! {
                biased;
                () = stopped.cancelled() => return StreamEnd::Stopped,
                frame = reader.next() => match frame {
                    Ok(Some(frame)) => self.decode_acks(&frame),
                    _ => break,
                },
                written = writer.flush(), if is_writing => if written.is_err() { break } else { continue },
                () = sleep_until(Some(overdue)) => break,
            };
            let Ok(acks) = acks else { break };
            if let Some(end) = self.take_acks(&open, acks) {
                open.wire.writer.reset();
                return end;
            }
        }
        open.wire.writer.reset();
        StreamEnd::Moved
    }

    /// What was handed over is sent once only: it must get through here.
    async fn leave_when_taken(&mut self, open: Open) -> StreamEnd {
        match self.finish(open, LEAVE_PATIENCE).await {
            StreamEnd::Finished => {
                // Written, or counted as broken.
                self.all_sent();
                StreamEnd::Moved
            }
            end => end,
        }
    }
}
