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
    /// A stream that begins wrong, or goes on as it may not.
    Stream,
    /// What a stream should be for.
    Opening,
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
            Self::Opening => "opening",
            Self::Batch => "batch",
            Self::Request => "request",
            Self::Subscription => "subscription",
        }
    }
}

/// Logs a refusal, if this kind may be logged just now. A message may quote what was sent: of a long one the log has the beginning.
pub(crate) fn note(what: Refused, who: &dyn Display, error: &Error) {
    let Some(left_out) = BUDGETS[what as usize].take() else { return };
    let (what, code) = (what.name(), code(error));
    tracing::info!(what, code, client = %who, left_out, "refused: {:.1000}", error.message);
}

/// Counts and logs a stream that is given up for what its peer sent.
pub(crate) fn stream(who: &dyn Display, error: &Error) {
    metrics::counter!("tidemill_bad_streams_total").increment(1);
    note(Refused::Stream, who, error);
}

/// Counts and logs a produce stream or subscription that asked for what it can't have.
pub(crate) fn opening(who: &dyn Display, error: &Error) {
    metrics::counter!("tidemill_refused_openings_total", "code" => code(error)).increment(1);
    note(Refused::Opening, who, error);
}

/// Counts and logs a batch that is not stored, or not known to be.
pub(crate) fn batch(topic: &dyn Display, error: &Error) {
    metrics::counter!("tidemill_produce_refused_total", "code" => code(error)).increment(1);
    note(Refused::Batch, topic, error);
}

/// The name of an error's code, for logs and metrics.
pub(crate) fn code(error: &Error) -> &'static str {
    error.error_code().map_or("UNKNOWN", tidemill_protocol::ErrorCode::name)
}
