//! Says what a command waits for while no broker answers, and for how long.
//!
//! The client tries again by itself, which nobody at a terminal sees. Whoever waits hears of it on standard error: after a moment,
//! then every few seconds, and once more when it goes on.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use tidemill_client::Client;

use crate::error::{AWAY_ADVICE, CliError};

/// Whoever waits less than this is told nothing.
pub(crate) const QUIET: Duration = Duration::from_secs(2);
/// How often it is said again.
pub(crate) const AGAIN_AFTER: Duration = Duration::from_secs(10);
/// How often one looks.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// What a command wants of the broker, and has of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Progress {
    /// Something was asked for that has no answer yet.
    pub(crate) is_waiting: bool,
    /// Answers so far.
    pub(crate) answers: u64,
}

/// Who is waited for.
#[derive(Debug, Clone)]
pub(crate) struct Broker {
    /// As the user named it.
    pub(crate) addresses: String,
    /// `--timeout`.
    pub(crate) timeout: Option<Duration>,
}

/// Watches a command from outside.
struct Watch {
    broker: Broker,
    /// When the command gives up by itself, counted from the beginning of the trouble.
    gives_up_after: Option<Duration>,
    answers: u64,
    /// Since when nothing came.
    since: Instant,
    said: Option<Instant>,
}

impl Broker {
    fn nothing_for(&self, time: &impl std::fmt::Display) -> String {
        format!("no answer to what was asked by way of {} for {time}", self.addresses)
    }

    /// Runs `work`, which ends by itself where the broker stays away, and says what it waits for. `progress` is looked at now and
    /// then, beside what the client says of its connections.
    pub(crate) async fn told<T>(
        &self,
        client: &Client,
        gives_up_after: Duration,
        progress: impl Fn() -> Progress + Send + 'static,
        work: impl Future<Output = Result<T, CliError>>,
    ) -> Result<T, CliError> {
        let mut watch = Watch::new(self, Some(gives_up_after));
        let client = client.clone();
        // A task of its own: the command's may be busy for longer than one waits for a word.
        let watching = tokio::spawn(async move {
            loop {
                tokio::time::sleep(LOOK_EVERY).await;
                watch.look(progress(), client.trouble(), Instant::now());
            }
        });
        let done = work.await;
        watching.abort();
        done
    }

    /// As [`told`](Self::told), of a command that is one question after another.
    pub(crate) async fn asked<T>(
        &self,
        client: &Client,
        work: impl Future<Output = Result<T, CliError>>,
    ) -> Result<T, CliError> {
        let asking = || Progress { is_waiting: true, answers: 0 };
        self.told(client, self.timeout.unwrap_or(REQUEST_TIMEOUT), asking, work).await
    }

    /// Runs `work`, which would wait for the broker for ever: says what it waits for, and ends it after `limit` of trouble.
    pub(crate) async fn bounded<T>(
        &self,
        client: &Client,
        limit: Option<Duration>,
        work: impl Future<Output = Result<T, CliError>>,
    ) -> Result<T, CliError> {
        let mut watch = Watch::new(self, limit);
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                biased;
                done = &mut work => return done,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            let trouble = client.trouble();
            // Nothing new is no trouble here: a topic may be silent.
            let progress = Progress { is_waiting: trouble.is_some(), answers: 0 };
            let last = trouble.as_ref().map(|trouble| trouble.last.clone()).unwrap_or_default();
            let waited = watch.look(progress, trouble, Instant::now());
            if let (Some(waited), Some(limit)) = (waited, limit)
                && waited >= limit
            {
                let limit = humantime::format_duration(limit);
                return Err(CliError::Away(format!("{}: {last}. {AWAY_ADVICE}", self.nothing_for(&limit))));
            }
        }
    }
}

/// The deadline of a request where `--timeout` says no other.
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

impl Watch {
    fn new(broker: &Broker, gives_up_after: Option<Duration>) -> Self {
        Self { broker: broker.clone(), gives_up_after, answers: 0, since: Instant::now(), said: None }
    }

    /// Says what there is to say; answers for how long nothing came that was waited for.
    fn look(
        &mut self,
        progress: Progress,
        trouble: Option<tidemill_client::Trouble>,
        now: Instant,
    ) -> Option<Duration> {
        if !progress.is_waiting || progress.answers > self.answers {
            self.answers = progress.answers;
            self.since = now;
            if self.said.take().is_some() {
                eprintln!("there are answers again by way of {}", self.broker.addresses);
            }
            return None;
        }
        let waited = now.saturating_duration_since(self.since);
        let is_due = self.said.is_none_or(|said| now.saturating_duration_since(said) >= AGAIN_AFTER);
        if waited >= QUIET && is_due {
            self.said = Some(now);
            eprintln!("{}", self.words(waited, trouble.map(|trouble| trouble.last)));
        }
        Some(waited)
    }

    fn words(&self, waited: Duration, last: Option<String>) -> String {
        let why = last.map_or_else(String::new, |last| format!(" ({last})"));
        let until = match self.gives_up_after {
            Some(after) => format!("giving up after {}", humantime::format_duration(after)),
            None if std::io::stdin().is_terminal() => "until it is back; Ctrl-C ends this".to_owned(),
            None => "until it is back".to_owned(),
        };
        // As --timeout is given.
        let waited = humantime::format_duration(Duration::from_secs(waited.as_secs()));
        format!("waiting for an answer by way of {} for {waited}{why}; {until}", self.broker.addresses)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_hears_of_waiting_after_a_moment_and_not_all_the_time() {
        let broker = Broker { addresses: "log1:9630".to_owned(), timeout: None };
        let mut watch = Watch::new(&broker, Some(Duration::from_secs(30)));
        let begun = watch.since;
        let waiting = Progress { is_waiting: true, answers: 0 };
        let mut said = Vec::new();
        for quarter in 0..100 {
            let now = begun + LOOK_EVERY * quarter;
            let before = watch.said;
            assert_eq!(watch.look(waiting, None, now), Some(LOOK_EVERY * quarter));
            if watch.said != before {
                said.push(LOOK_EVERY * quarter);
            }
        }
        assert_eq!(said, [QUIET, QUIET + AGAIN_AFTER, QUIET + 2 * AGAIN_AFTER]);
        assert_eq!(
            watch.words(Duration::from_secs(12), Some("no broker answered".to_owned())),
            "waiting for an answer by way of log1:9630 for 12s (no broker answered); giving up after 30s"
        );
        // An answer begins it anew.
        let answered = Progress { answers: 1, ..waiting };
        assert_eq!(watch.look(answered, None, begun + Duration::from_secs(30)), None);
        assert_eq!(watch.look(answered, None, begun + Duration::from_secs(31)), Some(Duration::from_secs(1)));
        assert_eq!(watch.said, None);
    }
}
