//! `tidemill group`: committed positions.

use std::collections::BTreeMap;

use clap::Subcommand;
use serde_json::{Value, json};
use tidemill_client::messages::GroupDescription;
use tidemill_client::{Client, Commit, ErrorCode, Offset, PartitionId, Position, TopicId, TopicPartition};

use crate::error::CliError;
use crate::{output, text};

/// Consumer groups' committed positions
#[derive(Debug, Subcommand)]
#[command(after_help = "\
Examples:
  tidemill consume plays --group royalties            read on from the group's positions, and commit
  tidemill group describe royalties                   where it stands, and how far behind
  tidemill group seek royalties plays --to earliest   let it read everything again

A group is its positions and has no members: two readers of one group each get everything.
Divide its partitions between them:
`tidemill consume plays --group royalties --partition 0`.")]
pub(crate) enum Group {
    /// Show the groups
    #[command(after_help = "Example:\n  tidemill group list")]
    List,
    /// Show a group's positions, and how far behind they are
    #[command(after_help = "Example:\n  tidemill group describe royalties")]
    Describe {
        /// Which group.
        group: String,
    },
    /// Set a position: the next offset to read
    #[command(after_help = "Example:\n  tidemill group commit royalties plays --partition 0 --offset 1200")]
    Commit {
        /// Which group.
        group: String,
        /// Of which topic.
        topic: String,
        /// Of which partition.
        #[arg(long)]
        partition: u32,
        /// The next offset to read.
        #[arg(long)]
        offset: i64,
    },
    /// Move all positions of a topic
    #[command(after_help = "\
Examples:
  tidemill group seek royalties plays --to earliest
  tidemill group seek royalties plays --to 2026-03-01T00:00:00Z")]
    Seek {
        /// Which group.
        group: String,
        /// Of which topic.
        topic: String,
        /// earliest, latest, an offset, -5m, or a time. An offset counts in each partition, so it mostly goes with --partition.
        #[arg(long, value_name = "POSITION", value_parser = text::position, allow_hyphen_values = true)]
        to: Position,
        /// Only this partition.
        #[arg(long)]
        partition: Option<u32>,
    },
    /// Forget a group
    #[command(after_help = "Example:\n  tidemill group delete royalties")]
    Delete {
        /// Which group.
        group: String,
    },
}

pub(crate) async fn run(group: Group, client: Client, json: bool) -> Result<(), CliError> {
    let groups = client.groups();
    match group {
        Group::List => {
            let names = groups.list().await?;
            output::print(json, &json!(names), || {
                let rows: Vec<Vec<String>> = names.iter().map(|name| vec![name.clone()]).collect();
                output::table(&["group"], &rows, &[]);
            })
        }
        Group::Describe { group } => {
            let description = groups.describe(&group).await?;
            describe(&client, &description, json).await
        }
        Group::Commit { group, topic, partition, offset } => {
            let metadata = client.topic_metadata(&topic).await?;
            let at = TopicPartition::new(metadata.id, PartitionId::new(partition));
            groups.commit(&group, &[Commit::new(at, Offset::new(offset))]).await?;
            let document =
                json!({ "group": group, "topic": topic, "partition": partition, "offset": offset });
            output::print(json, &document, || println!("{group} stands at {offset} of {topic}-{partition}"))
        }
        Group::Seek { group, topic, to, partition } => {
            let moved = seek(&client, &group, &topic, to, partition).await?;
            let documents: Vec<Value> = moved
                .iter()
                .map(|(partition, offset)| json!({ "partition": partition, "offset": offset }))
                .collect();
            output::print(json, &json!({ "group": group, "topic": topic, "positions": documents }), || {
                for (partition, offset) in &moved {
                    println!("{}", stands(&group, &format!("{topic}-{partition}"), to, *offset));
                }
            })
        }
        Group::Delete { group } => {
            groups.delete(&group).await?;
            output::print(json, &json!({ "deleted": group }), || println!("deleted group {group}"))
        }
    }
}

