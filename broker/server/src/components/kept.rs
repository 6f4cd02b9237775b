//! Components that are kept though nothing names them yet: those that another broker asked this one to keep until they are registered, and
//! those whose upload ended before it was known whether they are.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tidemill_hosting::ComponentHold;
use tokio::time::Instant;

/// What nothing has named for so long was refused, or its upload given up: no request takes as long.
const UNNAMED_PATIENCE: Duration = Duration::from_secs(900);

/// Holds by digest. Each ends as soon as its component is seen named, which keeps it from then on; or after [`UNNAMED_PATIENCE`].
pub(crate) struct Kept<H = ComponentHold>(Mutex<HashMap<[u8; 32], Held<H>>>);

struct Held<H> {
    _hold: H,
    until: Instant,
    /// Something else named it before. That may go before what it is kept for is registered, so only time tells.
    was_named: bool,
}

impl<H> Default for Kept<H> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<H> Kept<H> {
    /// Keeps a component; whoever asked for that before waits no longer than who asks now.
    pub(super) fn keep(&self, digest: [u8; 32], hold: H, was_named: bool) {
        let held = Held { _hold: hold, until: Instant::now() + UNNAMED_PATIENCE, was_named };
        let earlier = self.0.lock().insert(digest, held);
        drop(earlier);
    }

    /// Ends the holds that have served their time. Whether a component may go by that: nothing names it.
    pub(super) fn look(&self, named: &HashSet<[u8; 32]>) -> bool {
        let now = Instant::now();
        let ended: Vec<([u8; 32], Held<H>)> = {
            let mut kept = self.0.lock();
            kept.extract_if(|digest, held| now >= held.until || (!held.was_named && named.contains(digest)))
                .collect()
        };
        ended.iter().any(|(digest, _)| !named.contains(digest))
    }
}

/// An upload that is being registered. Dropped before the outcome is known, it leaves its component kept: it may still be named.
pub(crate) struct Registering {
    pub(super) kept: Arc<Kept>,
    pub(super) digest: [u8; 32],
    pub(super) was_named: bool,
    pub(super) hold: Option<ComponentHold>,
}

impl Registering {
    /// The component is named by now, or never will be.
    pub(crate) fn settle(mut self) {
        drop(self.hold.take());
    }
}

impl Drop for Registering {
    fn drop(&mut self) {
        if let Some(hold) = self.hold.take() {
            self.kept.keep(self.digest, hold, self.was_named);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: [u8; 32] = [1; 32];
    const OTHER: [u8; 32] = [2; 32];

    /// A hold, and what tells how many there are of it.
    fn hold() -> (Arc<()>, impl Fn() -> bool) {
        let hold = Arc::new(());
        let watched = Arc::downgrade(&hold);
        (hold, move || watched.upgrade().is_some())
    }

    #[tokio::test(start_paused = true)]
    async fn a_component_is_kept_until_it_is_named() {
        let kept = Kept::default();
        let ((one, one_is_held), (other, other_is_held)) = (hold(), hold());
        kept.keep(ONE, one, false);
        kept.keep(OTHER, other, false);
        assert!(!kept.look(&HashSet::new()) && one_is_held() && other_is_held());
        tokio::time::advance(UNNAMED_PATIENCE / 2).await;
        assert!(!kept.look(&HashSet::from([ONE])), "what names it keeps it");
        assert!(!one_is_held() && other_is_held());
        assert!(!kept.look(&HashSet::new()) && other_is_held());
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_is_never_named_is_kept_for_a_while_only() {
        let kept = Kept::default();
        let ((first, first_is_held), (second, second_is_held)) = (hold(), hold());
        kept.keep(ONE, first, false);
        tokio::time::advance(UNNAMED_PATIENCE / 2).await;
        kept.keep(ONE, second, false);
        assert!(!first_is_held(), "one hold is enough");
        tokio::time::advance(UNNAMED_PATIENCE / 2).await;
        assert!(!kept.look(&HashSet::from([OTHER])) && second_is_held(), "from the last time on");
        tokio::time::advance(UNNAMED_PATIENCE / 2).await;
        assert!(kept.look(&HashSet::from([OTHER])), "it may go");
        assert!(!second_is_held() && !kept.look(&HashSet::new()));
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_is_named_already_is_kept_for_its_next_name() {
        let kept = Kept::default();
        let (again, is_held) = hold();
        kept.keep(ONE, again, true);
        assert!(!kept.look(&HashSet::from([ONE])) && is_held(), "by its earlier name");
        assert!(!kept.look(&HashSet::new()) && is_held(), "which may go");
        tokio::time::advance(UNNAMED_PATIENCE).await;
        assert!(!kept.look(&HashSet::from([ONE])) && !is_held(), "it is named: nothing is to go");
    }
}
