//! `tidemill cluster set`.

use std::time::Duration;

use clap::Args;
use tidemill_client::Client;

use super::status;
use crate::error::CliError;
use crate::{output, text};

/// See `tidemill cluster set`.
#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
pub(crate) struct Set {
    /// How long a broker may be dead before its replicas are rebuilt on others, up to 30d.
    #[arg(long, value_name = "TIME", value_parser = text::duration)]
    rebuild_delay: Option<Duration>,
    /// The rate of what each broker sends to new replicas and to those that lack more than the log holds:
    /// bytes a second, such as 50MiB, or unlimited.
    #[arg(long, value_name = "BYTES", value_parser = rate)]
    snapshot_rate: Option<u64>,
}

/// A size, or `unlimited` as 0, which is what the protocol has for it.
fn rate(text: &str) -> Result<u64, String> {
    match text {
        "unlimited" => Ok(0),
        _ => match text::size(text)? {
            0 => Err("nothing would be sent at all: a rate such as 50MiB, or unlimited".to_owned()),
            bytes => Ok(bytes),
        },
    }
}

pub(super) async fn run(set: Set, client: Client, json: bool) -> Result<(), CliError> {
    client.alter_cluster(set.rebuild_delay, set.snapshot_rate).await?;
    let settings = client.cluster_status().await?.settings.unwrap_or_default();
    output::print(json, &status::settings_document(&settings), || {
        output::facts(&status::settings_facts(&settings));
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_a_size_or_unlimited_and_never_nothing() {
        assert_eq!(rate("50MiB"), Ok(50 << 20));
        assert_eq!(rate("unlimited"), Ok(0));
        assert!(rate("0").is_err_and(|reason| reason.contains("unlimited")));
        assert!(rate("fast").is_err());
    }
}