/// Where a group stands after it was sent somewhere: at the nearest offset there is.
fn stands(group: &str, partition: &str, sent_to: Position, offset: i64) -> String {
    if let Position::Offset(asked) = sent_to
        && asked.get() != offset
    {
        let where_it_lies = if asked.get() > offset { "beyond the end" } else { "before the start" };
        return format!("{asked} lies {where_it_lies} of {partition}: {group} stands at {offset}");
    }
    format!("{group} stands at {offset} of {partition}")
}

async fn seek(
    client: &Client,
    group: &str,
    topic: &str,
    to: Position,
    only: Option<u32>,
) -> Result<Vec<(u32, i64)>, CliError> {
    let metadata = client.topic_metadata(topic).await?;
    let queries: Vec<(TopicPartition, Position)> = metadata
        .partitions
        .iter()
        .filter(|partition| only.is_none_or(|only| only == partition.partition.get()))
        .map(|partition| (TopicPartition::new(metadata.id, partition.partition), to))
        .collect();
    if queries.is_empty() {
        let count = metadata.partitions.len();
        let reason = format!("topic '{topic}' has {count} partitions, numbered from 0");
        return Err(CliError::refused(ErrorCode::UnknownPartition, reason));
    }
    let mut commits = Vec::new();
    let mut moved = Vec::new();
    for ((partition, _), answer) in queries.iter().zip(client.offsets().find(&queries).await?) {
        let answer = answer?;
        commits.push(Commit::new(*partition, answer.offset));
        moved.push((partition.partition.get(), answer.offset.get()));
    }
    client.groups().commit(group, &commits).await?;
    Ok(moved)
}

async fn describe(client: &Client, group: &GroupDescription, json: bool) -> Result<(), CliError> {
    let mut names: BTreeMap<TopicId, String> = BTreeMap::new();
    let topics = client.topics();
    for name in topics.list().await? {
        names.insert(client.topic_metadata(&name).await?.id, name);
    }
    let queries: Vec<(TopicPartition, Position)> = group
        .offsets
        .iter()
        .filter_map(|offset| Some((offset.partition.as_ref()?.parse()?, Position::Latest)))
        .collect();
    let ends = client.offsets().find(&queries).await?;
    let mut rows = Vec::new();
    let mut documents = Vec::new();
    for ((offset, (partition, _)), end) in group.offsets.iter().zip(&queries).zip(ends) {
        let name = names.get(&partition.topic).cloned().unwrap_or_else(|| partition.topic.to_string());
        let end = end.ok().map(|answer| answer.offset.get());
        let behind = end.map(|end| end - offset.offset);
        rows.push(vec![
            name.clone(),
            partition.partition.to_string(),
            offset.offset.to_string(),
            end.map_or_else(|| "-".to_owned(), |end| end.to_string()),
            behind.map_or_else(|| "-".to_owned(), |behind| behind.to_string()),
            text::time(offset.committed_at),
        ]);
        documents.push(json!({
            "topic": name,
            "partition": partition.partition.get(),
            "offset": offset.offset,
            "high_watermark": end,
            "behind": behind,
            "committed_at": offset.committed_at,
            "note": offset.note,
        }));
    }
    output::print(json, &json!({ "group": group.group, "positions": documents }), || {
        output::table(
            &["topic", "partition", "position", "high watermark", "behind", "committed at"],
            &rows,
            &[1, 2, 3, 4],
        );
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offset_that_is_not_there_is_told() {
        let stands = |to: Position, offset: i64| stands("royalties", "plays-1", to, offset);
        let at = |offset: i64| Position::Offset(Offset::new(offset));
        assert_eq!(stands(at(2), 2), "royalties stands at 2 of plays-1");
        assert_eq!(stands(Position::Latest, 2), "royalties stands at 2 of plays-1");
        assert_eq!(stands(at(77), 2), "77 lies beyond the end of plays-1: royalties stands at 2");
        assert_eq!(stands(at(0), 2), "0 lies before the start of plays-1: royalties stands at 2");
    }
}
