//! `tidemill deploy`: a plugin version bound to a place.

use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use tidemill_client::messages::FailurePolicy;
use tidemill_client::{Client, NewDeployment, Position};

use crate::commands::deployment;
use crate::error::CliError;
use crate::text;

/// Bind a plugin to a place
#[derive(Debug, Subcommand)]
#[command(after_help = "\
Examples:
  tidemill plugin describe field-hash         what it does, and which --set keys it has
  tidemill deploy partitioner by-user --plugin field-hash --topic plays --set field=user_id
  tidemill deployment describe by-user        how it is doing")]
pub(crate) enum Deploy {
    /// Place a topic's records (`tidemill produce --routed`)
    #[command(after_help = "\
Example:
  tidemill deploy partitioner by-user --plugin field-hash --topic plays --set field=user_id")]
    Partitioner(Partitioner),
    /// Filter what is produced to a topic, or name a filter for subscriptions
    #[command(after_help = "\
Examples:
  tidemill deploy filter phones --plugin json-filter --set where='device == \"phone\"'
      a filter that subscriptions ask for: tidemill consume plays --filter phones
  tidemill deploy filter no-emails --plugin redact --topic plays --set fields=email
      every record produced to plays passes it first")]
    Filter(Filter),
    /// Run a hosted consumer
    #[command(after_help = "\
Example:
  tidemill plugin upload target/plugins/components/count-by-field.wasm
  tidemill topic create top-songs --if-not-exists
  tidemill topic create plays-failed --if-not-exists
  tidemill deploy consumer plays-per-song-safe --plugin count-by-field --topic plays \\
      --target top-songs --set field=song_id --from earliest \\
      --policy dead-letter --dead-letter plays-failed

The topics that it reads must be there too: here plays. Without --from it begins at the end.
What is deployed is not changed in place: where a record may come that the plugin can't handle,
choose --policy skip or dead-letter from the start.")]
    Consumer(Consumer),
}

/// What every deployment has.
#[derive(Debug, Args)]
pub(crate) struct Common {
    /// A name for the deployment.
    name: String,
    /// The plugin: NAME or NAME@VERSION.
    #[arg(long, value_name = "NAME[@VERSION]")]
    plugin: String,
    /// Configuration; may be repeated. `tidemill plugin describe NAME` shows the keys.
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = text::key_value)]
    settings: Vec<(String, String)>,
    /// Memory of one instance.
    #[arg(long, value_name = "SIZE", value_parser = text::size)]
    memory: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct Partitioner {
    #[command(flatten)]
    common: Common,
    /// Whose records it places.
    #[arg(long)]
    topic: String,
}

#[derive(Debug, Args)]
pub(crate) struct Filter {
    #[command(flatten)]
    common: Common,
    /// Filter what is produced to this topic; without it the filter is for subscriptions.
    #[arg(long)]
    topic: Option<String>,
    /// Leave refused records out instead of refusing the whole batch.
    #[arg(long, requires = "topic")]
    drop_rejected: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Consumer {
    #[command(flatten)]
    common: Common,
    /// What it reads; may be repeated for co-partitioned topics.
    #[arg(long = "topic", required = true)]
    topics: Vec<String>,
    /// Where it may emit to; may be repeated.
    #[arg(long = "target", value_name = "TOPIC")]
    targets: Vec<String>,
    /// Where it begins: earliest, latest (what is written from now on), an offset, -5m, or a time.
    #[arg(long, value_name = "POSITION", value_parser = text::position, allow_hyphen_values = true, default_value = "latest")]
    from: Position,
    /// What becomes of a record that it can't handle. It can't be changed later.
    #[arg(long, value_enum, default_value_t = Policy::Pause)]
    policy: Policy,
    /// Where failed records go, with --policy dead-letter.
    #[arg(long, value_name = "TOPIC", required_if_eq("policy", "dead-letter"))]
    dead_letter: Option<String>,
    /// Tries of a batch before the policy decides.
    #[arg(long, default_value_t = 5)]
    attempts: u32,
    /// Wait between tries, doubled each time.
    #[arg(long, value_name = "TIME", value_parser = text::duration, default_value = "200ms")]
    backoff: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Policy {
    /// Count it, log it, go on.
    Skip,
    /// Send it to another topic, with the reason.
    DeadLetter,
    /// Stop before it.
    Pause,
}

pub(crate) async fn run(deploy: Deploy, client: Client, json: bool) -> Result<(), CliError> {
    let deployment = match deploy {
        Deploy::Partitioner(partitioner) => common(&partitioner.common, |name, plugin| {
            NewDeployment::partitioner(name, plugin, partitioner.topic.clone())
        }),
        Deploy::Filter(Filter { common: shared, topic: Some(topic), drop_rejected }) => {
            let deployment =
                common(&shared, |name, plugin| NewDeployment::produce_filter(name, plugin, topic.clone()));
            if drop_rejected { deployment.drop_rejected() } else { deployment }
        }
        Deploy::Filter(Filter { common: shared, topic: None, .. }) => {
            common(&shared, NewDeployment::subscription_filter)
        }
        Deploy::Consumer(consumer) => hosted(&consumer),
    };
    let created = client.deployments().create(deployment).await?;
    deployment::show_one(&created, json)
}

fn hosted(consumer: &Consumer) -> NewDeployment {
    let mut deployment = common(&consumer.common, NewDeployment::consumer)
        .start(consumer.from)
        .attempts(consumer.attempts, consumer.backoff)
        .policy(match consumer.policy {
            Policy::Skip => FailurePolicy::Skip,
            Policy::DeadLetter => FailurePolicy::DeadLetter,
            Policy::Pause => FailurePolicy::Pause,
        });
    for topic in &consumer.topics {
        deployment = deployment.topic(topic.clone());
    }
    for target in &consumer.targets {
        deployment = deployment.target(target.clone());
    }
    match &consumer.dead_letter {
        Some(topic) => deployment.dead_letter(topic.clone()),
        None => deployment,
    }
}

fn common(common: &Common, new: impl FnOnce(String, String) -> NewDeployment) -> NewDeployment {
    let (plugin, version) = text::name_version(&common.plugin);
    let mut deployment = new(common.name.clone(), plugin);
    if !version.is_empty() {
        deployment = deployment.version(version);
    }
    for (key, value) in &common.settings {
        deployment = deployment.set(key.clone(), value.clone());
    }
    match common.memory {
        Some(bytes) => deployment.memory_bytes_max(bytes),
        None => deployment,
    }
}
