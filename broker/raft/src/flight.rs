//! An entry between its proposal and its answer.

use std::sync::Arc;

use parking_lot::Mutex;
use tidemill_shard::UnitResult;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::error::ProposeError;
use crate::gate::Held;
use crate::proposer::Proposer;

type Reply = oneshot::Sender<Result<UnitResult, ProposeError>>;

/// Those who wait for an entry's results: answered once, by whoever comes first of openraft, the deadline and the end
/// of the replica.
#[derive(Debug)]
pub(crate) struct Outcome {
    waiting: Mutex<Option<Vec<Reply>>>,
    expires: Instant,
}

impl Outcome {
    pub(crate) fn new(waiting: Vec<Reply>, expires: Instant) -> Arc<Self> {
        Arc::new(Self { waiting: Mutex::new(Some(waiting)), expires })
    }

    /// Whether everyone was answered.
    pub(crate) fn is_settled(&self) -> bool {
        self.waiting.lock().is_none()
    }

    /// Whether its deadline has passed.
    pub(crate) fn is_late(&self, now: Instant) -> bool {
        self.expires <= now
    }

    /// Gives up: the entry may or may not be in the log. False if everyone was answered already.
    pub(crate) fn abandon(&self) -> bool {
        self.fail(&ProposeError::OutcomeUnknown)
    }

    fn fail(&self, error: &ProposeError) -> bool {
        let waiting = self.waiting.lock().take();
        let unanswered = waiting.is_some();
        for reply in waiting.into_iter().flatten() {
            drop(reply.send(Err(error.clone())));
        }
        unanswered
    }

    fn answer(&self, results: Vec<UnitResult>) {
        let waiting = self.waiting.lock().take().unwrap_or_default();
        debug_assert!(waiting.is_empty() || waiting.len() == results.len(), "a result for each unit");
        // A reply without a result is dropped, which its owner reads as an unknown outcome.
        for (reply, result) in waiting.into_iter().zip(results) {
            drop(reply.send(Ok(result)));
        }
    }
}

/// The proposer's side of an entry in flight. Dropped without an answer, the outcome is unknown.
pub(crate) struct Flight {
    proposer: Arc<Proposer>,
    outcome: Arc<Outcome>,
    bytes: usize,
    charged: usize,
    /// What is held for its units.
    held: Vec<Held>,
    started: Instant,
    landed: bool,
}

impl Flight {
    pub(crate) fn new(
        proposer: Arc<Proposer>,
        outcome: Arc<Outcome>,
        bytes: usize,
        charged: usize,
        held: Vec<Held>,
    ) -> Self {
        Self { proposer, outcome, bytes, charged, held, started: Instant::now(), landed: false }
    }

    pub(crate) fn outcome(&self) -> &Arc<Outcome> {
        &self.outcome
    }

    /// The entry is applied. Answers its units, then lets the next entry go.
    pub(crate) fn committed(mut self, results: Vec<UnitResult>) {
        self.outcome.answer(results);
        self.land(true);
        self.proposer.next();
    }

    /// The entry was refused, or its fate is unknown; `error` says which.
    pub(crate) fn failed(mut self, error: &ProposeError) {
        self.outcome.fail(error);
        self.land(false);
        self.proposer.next();
    }

    /// The entry is refused before it was handed over: by the sink, while the queue is locked.
    pub(crate) fn refused(mut self, error: &ProposeError) {
        self.outcome.fail(error);
        self.land(false);
    }

    fn land(&mut self, committed: bool) {
        if !std::mem::replace(&mut self.landed, true) {
            self.proposer.landed(self.bytes, self.charged, self.started, committed);
            self.held.clear();
        }
    }
}

impl Drop for Flight {
    /// Nobody will answer. The queue is not touched: this may happen while it is locked.
    fn drop(&mut self) {
        if !self.landed {
            self.outcome.abandon();
            self.land(false);
        }
    }
}
