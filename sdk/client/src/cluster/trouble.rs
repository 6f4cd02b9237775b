use std::fmt::Display;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use parking_lot::Mutex;

/// What keeps a client from its work just now, while it tries again by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// When it began.
    pub since: Instant,
    /// What the last attempt came to, for people.
    pub last: String,
}

/// The present trouble of a client, if any.
#[derive(Debug, Default)]
pub(super) struct Troubles {
    /// As below, for a look at each answer.
    is_any: AtomicBool,
    present: Mutex<Option<Trouble>>,
}

impl Troubles {
    /// An attempt failed and will be repeated.
    pub(super) fn began(&self, reason: &dyn Display) {
        let last = reason.to_string();
        let mut present = self.present.lock();
        let since = present.as_ref().map_or_else(Instant::now, |trouble| trouble.since);
        *present = Some(Trouble { since, last });
        self.is_any.store(true, Ordering::Relaxed);
    }

    /// Something went well.
    pub(super) fn ended(&self) {
        if self.is_any.load(Ordering::Relaxed) {
            let mut present = self.present.lock();
            *present = None;
            self.is_any.store(false, Ordering::Relaxed);
        }
    }

    pub(super) fn present(&self) -> Option<Trouble> {
        self.present.lock().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trouble_lasts_from_the_first_failure_until_something_goes_well() {
        let troubles = Troubles::default();
        troubles.ended();
        assert_eq!(troubles.present(), None);
        troubles.began(&"first");
        let since = troubles.present().expect("trouble").since;
        troubles.began(&"second");
        assert_eq!(troubles.present(), Some(Trouble { since, last: "second".to_owned() }));
        troubles.ended();
        assert_eq!(troubles.present(), None);
    }
}
