//! A unit's answer, to be awaited.

use std::pin::Pin;
use std::task::{Context, Poll};

use tidemill_shard::UnitResult;
use tokio::sync::oneshot;
use tokio::time::{Instant, Sleep};

use crate::error::ProposeError;

/// The answer to a submitted unit. Dropping it does not take the unit back.
///
/// It ends by the proposal's deadline at the latest, give or take an eighth of it.
#[derive(Debug)]
#[must_use = "the answer says whether the unit was written"]
pub struct Pending {
    answer: oneshot::Receiver<Result<UnitResult, ProposeError>>,
    /// The deadline, where nobody else sees to it.
    expires: Option<Pin<Box<Sleep>>>,
}

impl Pending {
    /// An answer that whoever has its other end sends by the deadline.
    pub(crate) fn new() -> (oneshot::Sender<Result<UnitResult, ProposeError>>, Self) {
        let (reply, answer) = oneshot::channel();
        (reply, Self { answer, expires: None })
    }

    /// An answer that may not come: from then on the outcome is unknown.
    pub(crate) fn until(expires: Instant) -> (oneshot::Sender<Result<UnitResult, ProposeError>>, Self) {
        let (reply, answer) = oneshot::channel();
        (reply, Self { answer, expires: Some(Box::pin(tokio::time::sleep_until(expires))) })
    }
}

impl Future for Pending {
    type Output = Result<UnitResult, ProposeError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if let Poll::Ready(answer) = Pin::new(&mut self.answer).poll(context) {
            return Poll::Ready(answer.unwrap_or(Err(ProposeError::OutcomeUnknown)));
        }
        match &mut self.expires {
            Some(expires) => expires.as_mut().poll(context).map(|()| Err(ProposeError::OutcomeUnknown)),
            None => Poll::Pending,
        }
    }
}
