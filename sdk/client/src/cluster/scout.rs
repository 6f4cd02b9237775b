//! Looks around while the client uses topics: keeps ears at several brokers, so that news come from those that live when one dies,
//! and asks round where a partition has no leader that answers.
//!
//! One for the whole client: a thousand partitions that lose their leader together wait for one question.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tidemill_protocol::messages::{MetadataRequest, reply, request};
use tokio::time::Instant;

use super::interest::parts;
use super::pool::Cluster;
use crate::backoff::random_fraction;

/// Brokers that are listened to, where there are as many. A cluster of three is heard whole.
const EARS: usize = 3;
/// Between two questions while a leader is missing: half of this, and as much again at random.
const QUESTION_PAUSE: Duration = Duration::from_millis(100);
/// The same when it has been missing for longer than [`HASTE`].
const PATIENT_PAUSE: Duration = Duration::from_secs(2);
/// How long an election may take before the questions become rare.
const HASTE: Duration = Duration::from_secs(15);
/// A broker that takes longer to answer is left waiting, and the next one is asked.
const ANSWER_PATIENCE: Duration = Duration::from_millis(300);
/// Between two looks where nothing is amiss and nobody says anything.
const IDLE_PAUSE: Duration = Duration::from_secs(60);
/// Between two looks at brokers that did not answer.
const VISIT_PAUSE: Duration = Duration::from_millis(500);

impl Cluster {
    /// Begins to look around, once. Ends with the client.
    pub(super) fn begin_scouting(self: &Arc<Self>) {
        if !self.is_scouting.swap(true, Ordering::Relaxed) {
            tokio::spawn(scout(Arc::downgrade(self), self.closed.clone()));
        }
    }

    /// Somebody was refused for something that newer metadata may mend.
    pub(crate) fn wants_news(&self) {
        self.wanted.notify_one();
    }

    /// Begins to connect where nobody listens yet, or nobody answered.
    fn visit(self: &Arc<Self>) -> bool {
        let known = self.known();
        let mut ears = self.all_connected_well();
        ears.truncate(EARS);
        let is_heard = |broker| ears.iter().any(|ear| ear.broker == broker);
        let (mut wanted, mut is_missing) = (EARS.saturating_sub(ears.len()), false);
        let count = known.brokers.len();
        let first = self.choice as usize % count.max(1);
        let brokers = known.brokers.iter().cycle().skip(first).take(count);
        for (broker, metadata) in brokers.filter(|(broker, _)| !is_heard(**broker)) {
            let is_unwell = !known.is_well(*broker);
            if is_unwell || wanted > 0 {
                wanted = wanted.saturating_sub(1);
                is_missing = true;
                for address in &metadata.addresses {
                    drop(self.begin_dial(address));
                }
            }
        }
        is_missing
    }

    /// Asks one of those that answer what it knows of the topics in use; a different one each time.
    async fn ask(self: &Arc<Self>, number: usize) {
        let mut connections = self.all_connected_well();
        connections.sort_unstable_by_key(|connection| connection.broker);
        let count = connections.len().max(1);
        let Some(connection) = connections.into_iter().nth(number % count) else { return };
        let nothing = bytes::Bytes::new();
        for topics in parts(&self.interest.list()) {
            let body = request::Body::Metadata(MetadataRequest { topics, all: false });
            let asking = self.call_once(&connection, &body, &nothing, ANSWER_PATIENCE);
            match tokio::time::timeout(ANSWER_PATIENCE, asking).await {
                Ok(Ok(reply::Body::Metadata(metadata))) => self.learn(metadata),
                Ok(Ok(_)) => {}
                // What it says of one part it need not say of the next.
                Ok(Err(error)) => tracing::debug!(broker = %connection.broker, %error, "has no news"),
                Err(_) => {
                    tracing::debug!(broker = %connection.broker, "was slow to tell the news");
                    return;
                }
            }
        }
    }
}

async fn scout(cluster: std::sync::Weak<Cluster>, closed: tokio_util::sync::CancellationToken) {
    let Some((mut news, wanted)) = cluster.upgrade().map(|c| (c.watch(), Arc::clone(&c.wanted))) else {
        return;
    };
    let mut questions = 0_usize;
    let mut missing_since: Option<Instant> = None;
    let mut is_wanted = false;
    loop {
        let Some(strong) = cluster.upgrade() else { return };
        news.borrow_and_update();
        let is_missing = strong.visit();
        let lacks_leader = strong.known().lacks_leader();
        let since =
            if lacks_leader { *missing_since.get_or_insert_with(Instant::now) } else { Instant::now() };
        if !lacks_leader {
            missing_since = None;
        }
        if lacks_leader || is_wanted {
            questions = questions.wrapping_add(1);
            strong.ask(questions).await;
        }
        drop(strong);
        // However much happens, and however many ask for news, there is a pause between two questions.
        let (least, pause) = match (lacks_leader, is_missing) {
            (true, _) if since.elapsed() > HASTE => (PATIENT_PAUSE / 2, PATIENT_PAUSE),
            (true, _) => (QUESTION_PAUSE / 2, QUESTION_PAUSE),
            (false, true) => (QUESTION_PAUSE / 2, VISIT_PAUSE),
            (false, false) => (QUESTION_PAUSE / 2, IDLE_PAUSE),
        };
        let further = (pause / 2).saturating_sub(least) + (pause / 2).mul_f64(random_fraction());
        let waiting = async {
            tokio::time::sleep(least).await;
            tokio::select! {
                () = tokio::time::sleep(further) => Some(false),
                changed = news.changed() => changed.is_ok().then_some(false),
                () = wanted.notified() => Some(true),
            }
        };
        is_wanted = tokio::select! {
            () = closed.cancelled() => return,
            waited = waiting => match waited {
                Some(is_wanted) => is_wanted,
                // The client is gone.
                None => return,
            },
        };
    }
}
