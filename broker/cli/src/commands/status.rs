//! `tidemill status`.

use serde_json::json;
use tidemill_client::Client;

use crate::error::CliError;
use crate::output;

pub(crate) async fn run(client: Client, json: bool) -> Result<(), CliError> {
    let status = client.cluster_status().await?;
    let shards: Vec<_> = status
        .shards
        .iter()
        .map(|shard| {
            json!({
                "shard": shard.shard, "state": shard.state, "term": shard.term, "applied": shard.applied,
                "checkpointed": shard.checkpointed, "partitions": shard.partitions, "reason": shard.reason,
            })
        })
        .collect();
    let document = json!({
        "broker": status.broker_id, "durability": status.durability, "wal_bytes": status.wal_bytes,
        "disk_free_bytes": status.disk_free_bytes, "disk_total_bytes": status.disk_total_bytes,
        "produce_refused": status.produce_refused, "disk_full": status.disk_full, "shards": shards,
    });
    output::print(json, &document, || {
        output::facts(&[
            ("broker", status.broker_id.to_string()),
            ("durability", status.durability.clone()),
            ("write-ahead log", output::bytes(status.wal_bytes)),
            (
                "disk",
                format!(
                    "{} free of {}",
                    output::bytes(status.disk_free_bytes),
                    output::bytes(status.disk_total_bytes)
                ),
            ),
        ]);
        if status.produce_refused {
            println!(
                "\nThe disk is nearly full: produce is refused and hosted consumers wait until there is room."
            );
        }
        if status.disk_full {
            println!("The reserve is given up, for retention alone: positions are refused too. Free space.");
        }
        println!();
        let rows: Vec<Vec<String>> = status
            .shards
            .iter()
            .map(|shard| {
                vec![
                    shard.shard.to_string(),
                    if shard.reason.is_empty() {
                        shard.state.clone()
                    } else {
                        format!("{}: {}", shard.state, shard.reason)
                    },
                    shard.term.to_string(),
                    shard.applied.to_string(),
                    shard.checkpointed.to_string(),
                    shard.partitions.to_string(),
                ]
            })
            .collect();
        output::table(
            &["shard", "state", "term", "applied", "checkpointed", "partitions"],
            &rows,
            &[0, 2, 3, 4, 5],
        );
    })
}
