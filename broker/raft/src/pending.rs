//! A unit's answer, to be awaited.

use std::pin::Pin;
use std::task::{Context, Poll};

use tidemill_shard::UnitResult;
use tokio::sync::oneshot;

use crate::error::ProposeError;

/// The answer to a submitted unit. Dropping it does not take the unit back.
///
/// It ends by the proposal's deadline at the latest, give or take an eighth of it.
#[derive(Debug)]
#[must_use = "the answer says whether the unit was written"]
pub struct Pending(oneshot::Receiver<Result<UnitResult, ProposeError>>);

impl Pending {
    pub(crate) fn new() -> (oneshot::Sender<Result<UnitResult, ProposeError>>, Self) {
        let (reply, answer) = oneshot::channel();
        (reply, Self(answer))
    }
}

impl Future for Pending {
    type Output = Result<UnitResult, ProposeError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(context).map(|answer| answer.unwrap_or(Err(ProposeError::OutcomeUnknown)))
    }
}
