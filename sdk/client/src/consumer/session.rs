use std::collections::HashMap;
use std::sync::Arc;

use tidemill_protocol::messages::{
    StreamOpen, SubscribeAdd, SubscribeControl, SubscribeCredit, SubscribeOpen, SubscribeOpened,
    SubscribePause, SubscribeRemove, SubscribeSeek, stream_open, subscribe_control,
};
use tidemill_protocol::{BrokerId, TopicPartition};
use tokio::time::Instant;

use super::ConsumeError;
use super::state::{Counters, Inbox, Shared};
use crate::backoff::Backoff;
use crate::cluster::is_of_this_broker;
use crate::error::server_error;
use crate::timer::sleep_until;
use crate::transport::{FrameWriter, Wire, WriteError};
use crate::{Position, ServerError};

/// The subscription with one broker: one stream after another, each brought in line with what the consumer wants.
pub(super) struct Session {
    pub(super) shared: Arc<Shared>,
    pub(super) broker: BrokerId,
    inbox: Arc<Inbox>,
    next_id: u32,
}

/// What the broker was told on the present stream.
#[derive(Debug, Default)]
pub(super) struct View {
    pub(super) told: HashMap<TopicPartition, Told>,
    pub(super) ids: HashMap<u32, TopicPartition>,
    /// Partitions that failed and are added again at a time.
    pub(super) again: Vec<(Instant, TopicPartition)>,
}

#[derive(Debug)]
pub(super) struct Told {
    id: u32,
    pub(super) incarnation: u64,
    /// Of the partition at this broker.
    pub(super) tenure: u64,
    /// Of the consumer's seeks.
    pub(super) generation: u64,
    /// As the broker counts seeks on this stream.
    pub(super) wire_generation: u64,
    pub(super) asked: Position,
    /// The answer shows where the log ends, for a reader that stops there.
    pub(super) exact_end: bool,
    paused: bool,
    /// Bytes that the broker may still send. Below zero after a frame that was larger than what was left.
    pub(super) credit: i64,
}

/// How a stream came to its end.
pub(super) enum SessionEnd {
    Retry(String),
    /// The broker gives nothing out, for a reason that is not the others'.
    RefusedHere(String),
    Refused(ServerError),
    Stopped,
}

impl From<WriteError> for SessionEnd {
    fn from(error: WriteError) -> Self {
        Self::Retry(error.to_string())
    }
}

impl Session {
    pub(super) const fn new(shared: Arc<Shared>, broker: BrokerId, inbox: Arc<Inbox>) -> Self {
        Self { shared, broker, inbox, next_id: 0 }
    }

    pub(super) async fn run(mut self) {
        let stopped = self.shared.stopped.clone();
        let mut backoff = self.shared.cluster.backoff();
        loop {
            if self.mine().is_empty() {
                tokio::select! {
                    () = stopped.cancelled() => return self.shared.end(ConsumeError::Closed),
                    () = self.inbox.wake.notified() => continue,
                }
            }
            let end = tokio::select! {
                () = stopped.cancelled() => SessionEnd::Stopped,
                end = self.stream(&mut backoff) => end,
            };
            let (reason, is_refused) = match end {
                SessionEnd::Stopped => return self.shared.end(ConsumeError::Closed),
                SessionEnd::Refused(error) => return self.shared.end(ConsumeError::Refused(error)),
                SessionEnd::Retry(reason) => (reason, false),
                SessionEnd::RefusedHere(reason) => (reason, true),
            };
            tracing::debug!(broker = %self.broker, reason, "subscription");
            self.shared.cluster.is_troubled(&reason);
            Counters::add(&self.shared.counters.reconnects, 1);
            self.shared.cluster.wants_news();
            match is_refused {
                true => self.mine().into_iter().for_each(|partition| _ = self.leaves(partition)),
                false => self.go_elsewhere(),
            }
            if self.mine().is_empty() {
                continue;
            }
            tokio::select! {
                () = stopped.cancelled() => return self.shared.end(ConsumeError::Closed),
                () = tokio::time::sleep(backoff.pause()) => {}
            }
            self.go_elsewhere();
        }
    }

