//! A value that others follow, and whose end they are told even while it is still held.

use parking_lot::RwLock;
use tokio::sync::watch;

/// The sending side. A channel of tokio's ends when its sender is dropped; a shard whose place another takes is held by
/// readers for a while, and whoever follows it must turn to the new one all the same.
pub(crate) struct Watched<T>(RwLock<State<T>>);

enum State<T> {
    Open(watch::Sender<T>),
    /// With the last value.
    Ended(T),
}

impl<T: Copy + PartialEq> Watched<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(RwLock::new(State::Open(watch::Sender::new(value))))
    }

    /// Follows the value; a receiver that has ended already where it has.
    pub(crate) fn subscribe(&self) -> watch::Receiver<T> {
        match &*self.0.read() {
            State::Open(sender) => sender.subscribe(),
            State::Ended(last) => watch::channel(*last).1,
        }
    }

    /// Wakes whoever follows, if this is another value.
    pub(crate) fn set(&self, value: T) {
        if let State::Open(sender) = &*self.0.read() {
            sender.send_if_modified(|published| std::mem::replace(published, value) != value);
        }
    }

    /// Changes the value and wakes whoever follows.
    pub(crate) fn modify(&self, change: impl FnOnce(&mut T)) {
        if let State::Open(sender) = &*self.0.read() {
            sender.send_modify(change);
        }
    }

    /// Tells whoever follows that nothing more comes.
    pub(crate) fn end(&self) {
        let mut state = self.0.write();
        if let State::Open(sender) = &*state {
            let last = *sender.borrow();
            *state = State::Ended(last);
        }
    }
}
