//! What is on its way and not answered yet, bounded in bytes.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What each message is charged beside its bytes, so that empty ones are bounded in number too.
const MESSAGE_OVERHEAD_BYTES: usize = 4 << 10;

/// Messages in flight, oldest first, each with a note about it. One message always may be, whatever its size.
pub(crate) struct Window<T> {
    room: Arc<Semaphore>,
    bytes_max: u32,
    flying: Mutex<VecDeque<(T, OwnedSemaphorePermit)>>,
}

impl<T> Window<T> {
    pub(crate) fn new(bytes_max: usize) -> Arc<Self> {
        let bytes_max = u32::try_from(bytes_max).unwrap_or(u32::MAX).max(1);
        // As many as a semaphore may have on any machine.
        let bytes_max = bytes_max.min(u32::MAX >> 3);
        let room = Arc::new(Semaphore::new(usize::try_from(bytes_max).unwrap_or(usize::MAX)));
        Arc::new(Self { room, bytes_max, flying: Mutex::new(VecDeque::new()) })
    }

    /// Waits until there is room for a message, and counts it from then on; `note` is made then.
    pub(crate) async fn admit(&self, note: impl FnOnce() -> T, bytes: usize) {
        let charged = u32::try_from(bytes.saturating_add(MESSAGE_OVERHEAD_BYTES)).unwrap_or(u32::MAX);
        let room = Arc::clone(&self.room).acquire_many_owned(charged.min(self.bytes_max)).await;
        // Nobody closes it.
        if let Ok(room) = room {
            self.flying.lock().push_back((note(), room));
        }
    }

    /// The oldest message is answered.
    pub(crate) fn answered(&self) -> Option<T> {
        self.flying.lock().pop_front().map(|(note, _room)| note)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.flying.lock().is_empty()
    }

    /// Looks at the oldest.
    pub(crate) fn oldest<R>(&self, look: impl FnOnce(&T) -> R) -> Option<R> {
        self.flying.lock().front().map(|(note, _)| look(note))
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn bytes_are_bounded_and_the_oldest_is_answered_first() {
        let window = Window::new(100 << 10);
        window.admit(|| 1, 60 << 10).await;
        assert!(window.admit(|| 2, 60 << 10).now_or_never().is_none(), "no room for both");
        window.admit(|| 3, 10).await;
        assert_eq!((window.answered(), window.oldest(|note| *note)), (Some(1), Some(3)));
        window.admit(|| 4, 60 << 10).await;
        assert_eq!((window.answered(), window.answered(), window.answered()), (Some(3), Some(4), None));
        window.admit(|| 5, usize::MAX).await;
        assert!(window.admit(|| 6, 0).now_or_never().is_none(), "the large one is alone");
        assert!(!window.is_empty());
    }
}
