//! How openraft answers a proposal: by calling back, on the task that applied it.

use openraft::OptionalSend;
use openraft::raft::responder::Responder;

use crate::types::TypeConfig;

/// Calls a closure with the outcome, or tells it that openraft let go of the proposal without one.
///
/// openraft's own responders are channels whose receiver needs a task per proposal. A closure lets the task that
/// applied an entry answer all of its units and propose the next entry at once.
pub(crate) struct CallbackResponder<T>(Option<Box<dyn FnOnce(Option<T>) + Send>>);

impl<T> CallbackResponder<T> {
    /// `callback` is called exactly once: with the outcome, or with `None` when there will never be one.
    pub(crate) fn new(callback: impl FnOnce(Option<T>) + Send + 'static) -> Self {
        Self(Some(Box::new(callback)))
    }
}

impl<T> Responder<TypeConfig, T> for CallbackResponder<T>
where
    T: OptionalSend + 'static,
{
    fn on_complete(mut self, result: T) {
        if let Some(callback) = self.0.take() {
            callback(Some(result));
        }
    }
}

impl<T> Drop for CallbackResponder<T> {
    fn drop(&mut self) {
        if let Some(callback) = self.0.take() {
            callback(None);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_dropped_proposal_is_told_so_once() {
        let (sender, receiver) = mpsc::channel();
        let answered = sender.clone();
        CallbackResponder::<u32>::new(move |outcome| answered.send(outcome).unwrap()).on_complete(5);
        drop(CallbackResponder::<u32>::new(move |outcome| sender.send(outcome).unwrap()));
        assert_eq!(receiver.iter().collect::<Vec<_>>(), [Some(5), None]);
    }
}
