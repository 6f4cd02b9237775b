//! `tidemill deployment`.

use std::time::Duration;

use clap::Subcommand;
use serde_json::{Value, json};
use tidemill_client::messages::{self, DeploymentKind, DeploymentStatus, FailurePolicy};
use tidemill_client::{Client, messages::LogLine};

use crate::error::CliError;
use crate::{output, text};

/// What is deployed
#[derive(Debug, Subcommand)]
#[command(after_help = "\
Examples:
  tidemill deployment list
  tidemill deployment describe plays-per-song       tasks, positions, counters
  tidemill deployment logs plays-per-song --follow  what it logs, and what fails")]
pub(crate) enum Deployment {
    /// Show the deployments
    #[command(after_help = "Example:\n  tidemill deployment list")]
    List,
    /// Show one: configuration, tasks, positions, counters
    #[command(after_help = "Example:\n  tidemill deployment describe plays-per-song")]
    Describe {
        /// Which deployment.
        name: String,
    },
    /// Stop a hosted consumer's tasks where they are
    #[command(after_help = "Example:\n  tidemill deployment pause plays-per-song")]
    Pause {
        /// Which deployment.
        name: String,
    },
    /// Let it go on; also tasks that paused themselves
    #[command(after_help = "\
Example:
  tidemill deployment resume plays-per-song

A task that paused itself tries the same record again. Where that can never be handled,
delete the deployment, which forgets its state, and deploy it with another plugin version or
--policy.")]
    Resume {
        /// Which deployment.
        name: String,
    },
    /// Show what its instances logged, and what failed
    #[command(
        after_help = "Examples:\n  tidemill deployment logs plays-per-song\n  tidemill deployment logs plays-per-song --follow"
    )]
    Logs {
        /// Which deployment.
        name: String,
        /// Wait for more.
        #[arg(long, short)]
        follow: bool,
    },
    /// End it, and forget its state
    #[command(after_help = "Example:\n  tidemill deployment delete plays-per-song")]
    Delete {
        /// Which deployment.
        name: String,
    },
}

impl Deployment {
    /// Whether it has no end of its own.
    pub(crate) const fn runs_on(&self) -> bool {
        matches!(self, Self::Logs { follow: true, .. })
    }
}

pub(crate) async fn run(deployment: Deployment, client: Client, json: bool) -> Result<(), CliError> {
    let deployments = client.deployments();
    match deployment {
        Deployment::List => {
            let all = deployments.list().await?;
            let documents: Vec<Value> = all.iter().map(document).collect();
            output::print(json, &json!(documents), || list(&all))
        }
        Deployment::Describe { name } => show_one(&deployments.describe(&name).await?, json),
        Deployment::Pause { name } => show_one(&deployments.pause(&name).await?, json),
        Deployment::Resume { name } => show_one(&deployments.resume(&name).await?, json),
        Deployment::Logs { name, follow } => logs(&client, &name, follow, json).await,
        Deployment::Delete { name } => {
            deployments.delete(&name).await?;
            output::print(json, &json!({ "deleted": name }), || println!("deleted deployment {name}"))
        }
    }
}

async fn logs(client: &Client, name: &str, follow: bool, json: bool) -> Result<(), CliError> {
    const PAGE_LINES: u32 = 500;
    const POLL_INTERVAL: Duration = Duration::from_millis(500);
    let mut after = 0;
    loop {
        let page = client.deployments().logs(name, after, PAGE_LINES).await?;
        if page.dropped > 0 && after == 0 {
            eprintln!("({} older lines are no longer kept)", page.dropped);
        }
        page.lines.iter().for_each(|line| show_line(line, json));
        let done = page.lines.is_empty();
        after = page.next;
        if done && !follow {
            return Ok(());
        }
        if done {
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }
}

fn show_line(line: &LogLine, json: bool) {
    if json {
        let document = json!({
            "number": line.number, "time": line.time, "level": line.level, "partition": line.partition,
            "message": line.message,
        });
        println!("{document}");
        return;
    }
    let task = line.partition.map_or_else(String::new, |partition| format!(" [{partition}]"));
    println!("{} {:5}{task} {}", text::time(line.time), line.level, line.message);
}

/// Shows one deployment.
pub(crate) fn show_one(deployment: &messages::Deployment, json: bool) -> Result<(), CliError> {
    output::print(json, &document(deployment), || describe(deployment))
}

fn kind(deployment: &messages::Deployment) -> &'static str {
    match deployment.kind() {
        DeploymentKind::Partitioner => "partitioner",
        DeploymentKind::SubscriptionFilter => "filter",
        DeploymentKind::ProduceFilter => "produce filter",
        DeploymentKind::Consumer => "consumer",
        DeploymentKind::Unspecified => "?",
    }
}

/// As `--policy` has it.
const fn policy(policy: FailurePolicy) -> &'static str {
    match policy {
        FailurePolicy::Skip => "skip",
        FailurePolicy::DeadLetter => "dead-letter",
        FailurePolicy::Pause => "pause",
        FailurePolicy::Unspecified => "?",
    }
}

