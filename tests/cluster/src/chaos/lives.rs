//! How brokers' processes end: by what is done to them, or by themselves, which they should not; and what their logs say that none should.
//!
//! A broker whose disk fails lives on, and one that refuses to start never lived: what is rightly over by itself is only a broker that
//! was removed.

use super::findings::{Findings, ViolationKind};
use super::siege::Siege;
use crate::{Outcome, TestBroker, WorldError};

/// In the log of a broker, or of a process that it started, of which a thread panicked.
pub(super) const PANICKED: &str = "panicked at";
/// What a broker says before it ends because it is none of its cluster's any more.
const DISMISSED: &str = "the cluster does not want this broker";
/// What replicas say that find their states to differ: the one that went astray, those that did not, and those that can't tell.
const DIFFERENT: [&str; 3] =
    ["went astray", "and a majority, this replica among them, has", "have different states"];

/// Whether a broker that should be running has ended by itself. That is a finding, told once.
pub(super) async fn has_ended(
    id: u32,
    broker: &mut TestBroker,
    findings: &mut Findings,
) -> Result<bool, WorldError> {
    let ended = broker.has_ended()?;
    findings.check(ended.is_none(), ViolationKind::Stopped, || {
        let how = ended.map(|status| status.to_string()).unwrap_or_default();
        format!("broker {id} ended by itself with {how}; its log ends:\n{}", broker.log_tail())
    });
    if ended.is_some() {
        // It is not asked again.
        broker.kill().await?;
    }
    Ok(ended.is_some())
}

/// kill -9 of a broker that should be running; `false`: it had ended by itself.
pub(super) async fn kill(
    id: u32,
    broker: &mut TestBroker,
    findings: &mut Findings,
) -> Result<bool, WorldError> {
    if has_ended(id, broker, findings).await? {
        return Ok(false);
    }
    broker.kill().await?;
    Ok(true)
}

/// Stops a broker that should be running. It says that it could: nobody is stopped while its disk fails.
pub(super) async fn stop(
    id: u32,
    broker: &mut TestBroker,
    findings: &mut Findings,
) -> Result<(), WorldError> {
    if has_ended(id, broker, findings).await? {
        return Ok(());
    }
    let status = broker.stop().await?;
    findings.check(status.success(), ViolationKind::Stopped, || {
        format!("broker {id} was to stop and ended with {status}; its log ends:\n{}", broker.log_tail())
    });
    Ok(())
}

/// Checks all that a broker has ever said.
pub(super) fn check_log_of(id: u32, log: &str, findings: &mut Findings) {
    let complaints = complaints(log);
    findings.check(!log.is_empty(), ViolationKind::Stopped, || format!("broker {id} has no log"));
    for (kind, what) in complaints {
        findings.check(false, kind, || format!("broker {id} says: {what}"));
    }
}

/// What a log says that none should.
fn complaints(log: &str) -> Vec<(ViolationKind, String)> {
    let mut found = Vec::new();
    let mut lines = log.lines().peekable();
    while let Some(line) = lines.next() {
        if line.contains(PANICKED) {
            // The place; the reason is on the next line.
            let reason = lines.peek().copied().unwrap_or_default();
            found.push((ViolationKind::Panicked, format!("{} {}", line.trim(), reason.trim())));
        } else if DIFFERENT.iter().any(|words| line.contains(words)) {
            found.push((ViolationKind::Replica, line.trim().to_owned()));
        }
    }
    found
}

impl Siege<'_> {
    /// Tells of brokers that ended by themselves, and starts them again: the next fault would cover that up.
    pub(super) async fn look_for_the_ended(&mut self) -> Outcome<()> {
        for id in self.several.ids() {
            if self.is_dismissed(id)? {
                continue;
            }
            if has_ended(id, self.several.cluster.broker(id), self.findings).await? {
                self.recording.note(format!("broker {id} ended by itself"));
                self.start(id).await?;
            }
        }
        Ok(())
    }

    /// Whether a broker has ended because it was removed, of which who asked for that has not heard yet.
    fn is_dismissed(&mut self, id: u32) -> Outcome<bool> {
        if !self.members.is_leaving(id) {
            return Ok(false);
        }
        let broker = self.several.cluster.broker(id);
        Ok(broker.has_ended()?.is_some() && broker.log_tail().contains(DISMISSED))
    }

    /// kill -9 of a broker that should be running.
    pub(super) async fn kill(&mut self, id: u32) -> Outcome<()> {
        if self.is_dismissed(id)? {
            return self.kill_as_it_is(id).await;
        }
        if kill(id, self.several.cluster.broker(id), self.findings).await? {
            self.fires.kills += 1;
        }
        Ok(())
    }

    /// kill -9 of a broker whose disk fails, whatever that has done to it.
    pub(super) async fn kill_as_it_is(&mut self, id: u32) -> Outcome<()> {
        self.several.cluster.broker(id).kill().await?;
        self.fires.kills += 1;
        Ok(())
    }

    pub(super) async fn start(&mut self, id: u32) -> Outcome<()> {
        let took = self.several.cluster.broker(id).restart().await?;
        self.fires.starts.push(took);
        Ok(())
    }

    pub(super) async fn stop(&mut self, id: u32) -> Outcome<()> {
        stop(id, self.several.cluster.broker(id), self.findings).await?;
        self.away().await;
        self.start(id).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(log: &str) -> Vec<ViolationKind> {
        let mut findings = Findings::default();
        check_log_of(1, log, &mut findings);
        assert!(findings.checks() > 0);
        findings.kinds()
    }

    #[test]
    fn a_panic_is_found_with_its_place_and_its_reason() {
        let log = "{\"level\":\"INFO\",\"fields\":{\"message\":\"serving\"}}\n\n\
                   thread 'tokio-rt-worker' (7) panicked at broker/shard/src/apply.rs:7:9:\nno such partition\n\
                   note: run with `RUST_BACKTRACE=1`\n";
        let found = complaints(log);
        let [(ViolationKind::Panicked, what)] = &found[..] else { panic!("one is found: {found:?}") };
        assert!(
            what.contains("apply.rs:7:9: no such partition") && !what.contains("RUST_BACKTRACE"),
            "{what}"
        );
        assert_eq!(kinds(log), [ViolationKind::Panicked]);
        assert_eq!(complaints("thread 'main' panicked at").len(), 1, "killed while it said so");
    }

    #[test]
    fn replicas_that_differ_are_found_whoever_says_so() {
        for said in [
            "the state of this replica (1.1) of shard 2 as of entry 9 has hash aa, and a majority of its group has bb: it went astray, and",
            "the state of replica 1.1 of shard 2 as of entry 9 has hash aa, and a majority, this replica among them, has bb: it stops",
            "the replicas of shard 2 have different states as of entry 9, and no majority has the same",
        ] {
            assert_eq!(kinds(&format!("a line\n{said}\nanother\n")), [ViolationKind::Replica], "{said}");
        }
    }

    #[test]
    fn what_a_broker_says_otherwise_is_no_finding_and_no_log_is_one() {
        let log = "a shard stopped; what it acknowledged is on the disk\nit is retired, and comes back as a new one\n";
        assert_eq!(kinds(log), []);
        assert_eq!(kinds(""), [ViolationKind::Stopped]);
    }
}
