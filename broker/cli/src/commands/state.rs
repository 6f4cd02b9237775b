//! `tidemill state`.

use clap::Subcommand;
use serde_json::{Value, json};
use tidemill_client::messages::StateEntry;
use tidemill_client::{Client, PartitionId, StateRange};

use crate::error::CliError;
use crate::output;

/// Keyed state
#[derive(Debug, Subcommand)]
#[command(after_help = "\
Examples:
  tidemill state scan plays-per-song                   which keys there are
  tidemill state get plays-per-song 'total:\"s-17\"'    one of them: what keys look like is the plugin's choice")]
pub(crate) enum State {
    /// Show a key's value in each task that has it
    #[command(after_help = "\
Example:
  tidemill state get plays-per-song 'total:\"s-17\"'    plays of a song that the plugin count-by-field counted")]
    Get {
        /// Which hosted consumer.
        deployment: String,
        /// The key.
        key: String,
        /// Only this partition's task.
        #[arg(long)]
        partition: Option<u32>,
    },
    /// Show keys in order
    #[command(after_help = "\
Examples:
  tidemill state scan plays-per-song --limit 20
  tidemill state scan plays-per-song --prefix 'total:\"s-1' --json   songs whose id begins with s-1")]
    Scan {
        /// Which hosted consumer.
        deployment: String,
        /// Only keys that begin so.
        #[arg(long, default_value = "")]
        prefix: String,
        /// Only this partition's task.
        #[arg(long)]
        partition: Option<u32>,
        /// At most so many.
        #[arg(long, default_value_t = 100)]
        limit: u32,
    },
}

pub(crate) async fn run(state: State, client: Client, json: bool) -> Result<(), CliError> {
    match state {
        State::Get { deployment, key, partition } => {
            let entries = client.state(deployment).get(key.clone(), partition.map(PartitionId::new)).await?;
            if !entries.is_empty() || json {
                show(&entries, false, json)?;
            }
            if entries.is_empty() {
                return Err(CliError::NotThere(format!(
                    "no task has the key '{key}'; `tidemill state scan` shows which there are"
                )));
            }
            Ok(())
        }
        State::Scan { deployment, prefix, partition, limit } => {
            let range = StateRange {
                end: beyond(prefix.as_bytes()).map(Into::into),
                start: prefix.into_bytes().into(),
                partition: partition.map(PartitionId::new),
                limit,
            };
            let page = client.state(deployment).scan(range).await?;
            show(&page.entries, page.more, json)
        }
    }
}

/// The least key beyond all that begin with `prefix`.
fn beyond(prefix: &[u8]) -> Option<Vec<u8>> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return Some(end);
        }
    }
    None
}

fn show(entries: &[StateEntry], more: bool, json: bool) -> Result<(), CliError> {
    let documents: Vec<Value> = entries
        .iter()
        .map(|entry| {
            json!({
                "partition": entry.partition,
                "key": readable(&entry.key),
                "value": readable(&entry.value),
            })
        })
        .collect();
    output::print(json, &json!({ "entries": documents, "more": more }), || {
        let rows: Vec<Vec<String>> = entries
            .iter()
            .map(|entry| vec![entry.partition.to_string(), readable(&entry.key), readable(&entry.value)])
            .collect();
        output::table(&["partition", "key", "value"], &rows, &[0]);
        if more {
            println!("there are more: raise --limit, or narrow --prefix");
        }
    })
}

/// Text as it is; an eight-byte value that is no text as a little-endian number; other bytes in hexadecimal.
fn readable(bytes: &[u8]) -> String {
    let printable = |text: &str| !text.chars().any(char::is_control);
    match (std::str::from_utf8(bytes), <[u8; 8]>::try_from(bytes)) {
        (Ok(text), _) if printable(text) => text.to_owned(),
        (_, Ok(number)) => u64::from_le_bytes(number).to_string(),
        _ => bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_before_the_next_one() {
        assert_eq!(beyond(b"ab"), Some(b"ac".to_vec()));
        assert_eq!(beyond(&[1, 255]), Some(vec![2]));
        assert_eq!(beyond(&[255]), None);
        assert_eq!(beyond(b""), None);
    }

    #[test]
    fn values_are_shown_as_what_they_look_like() {
        assert_eq!(readable("söng".as_bytes()), "söng");
        assert_eq!(readable(&7u64.to_le_bytes()), "7");
        assert_eq!(readable(&[0, 255]), "00ff");
    }
}
