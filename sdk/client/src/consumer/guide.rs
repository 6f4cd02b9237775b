//! Where each partition is read: at its leader or in the consumer's rack, and elsewhere while nobody answers there. One whose topic
//! was deleted is read nowhere, and ends with that.

use std::sync::Arc;
use std::time::Duration;

use tidemill_protocol::{BrokerId, TopicPartition};
use tokio::time::Instant;

use super::ConsumeError;
use super::state::{PartitionState, Shared, State, Stay};
use crate::ServerError;
use crate::cluster::Metadata;
use crate::timer::sleep_until;

/// How long a partition is read on where it is, though another broker leads it by now. Long enough for a broker that restarts to
/// take its leads back, short enough for the load to follow them.
const FOLLOW_AFTER: Duration = Duration::from_secs(5);
/// Partitions that move for that follow each other: this much apart, by their numbers, in rounds of [`FOLLOW_ROUND`].
const FOLLOW_STEP: Duration = Duration::from_millis(50);
const FOLLOW_ROUND: u32 = 16;

/// Moves partitions when what is known of the brokers changes, as long as the consumer lives.
pub(super) async fn guide(shared: Arc<Shared>) {
    let mut news = shared.cluster.watch();
    let stopped = shared.stopped.clone();
    loop {
        news.borrow_and_update();
        let due = shared.look_round();
        tokio::select! {
            () = stopped.cancelled() => break,
            changed = news.changed() => if changed.is_err() { break },
            () = sleep_until(due) => {}
        }
    }
    shared.end(ConsumeError::Closed);
}

/// A partition that is read elsewhere from now on.
struct Move {
    partition: TopicPartition,
    from: Option<BrokerId>,
    to: BrokerId,
}

/// A partition that ended, because its topic was deleted.
struct Gone {
    stay: Stay,
    topic: Arc<str>,
    /// Where it was read.
    place: Option<BrokerId>,
}

impl Shared {
    /// Moves what must, and what should for long enough. Answers when to look again.
    fn look_round(self: &Arc<Self>) -> Option<Instant> {
        let now = Instant::now();
        let rack = self.settings.rack.as_deref();
        let (mut moves, mut gone, mut doubted, mut due) =
            (Vec::new(), Vec::new(), Vec::new(), None::<Instant>);
        self.with(|all| {
            // Looked up within: whatever was added by now was known before.
            let known = self.cluster.known();
            for (partition, state) in all.partitions.iter_mut().filter(|(_, state)| !state.is_left_alone()) {
                if is_gone(*partition, state, &known) {
                    gone.push(Gone::of(*partition, state));
                    continue;
                }
                let best = best(*partition, state, &known, rack, None);
                match (state.place, best) {
                    (_, None) => {}
                    (Some(place), Some(best)) if place == best => state.astray_since = None,
                    (Some(place), Some(_)) if known.is_well(place) && !has_waited(*partition, state, now) => {
                        if state.astray_since.is_none() {
                            // Perhaps the lead went elsewhere because the broker is gone.
                            doubted.push(place);
                        }
                        let since = *state.astray_since.get_or_insert(now);
                        let until = since + patience(*partition);
                        due = Some(due.map_or(until, |due| due.min(until)));
                    }
                    (_, Some(best)) => moves.push(state.go(*partition, best)),
                }
            }
            all.lose(&gone);
        });
        doubted.dedup();
        doubted.into_iter().for_each(|broker| self.cluster.doubt(broker));
        self.tell(moves);
        self.tell_of(gone);
        due
    }

    /// Moves these partitions to where they should be read, at once; those that are nowhere any more end.
    pub(super) fn settle(
        self: &Arc<Self>,
        partitions: impl IntoIterator<Item = TopicPartition>,
        avoid: Option<BrokerId>,
    ) {
        let rack = self.settings.rack.as_deref();
        let (mut moves, mut gone) = (Vec::new(), Vec::new());
        self.with(|all| {
            let known = self.cluster.known();
            for partition in partitions {
                let Some(state) = all.partitions.get_mut(&partition) else { continue };
                if is_gone(partition, state, &known) {
                    // What had ended before stays as it ended.
                    if !state.is_left_alone() {
                        gone.push(Gone::of(partition, state));
                    }
                } else if let Some(best) = best(partition, state, &known, rack, avoid)
                    && state.place != Some(best)
                {
                    moves.push(state.go(partition, best));
                }
            }
            all.lose(&gone);
        });
        self.tell(moves);
        self.tell_of(gone);
    }

