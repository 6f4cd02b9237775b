//! In what a deployment that is asked for differs from the one that has its name, in words for people.

use std::fmt::Display;

use tidemill_protocol::{Offset, TopicPartition};

use crate::deployment::{DeploymentKind, DeploymentSpec, FailurePolicy, StartAt};
use crate::names::Name;

/// So much of a value is shown.
const SHOWN_CHARACTERS_MAX: usize = 200;

/// How a part is in what is there, and in what is asked for.
type Sides = fn(&DeploymentSpec, &DeploymentSpec) -> String;

impl DeploymentSpec {
    /// The first part in which this, which is asked for, is not as `other`, which is there.
    pub(crate) fn difference(&self, other: &Self) -> Option<String> {
        let policies = [self, other].map(|spec| (spec.policy, &spec.dead_letter));
        let parts: [(&str, bool, Sides); 12] = [
            ("kind", self.kind == other.kind, |has, asked| both(kind(has.kind), kind(asked.kind))),
            ("plugin", self.plugin == other.plugin, |has, asked| both(&has.plugin, &asked.plugin)),
            ("plugin version", self.version == other.version, |has, asked| {
                both(version(has), version(asked))
            }),
            ("configuration", self.config == other.config, configuration),
            ("list of topics", self.topics == other.topics, |has, asked| {
                both(names(&has.topics), names(&asked.topics))
            }),
            ("list of targets", self.targets == other.targets, |has, asked| {
                both(names(&has.targets), names(&asked.targets))
            }),
            ("start", self.start == other.start, |has, asked| both(start(&has.start), start(&asked.start))),
            ("failure policy", policies[0] == policies[1], |has, asked| both(policy(has), policy(asked))),
            ("number of attempts", self.attempts == other.attempts, |has, asked| {
                both(has.attempts, asked.attempts)
            }),
            ("back-off", self.backoff_ms == other.backoff_ms, |has, asked| {
                both(format!("{} ms", has.backoff_ms), format!("{} ms", asked.backoff_ms))
            }),
            ("limit on memory", self.memory_bytes_max == other.memory_bytes_max, |has, asked| {
                both(format!("{} bytes", has.memory_bytes_max), format!("{} bytes", asked.memory_bytes_max))
            }),
            ("way with rejected records", self.drop_rejected == other.drop_rejected, |has, asked| {
                both(rejected(has), rejected(asked))
            }),
        ];
        let Some((part, _, sides)) = parts.into_iter().find(|(_, is_same, _)| !is_same) else {
            // A part that the list lacks must not pass for the same.
            return (self != other).then(|| "setting".to_owned());
        };
        Some(format!("{part}: {}", sides(other, self)))
    }
}

fn both(has: impl Display, asked: impl Display) -> String {
    format!("it has `{}`, asked for was `{}`", shortened(&has), shortened(&asked))
}

fn shortened(value: &impl Display) -> String {
    let whole = value.to_string();
    let mut shown: String = whole.chars().take(SHOWN_CHARACTERS_MAX).collect();
    if shown.len() < whole.len() {
        shown.push_str("...");
    }
    shown
}

/// The key alone: a value may be a secret, and refusals are logged.
fn configuration(has: &DeploymentSpec, asked: &DeploymentSpec) -> String {
    let mut keys = has.config.keys().chain(asked.config.keys());
    let key = keys.find(|key| has.config.get(*key) != asked.config.get(*key));
    format!("`{}` is not the same", shortened(&key.map_or("", String::as_str)))
}

const fn kind(kind: DeploymentKind) -> &'static str {
    match kind {
        DeploymentKind::Partitioner => "partitioner",
        DeploymentKind::SubscriptionFilter => "filter for subscriptions",
        DeploymentKind::ProduceFilter => "produce filter",
        DeploymentKind::Consumer => "consumer",
    }
}

fn version(spec: &DeploymentSpec) -> &str {
    spec.version.as_ref().map_or("the newest", Name::as_str)
}

fn names(names: &[Name]) -> String {
    if names.is_empty() {
        return "none".to_owned();
    }
    let names: Vec<&str> = names.iter().map(Name::as_str).collect();
    names.join(", ")
}

fn start(start: &StartAt) -> String {
    match start {
        StartAt::Earliest => "earliest".to_owned(),
        StartAt::Latest => "latest".to_owned(),
        StartAt::Offsets(starts) => {
            let offset = |(of, offset): &(TopicPartition, Offset)| format!("{}: {offset}", of.partition);
            let offsets: Vec<String> = starts.iter().map(offset).collect();
            format!("offset by partition, {}", offsets.join(", "))
        }
    }
}

fn policy(spec: &DeploymentSpec) -> String {
    match (spec.policy, &spec.dead_letter) {
        (FailurePolicy::Skip, _) => "skip".to_owned(),
        (FailurePolicy::Pause, _) => "pause".to_owned(),
        (FailurePolicy::DeadLetter, None) => "dead-letter".to_owned(),
        (FailurePolicy::DeadLetter, Some(topic)) => format!("dead-letter to {topic}"),
    }
}

const fn rejected(spec: &DeploymentSpec) -> &'static str {
    if spec.drop_rejected { "leave them out" } else { "refuse the batch" }
}
