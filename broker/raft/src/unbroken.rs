//! Calls of openraft that may be given up.
//!
//! Who first finds openraft's core gone waits for its end on behalf of all others (`RaftInner::join_core_task`). Were that call dropped
//! meanwhile, the next one would panic, and with it every later one. So a call that is dropped once the core has stopped goes on in a task
//! of its own, which does not take long.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures::FutureExt;
use futures::future::BoxFuture;
use openraft::Raft;
use openraft::async_runtime::watch::WatchReceiver;
use tokio::runtime::Handle;

use crate::state_machine::StateMachine;
use crate::types::TypeConfig;

type Core = Arc<Raft<TypeConfig, StateMachine>>;

/// A call that ends well however soon its caller loses interest.
pub(crate) struct Unbroken<T: Send + 'static> {
    raft: Core,
    call: Option<BoxFuture<'static, T>>,
}

impl<T: Send + 'static> Unbroken<T> {
    pub(crate) fn new<C: Future<Output = T> + Send + 'static>(
        raft: &Core,
        call: impl FnOnce(Core) -> C,
    ) -> Self {
        Self { raft: Arc::clone(raft), call: Some(call(Arc::clone(raft)).boxed()) }
    }

    /// Nobody waits for it any more, but it goes on.
    pub(crate) fn go_on(mut self) {
        Self::finish(self.call.take());
    }

    #[allow(clippy::disallowed_methods, reason = "it ends with openraft's core, which has stopped")]
    fn finish(call: Option<BoxFuture<'static, T>>) {
        // Without a runtime nothing runs any more that could call.
        if let Some((call, runtime)) = call.zip(Handle::try_current().ok()) {
            drop(runtime.spawn(call.map(drop)));
        }
    }
}

impl<T: Send + 'static> Future for Unbroken<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        let Some(call) = &mut self.call else { return Poll::Pending };
        let done = ready!(call.as_mut().poll(context));
        self.call = None;
        Poll::Ready(done)
    }
}

impl<T: Send + 'static> Drop for Unbroken<T> {
    fn drop(&mut self) {
        let call = self.call.take();
        // While the core runs it may wait for as long as a majority is away: then it is dropped like any other.
        if call.is_some() && self.raft.metrics().borrow_watched().running_state.is_err() {
            Self::finish(call);
        }
    }
}