    /// Ends a partition whose topic was deleted.
    pub(super) fn end_if_gone(self: &Arc<Self>, partition: TopicPartition) {
        let mut gone: Vec<Gone> = Vec::new();
        self.with(|all| {
            let known = self.cluster.known();
            let state = all.partitions.get(&partition).filter(|state| !state.is_left_alone());
            let state = state.filter(|state| is_gone(partition, state, &known));
            gone.extend(state.map(|state| Gone::of(partition, state)));
            all.lose(&gone);
        });
        self.tell_of(gone);
    }

    /// Moves a partition to this broker, until it should have been elsewhere for long enough.
    pub(super) fn send_to(self: &Arc<Self>, partition: TopicPartition, broker: BrokerId) {
        let moved = self.with_partition(partition, |state| state.go(partition, broker));
        self.tell(moved.into_iter().collect());
    }

    fn tell(self: &Arc<Self>, moves: Vec<Move>) {
        for Move { partition, from, to } in moves {
            tracing::debug!(%partition, from = ?from, %to, "is read elsewhere now");
            self.touch(partition, from);
            self.touch(partition, Some(to));
        }
    }

    /// Who read these partitions asks for no more of them, and the consumer hears why.
    fn tell_of(self: &Arc<Self>, gone: Vec<Gone>) {
        if gone.is_empty() {
            return;
        }
        for Gone { stay, topic, place } in gone {
            tracing::debug!(partition = %stay.partition, %topic, "its topic was deleted");
            self.touch(stay.partition, place);
        }
        self.nudge();
    }
}

impl State {
    /// These partitions end: their topics are not there any more.
    fn lose(&mut self, gone: &[Gone]) {
        for Gone { stay, topic, .. } in gone {
            let (partition, error) = (stay.partition, ServerError::topic_deleted(topic));
            self.fail(*stay, ConsumeError::Partition { partition, error });
            // Nothing will be heard of it any more.
            if let Some(state) = self.partitions.get_mut(&partition) {
                drop(state.in_use.take());
            }
        }
    }
}

impl Gone {
    fn of(partition: TopicPartition, state: &PartitionState) -> Self {
        Self { stay: state.stay(partition), topic: Arc::clone(&state.topic), place: state.place }
    }
}

impl PartitionState {
    fn go(&mut self, partition: TopicPartition, to: BrokerId) -> Move {
        let from = self.place.replace(to);
        self.tenure += 1;
        self.astray_since = None;
        Move { partition, from, to }
    }
}

/// Whether a partition lacks something that never comes, because its topic was deleted. The topic was there when the partition was
/// added, and no broker that is behind takes it away again: that takes metadata that are no older than those it is known from.
fn is_gone(partition: TopicPartition, state: &PartitionState, known: &Metadata) -> bool {
    known.topic(&state.topic, partition.topic).is_none() && !state.has_all()
}

fn best(
    partition: TopicPartition,
    state: &PartitionState,
    known: &Metadata,
    rack: Option<&str>,
    avoid: Option<BrokerId>,
) -> Option<BrokerId> {
    let topic = known.topic(&state.topic, partition.topic)?;
    known.reader(topic.partition(partition.partition)?, rack, avoid)
}

/// How long this partition may be read elsewhere than where it should.
fn patience(partition: TopicPartition) -> Duration {
    FOLLOW_AFTER + FOLLOW_STEP * (partition.partition.get() % FOLLOW_ROUND)
}

fn has_waited(partition: TopicPartition, state: &PartitionState, now: Instant) -> bool {
    state.astray_since.is_some_and(|since| now >= since + patience(partition))
}
