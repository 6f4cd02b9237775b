//! `tidemill inspect state`: a shard as its last checkpoint left it.

use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};
use tidemill_log::fs::{DirectoryLock, Storage};
use tidemill_log::segment::{SegmentFiles, SegmentFilesConfig};
use tidemill_protocol::{ShardId, TopicPartition};
use tidemill_shard::{Shard, ShardConfig};

use crate::error::CliError;
use crate::{output, text};

pub(super) fn inspect(data_dir: &Path, shard: ShardId, json: bool) -> Result<(), CliError> {
    let storage: Arc<dyn Storage> = Arc::new(super::storage(data_dir)?);
    // A shard that is open may complete what a crash left half-done: never beside a running broker.
    let _lock = DirectoryLock::acquire(storage.as_ref(), Path::new("lock"))
        .map_err(|error| CliError::usage(error.to_string()))?;
    let config = ShardConfig::new(shard);
    let dir = data_dir.join(&config.dir);
    if !dir.is_dir() {
        return Err(CliError::usage(format!("there is no shard {shard} in {}", data_dir.display())));
    }
    let files = SegmentFiles::new(storage, SegmentFilesConfig::default());
    let shard = Shard::open(config, &files).map_err(|error| CliError::other(error.to_string()))?;
    let held = Held::of(&shard);
    output::print(json, &held.document(), || held.show(&dir))
}

/// What a checkpoint holds.
struct Held {
    /// The Raft entry that it goes up to; `None` where there is no checkpoint.
    applied: Option<u64>,
    /// In milliseconds; `None` where nothing has been written.
    log_time: Option<i64>,
    topics: Vec<String>,
    groups: Vec<String>,
    tasks: usize,
    partitions: Vec<HeldPartition>,
    /// In the controller's shard only.
    registry: Option<Registry>,
}

struct HeldPartition {
    /// As people call it: a deleted topic's partition has none any more.
    name: Option<String>,
    directory: String,
    log_start: i64,
    high_watermark: i64,
    bytes: u64,
    segments: usize,
}

/// What the controller knows beside the topics.
struct Registry {
    plugins: Vec<String>,
    deployments: Vec<String>,
}

impl Held {
    fn of(shard: &Shard) -> Self {
        let adopted = shard.topics();
        let name = |id: TopicPartition| -> Option<String> {
            let topic = adopted.iter().find(|topic| topic.topic == id.topic)?;
            Some(format!("{}-{}", topic.name, id.partition))
        };
        let partitions = shard.partitions().into_iter().map(|(id, view)| HeldPartition {
            name: name(id),
            directory: id.to_string(),
            log_start: view.log_start.get(),
            high_watermark: view.high_watermark.get(),
            bytes: view.bytes,
            segments: view.segments,
        });
        let mut topics: Vec<String> = adopted.iter().map(|topic| topic.name.clone()).collect();
        let registry = shard.controller().map(|controller| {
            let live = controller.topics().filter(|topic| !topic.deleted);
            topics = live.map(|topic| topic.name.to_string()).collect();
            let plugins = controller.plugins().map(|plugin| format!("{}@{}", plugin.name, plugin.version));
            let deployed = controller.deployments().filter(|deployment| !deployment.deleted);
            Registry {
                plugins: plugins.collect(),
                deployments: deployed.map(|deployment| deployment.spec.name.to_string()).collect(),
            }
        });
        Self {
            applied: shard.applied().last.map(|id| id.index.get()),
            log_time: Some(shard.log_time().get()).filter(|time| *time > 0),
            partitions: partitions.collect(),
            topics,
            groups: shard.group_names(),
            tasks: shard.tasks().len(),
            registry,
        }
    }

    fn document(&self) -> Value {
        let partitions: Vec<Value> = self
            .partitions
            .iter()
            .map(|held| {
                json!({ "partition": held.directory, "name": held.name, "log_start": held.log_start,
                    "high_watermark": held.high_watermark, "bytes": held.bytes, "segments": held.segments })
            })
            .collect();
        let registry = self.registry.as_ref();
        json!({
            "applied": self.applied, "log_time": self.log_time, "topics": self.topics,
            "partitions": partitions, "groups": self.groups, "tasks": self.tasks,
            "plugins": registry.map(|registry| &registry.plugins),
            "deployments": registry.map(|registry| &registry.deployments),
        })
    }

    fn show(&self, dir: &Path) {
        let Some(applied) = self.applied else {
            self.show_nothing();
            return;
        };
        let mut facts = vec![
            ("as of Raft entry", applied.to_string()),
            ("log time", self.log_time.map_or_else(|| "-".to_owned(), text::time)),
            ("topics", or_none(&self.topics)),
        ];
        if let Some(registry) = &self.registry {
            facts.push(("plugins", or_none(&registry.plugins)));
            facts.push(("deployments", or_none(&registry.deployments)));
            output::facts(&facts);
            println!("\n{OF_THE_CONTROLLER}");
        } else {
            facts.push(("groups", or_none(&self.groups)));
            facts.push(("tasks", self.tasks.to_string()));
            facts.push(("segments in", format!("{}/TOPIC-ID-PARTITION", dir.display())));
            output::facts(&facts);
            println!();
            self.show_partitions();
        }
        println!("\nWhat the write-ahead log holds behind that entry is applied at the next start.");
    }

    /// Nothing is lost, and nothing must look as if it were.
    fn show_nothing(&self) {
        let nothing = "(no checkpoint yet: what was written since lies in the write-ahead log)";
        output::facts(&[("as of Raft entry", nothing.to_owned())]);
        if self.registry.is_some() {
            println!("\n{OF_THE_CONTROLLER}");
        }
        println!(
            "\nThe next start applies what the write-ahead log holds; `tidemill inspect wal` looks into it."
        );
    }

    fn show_partitions(&self) {
        let rows: Vec<Vec<String>> = self
            .partitions
            .iter()
            .map(|held| {
                vec![
                    held.name.clone().unwrap_or_else(|| "(deleted)".to_owned()),
                    held.directory.clone(),
                    held.log_start.to_string(),
                    held.high_watermark.to_string(),
                    output::bytes(held.bytes),
                    held.segments.to_string(),
                ]
            })
            .collect();
        output::table(
            &["partition", "directory", "log start", "high watermark", "bytes", "segments"],
            &rows,
            &[2, 3, 4, 5],
        );
    }
}

const OF_THE_CONTROLLER: &str =
    "Shard 0 is the controller. Records, groups and tasks are in the others: --shard 1 and up.";

fn or_none(names: &[String]) -> String {
    if names.is_empty() { "(none)".to_owned() } else { names.join(", ") }
}
