//! What clients are refused, in the broker's log. Anybody may cause it at will, so there are so many lines of each kind and
//! no more; metrics count all of them.

use std::fmt::Display;

use tidemill_net::LogBudget;
use tidemill_protocol::messages::Error;

/// What was refused. Each kind has lines of its own, so that a flood of one does not hide the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    /// A connection that began wrong.
    Connection,
    /// A stream whose first frame does not say what it is for.
    Stream,
    /// A frame that does not read.
    Frame,
    /// A batch of a producer.
    Batch,
    /// A request.
    Request,
    /// A partition of a subscription.
    Subscription,
}

static BUDGETS: [LogBudget; 6] = [const { LogBudget::new() }; 6];

impl Refused {
    fn name(self) -> &'static str {
        match self {
            Self::Connection => "connection",
            Self::Stream => "stream",
            Self::Frame => "frame",
            Self::Batch => "batch",
            Self::Request => "request",
            Self::Subscription => "subscription",
        }
    }
}

/// Logs a refusal, if this kind may be logged just now.
pub(crate) fn note(what: Refused, who: &dyn Display, error: &Error) {
    let Some(left_out) = BUDGETS[what as usize].take() else { return };
    let (what, code) = (what.name(), code(error));
    tracing::info!(what, code, client = %who, left_out, "refused: {}", error.message);
}

/// Counts and logs a batch that was refused before it was proposed.
pub(crate) fn batch(topic: &dyn Display, error: &Error) {
    metrics::counter!("tidemill_produce_refused_total", "code" => code(error)).increment(1);
    note(Refused::Batch, topic, error);
}

/// The name of an error's code, for logs and metrics.
pub(crate) fn code(error: &Error) -> &'static str {
    error.error_code().map_or("UNKNOWN", tidemill_protocol::ErrorCode::name)
}
