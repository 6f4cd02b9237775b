//! Logs of the process: where they go, how much, and what would flood them.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tidemill_net::LogBudget;
use tracing::callsite::Identifier;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, fmt};

/// Says how much is logged, as `RUST_LOG` does.
const VARIABLE: &str = "TIDEMILL_LOG";
/// What the library of the consensus calls its own; see [`Calm`].
const CONSENSUS: &str = "openraft";
/// After its first lines, so often each warning of the consensus is repeated while its cause lasts.
const REPEAT_INTERVAL: Duration = Duration::from_secs(10);

/// Logs go to standard error; [`VARIABLE`] says how much.
pub(crate) fn start(is_server: bool, json: bool) {
    let default = if is_server { "info,openraft=warn" } else { "error" };
    let filter = EnvFilter::try_from_env(VARIABLE).unwrap_or_else(|_| EnvFilter::new(default));
    // Whoever asks for the library's own words gets all of them.
    let wants_all = std::env::var(VARIABLE).is_ok_and(|asked| asked.contains(CONSENSUS));
    let limited = tracing_subscriber::registry().with(filter).with(Calm::new(!wants_all));
    let lines = fmt::layer().with_ansi(std::io::stderr().is_terminal()).with_writer(std::io::stderr);
    if json {
        limited.with(lines.json()).init();
    } else {
        limited.with(lines.with_target(false)).init();
    }
}

/// Leaves out what the library of the consensus says again and again: while a broker is away, every shard's replica warns of it several
/// times a second, all day long. Each place in its code has its own budget; what is more detailed than a warning was asked for.
struct Calm {
    is_on: bool,
    /// As many as there are places in the library that warn.
    budgets: Mutex<HashMap<Identifier, Arc<LogBudget>>>,
}

impl Calm {
    fn new(is_on: bool) -> Self {
        Self { is_on, budgets: Mutex::default() }
    }

    fn budget(&self, place: Identifier) -> Arc<LogBudget> {
        let mut budgets = self.budgets.lock().unwrap_or_else(PoisonError::into_inner);
        let budget =
            budgets.entry(place).or_insert_with(|| Arc::new(LogBudget::with_interval(REPEAT_INTERVAL)));
        Arc::clone(budget)
    }
}

impl<S: Subscriber> Layer<S> for Calm {
    fn event_enabled(&self, event: &Event<'_>, _context: Context<'_, S>) -> bool {
        let about = event.metadata();
        if !self.is_on || !about.target().starts_with(CONSENSUS) || *about.level() > Level::WARN {
            return true;
        }
        match self.budget(about.callsite()).take() {
            None => false,
            Some(0) => true,
            Some(left_out) => {
                tracing::warn!(left_out, from = about.target(), "lines like the next one were left out");
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Counts what comes through.
    #[derive(Clone, Default)]
    struct Count(Arc<AtomicUsize>);

    impl<S: Subscriber> Layer<S> for Count {
        fn on_event(&self, _event: &Event<'_>, _context: Context<'_, S>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn written(is_on: bool, flood: impl Fn()) -> usize {
        let count = Count::default();
        let subscriber = tracing_subscriber::registry().with(Calm::new(is_on)).with(count.clone());
        tracing::subscriber::with_default(subscriber, || (0..100).for_each(|_| flood()));
        count.0.load(Ordering::Relaxed)
    }

    #[test]
    fn a_flood_of_the_consensus_is_a_few_lines_and_nothing_else_is_left_out() {
        let warn = || tracing::warn!(target: "openraft::core", "node 2 is unreachable");
        assert_eq!(written(true, warn), 10);
        assert_eq!(written(false, warn), 100, "it was asked for");
        assert_eq!(written(true, || tracing::debug!(target: "openraft::core", "asked for")), 100);
        assert_eq!(written(true, || tracing::warn!("our own words")), 100);
        let two = || {
            warn();
            tracing::error!(target: "openraft::replication", "another place");
        };
        assert_eq!(written(true, two), 20, "each place has its own");
    }
}