    /// The partitions that this session should have.
    fn mine(&self) -> Vec<TopicPartition> {
        self.shared.with(|state| {
            let mine =
                state.partitions.iter().filter(|(_, p)| p.place == Some(self.broker) && !p.is_left_alone());
            mine.map(|(partition, _)| *partition).collect()
        })
    }

    /// The stream is gone: its partitions go on at once where they should be read by now, those that came damaged wherever else
    /// they are.
    fn go_elsewhere(&self) {
        let is_damaged = |partition: &TopicPartition| {
            self.shared.with_partition(*partition, |state| state.corruptions > 0) == Some(true)
        };
        let (damaged, others): (Vec<_>, Vec<_>) = self.mine().into_iter().partition(is_damaged);
        self.shared.settle(damaged, Some(self.broker));
        self.shared.settle(others, None);
    }

    /// One stream, from its opening to its end.
    async fn stream(&mut self, backoff: &mut Backoff) -> SessionEnd {
        match self.serve(backoff).await {
            Ok(never) => match never {},
            Err(end) => end,
        }
    }

    async fn serve(&mut self, backoff: &mut Backoff) -> Result<std::convert::Infallible, SessionEnd> {
        let opening = tokio::time::timeout(self.shared.cluster.answer_timeout(), self.open());
        let Wire { mut reader, mut writer } = opening
            .await
            .unwrap_or_else(|_| Err(SessionEnd::Retry("the broker did not answer in time".to_owned())))?;
        let mut view = View::default();
        for partition in self.mine() {
            self.inbox.put(partition);
        }
        loop {
            for partition in self.inbox.take() {
                self.reconcile(partition, &mut view, &mut writer)?;
            }
            let is_writing = writer.has_queued();
            let again = view.again.iter().map(|(at, _)| *at).min();
            tokio::select! {
                biased;
                written = writer.flush(), if is_writing => written?,
                frame = reader.next() => match frame {
                    Ok(Some(frame)) => {
                        self.take(&frame, &mut view, backoff).await?;
                        // What came together is dealt with together.
                        while let Some(frame) = reader.take_buffered().map_err(|e| SessionEnd::Retry(e.to_string()))? {
                            self.take(&frame, &mut view, backoff).await?;
                        }
                    }
                    Ok(None) => return Err(SessionEnd::Retry("the broker ended the stream".to_owned())),
                    Err(error) => return Err(SessionEnd::Retry(error.to_string())),
                },
                () = self.inbox.wake.notified() => {}
                () = sleep_until(again) => {
                    let now = Instant::now();
                    let (due, later) = view.again.drain(..).partition(|(at, _)| *at <= now);
                    view.again = later;
                    let due: Vec<(Instant, TopicPartition)> = due;
                    let due: Vec<TopicPartition> = due.into_iter().map(|(_, partition)| partition).collect();
                    // Perhaps another broker has it.
                    let mine = self.mine();
                    let refused = due.iter().copied().filter(|partition| mine.contains(partition));
                    self.shared.settle(refused, Some(self.broker));
                    due.into_iter().for_each(|partition| self.inbox.put(partition));
                }
            }
        }
    }

    async fn open(&self) -> Result<Wire, SessionEnd> {
        let retry = |error: &dyn std::fmt::Display| SessionEnd::Retry(error.to_string());
        let connection =
            self.shared.cluster.connection_to(self.broker).await.map_err(|error| retry(&error))?;
        let mut wire = Wire::open(&connection.quinn).await?;
        let open = SubscribeOpen { filter: self.shared.settings.filter.clone(), ..SubscribeOpen::default() };
        let open = StreamOpen { kind: Some(stream_open::Kind::Subscribe(open)) };
        wire.writer.send(&open, &[]).await?;
        let (opened, _) = wire.reader.message::<SubscribeOpened>().await.map_err(|error| retry(&error))?;
        match server_error(opened.error) {
            Ok(()) => Ok(wire),
            Err(error) if is_of_this_broker(&error) => Err(SessionEnd::RefusedHere(error.to_string())),
            Err(error) if error.retriable => Err(retry(&error)),
            Err(error) => Err(SessionEnd::Refused(error)),
        }
    }