fn status(status: DeploymentStatus, reason: &str) -> String {
    let word = match status {
        // Not stopped, and not at work either.
        DeploymentStatus::Running if !reason.is_empty() => "waiting",
        DeploymentStatus::Running => "running",
        DeploymentStatus::Paused => "paused",
        DeploymentStatus::Failed => "failed",
        DeploymentStatus::Unspecified => "?",
    };
    if reason.is_empty() { word.to_owned() } else { format!("{word}: {reason}") }
}

fn list(deployments: &[messages::Deployment]) {
    let rows: Vec<Vec<String>> = deployments
        .iter()
        .map(|deployment| {
            let stopped =
                deployment.tasks.iter().filter(|task| task.status() != DeploymentStatus::Running).count();
            let tasks = match (deployment.tasks.len(), stopped) {
                (0, _) => String::new(),
                (all, 0) => all.to_string(),
                (all, stopped) => format!("{all} ({stopped} stopped)"),
            };
            vec![
                deployment.name.clone(),
                kind(deployment).to_owned(),
                format!("{}@{}", deployment.plugin, deployment.plugin_version),
                deployment.topics.join(","),
                deployment.targets.join(","),
                status(deployment.status(), &deployment.status_reason),
                tasks,
            ]
        })
        .collect();
    output::table(&["name", "kind", "plugin", "topics", "targets", "status", "tasks"], &rows, &[]);
}

fn describe(deployment: &messages::Deployment) {
    let config: Vec<String> = deployment.config.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let mut facts = vec![
        ("deployment", deployment.name.clone()),
        ("kind", kind(deployment).to_owned()),
        ("plugin", format!("{}@{}", deployment.plugin, deployment.plugin_version)),
        ("config", config.join(" ")),
        ("status", status(deployment.status(), &deployment.status_reason)),
    ];
    if !deployment.topics.is_empty() {
        facts.push(("topics", deployment.topics.join(", ")));
    }
    if !deployment.targets.is_empty() {
        facts.push(("targets", deployment.targets.join(", ")));
    }
    match deployment.kind() {
        DeploymentKind::Consumer => {
            let disposed = match deployment.policy() {
                FailurePolicy::DeadLetter => format!("dead-letter to {}", deployment.dead_letter_topic),
                other => policy(other).to_owned(),
            };
            facts.push(("policy", disposed));
            facts.push(("attempts", deployment.attempts.to_string()));
            facts.push(("backoff", output::duration(i64::from(deployment.backoff_ms))));
        }
        DeploymentKind::ProduceFilter => {
            let rejected = if deployment.drop_rejected { "left out" } else { "refused with their batch" };
            facts.push(("rejected records", rejected.to_owned()));
        }
        _ => {}
    }
    facts.push(("memory", output::bytes(deployment.memory_bytes_max)));
    let counters: Vec<String> =
        deployment.counters.iter().map(|(name, value)| format!("{name}={value}")).collect();
    facts.push(("counters", counters.join(" ")));
    output::facts(&facts);
    if deployment.tasks.is_empty() {
        return;
    }
    println!();
    let rows: Vec<Vec<String>> = deployment
        .tasks
        .iter()
        .map(|task| {
            let positions: Vec<String> = task
                .positions
                .iter()
                .map(|position| {
                    format!("{} {}/{}", position.topic, position.position, position.high_watermark)
                })
                .collect();
            vec![
                task.partition.to_string(),
                status(task.status(), &task.reason),
                positions.join(", "),
                output::bytes(task.state_bytes),
                output::bytes(task.outbox_bytes),
            ]
        })
        .collect();
    output::table(&["task", "status", "position/end", "state", "outbox"], &rows, &[0, 3, 4]);
}

fn document(deployment: &messages::Deployment) -> Value {
    let tasks: Vec<Value> = deployment
        .tasks
        .iter()
        .map(|task| {
            let positions: Vec<Value> = task
                .positions
                .iter()
                .map(|p| json!({ "topic": p.topic, "position": p.position, "high_watermark": p.high_watermark }))
                .collect();
            json!({
                "partition": task.partition,
                "status": status(task.status(), ""),
                "reason": task.reason,
                "positions": positions,
                "state_bytes": task.state_bytes,
                "outbox_bytes": task.outbox_bytes,
            })
        })
        .collect();
    // What a kind does not have is null.
    let of = |kind: DeploymentKind, value: Value| if deployment.kind() == kind { value } else { Value::Null };
    let consumers = |value: Value| of(DeploymentKind::Consumer, value);
    let dead_letter = Some(&deployment.dead_letter_topic).filter(|topic| !topic.is_empty());
    json!({
        "id": deployment.deployment_id,
        "name": deployment.name,
        "kind": kind(deployment),
        "plugin": deployment.plugin,
        "version": deployment.plugin_version,
        "config": deployment.config,
        "topics": deployment.topics,
        "targets": deployment.targets,
        "policy": consumers(json!(policy(deployment.policy()))),
        "dead_letter": dead_letter,
        "attempts": consumers(json!(deployment.attempts)),
        "backoff_ms": consumers(json!(deployment.backoff_ms)),
        "drop_rejected": of(DeploymentKind::ProduceFilter, json!(deployment.drop_rejected)),
        "memory_bytes_max": deployment.memory_bytes_max,
        "status": status(deployment.status(), ""),
        "reason": deployment.status_reason,
        "epoch": deployment.epoch,
        "created_at": deployment.created_at,
        "tasks": tasks,
        "counters": deployment.counters,
    })
}
