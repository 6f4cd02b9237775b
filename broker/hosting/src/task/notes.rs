//! What a task's round did, for who looks on: a rehearsal, which has no other way to see it.

use tidemill_protocol::Offset;

use crate::failure::CallFailure;
use crate::port::DueTimer;

/// Of the last round.
#[derive(Debug, Default)]
pub(crate) struct Notes {
    /// What a call was given.
    pub(crate) given: Option<Given>,
    /// Why nothing of the call was committed.
    pub(crate) failure: Option<CallFailure>,
    /// Records that the policy left out or sent away, and why.
    pub(crate) disposed: Vec<(Offset, String)>,
}

/// What a call is given.
#[derive(Debug)]
pub(crate) enum Given {
    /// Records from this one on.
    Records { first: Offset, count: usize },
    /// Timers.
    Timers(Vec<DueTimer>),
}