    /// Tells the broker what has changed about a partition since it was last told.
    fn reconcile(
        &mut self,
        partition: TopicPartition,
        view: &mut View,
        writer: &mut FrameWriter,
    ) -> Result<(), WriteError> {
        use subscribe_control::Kind;
        let mut say = |kind| writer.feed(&SubscribeControl { kind: Some(kind) }, &[]);
        let place = Some(self.broker);
        let waits = view.again.iter().any(|(_, waiting)| *waiting == partition);
        let next_id = &mut self.next_id;
        let stop_at_end = self.shared.settings.stop_at_end;
        self.shared.with(|state| {
            let wanted =
                state.partitions.get_mut(&partition).filter(|p| p.place == place && !p.is_left_alone());
            // Removed, or removed and added again, or read elsewhere meanwhile.
            if let Some(told) = view.told.get(&partition)
                && wanted.as_ref().is_none_or(|wanted| {
                    (wanted.incarnation, wanted.tenure) != (told.incarnation, told.tenure)
                })
            {
                let id = told.id;
                view.ids.remove(&id);
                view.told.remove(&partition);
                say(Kind::Remove(SubscribeRemove { id }))?;
            }
            match (wanted, view.told.get_mut(&partition)) {
                (None, _) => Ok(()),
                (Some(_), None) if waits => Ok(()),
                (Some(wanted), None) => {
                    let id = *next_id;
                    *next_id = next_id.wrapping_add(1);
                    wanted.owed_bytes = 0;
                    let credit_bytes = wanted.window_bytes.saturating_sub(wanted.queued_bytes);
                    let exact_end = wanted.needs_end(stop_at_end);
                    // Seeks from before are in the position: the broker counts those that come after the add.
                    let told = Told {
                        id,
                        incarnation: wanted.incarnation,
                        tenure: wanted.tenure,
                        generation: wanted.generation,
                        wire_generation: 0,
                        asked: wanted.resume,
                        exact_end,
                        paused: wanted.paused,
                        credit: i64::try_from(credit_bytes).unwrap_or(i64::MAX),
                    };
                    view.ids.insert(id, partition);
                    view.told.insert(partition, told);
                    say(Kind::Add(SubscribeAdd {
                        id,
                        partition: Some(partition.into()),
                        start: Some(wanted.resume.into()),
                        credit_bytes,
                        paused: wanted.paused,
                        floor_offset: wanted.floor.get(),
                        exact_end,
                    }))
                }
                (Some(wanted), Some(told)) => {
                    let exact_end = wanted.needs_end(stop_at_end);
                    // To ask for the end it goes on where it is.
                    if wanted.generation != told.generation || (exact_end && !told.exact_end) {
                        told.generation = wanted.generation;
                        told.asked = wanted.resume;
                        told.exact_end = exact_end;
                        told.wire_generation += 1;
                        let (id, generation) = (told.id, told.wire_generation);
                        let (start, floor_offset) = (Some(wanted.resume.into()), wanted.floor.get());
                        say(Kind::Seek(SubscribeSeek { id, start, generation, floor_offset, exact_end }))?;
                    }
                    if wanted.paused != told.paused {
                        told.paused = wanted.paused;
                        say(Kind::Pause(SubscribePause { id: told.id, paused: wanted.paused }))?;
                    }
                    if wanted.should_return_credit() {
                        let bytes = std::mem::take(&mut wanted.owed_bytes);
                        told.credit = told.credit.saturating_add_unsigned(bytes);
                        say(Kind::Credit(SubscribeCredit { id: told.id, bytes }))?;
                    }
                    Ok(())
                }
            }
        })
    }

    /// Looks at a partition again soon.
    pub(super) fn touch(&self, partition: TopicPartition) {
        self.inbox.put(partition);
    }
}
