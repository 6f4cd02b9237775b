//! `tidemill cluster add`.

use std::time::Duration;

use clap::Args;
use serde_json::json;
use tidemill_client::messages::ClusterStatus;
use tidemill_client::{BrokerId, Client};

use super::which::MaybeBroker;
use crate::error::CliError;
use crate::{output, text};

/// See `tidemill cluster add`.
#[derive(Debug, Args)]
pub(crate) struct Add {
    #[command(flatten)]
    which: MaybeBroker,
    /// How long the token may be used, 7d at the most; unless said an hour.
    #[arg(long, value_name = "TIME", value_parser = validity)]
    valid: Option<Duration>,
}

/// What the broker allows, too.
const VALID_MAX: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// The protocol takes nothing for the broker's choice, which nobody means by saying it.
fn validity(text: &str) -> Result<Duration, String> {
    let time = text::duration(text)?;
    if time < Duration::from_secs(1) {
        return Err("nobody is so fast: a second at least".to_owned());
    }
    if time > VALID_MAX {
        return Err("7d at the most: whoever has the token gets the cluster's key".to_owned());
    }
    Ok(time)
}

/// So many brokers are named to the new one: one that is up is enough, and not all may be.
const SEEDS_MAX: usize = 3;

pub(super) async fn run(add: Add, client: Client, json: bool) -> Result<(), CliError> {
    // First, so that no token is made that nobody is told.
    let status = client.cluster_status().await?;
    let asked = add.which.number();
    if let Some(broker) = asked.filter(|broker| is_alive(&status, *broker)) {
        eprintln!("{}", replaces(broker));
    }
    let token = client.create_join_token(asked.map(BrokerId::new), add.valid).await?;
    let seeds = seeds(&status);
    let broker = asked.unwrap_or_else(|| next_broker(&status));
    let command = command(broker, &seeds, &token.token);
    let document = json!({
        "token": token.token, "expires_at": token.expires_at, "broker": asked, "seeds": seeds,
        "command": command,
    });
    output::print(json, &document, || {
        println!("{}", token.token);
        println!();
        let whom = asked.map_or_else(|| "one broker".to_owned(), |broker| format!("broker {broker}"));
        let until = text::time(token.expires_at);
        println!("It lets {whom} in, once, until {until}. Whoever has it gets the cluster's key.");
        println!("Start the new broker with it, on an empty data directory:");
        println!("  {command}");
    })
}

/// Whether a broker of this number is one of the cluster's, and there.
fn is_alive(status: &ClusterStatus, broker: u32) -> bool {
    let mut brokers = status.brokers.iter();
    brokers.any(|known| known.broker_id == broker && known.alive && known.state != "removed")
}

/// Mostly one more broker is meant.
fn replaces(broker: u32) -> String {
    format!(
        "warning: broker {broker} is alive; this token replaces its data directory, and works only once it is \
         stopped. For one more broker leave --broker out"
    )
}

/// Where to knock: brokers that are there.
fn seeds(status: &ClusterStatus) -> Vec<String> {
    let there = status.brokers.iter().filter(|broker| broker.alive && broker.state != "removed");
    there.filter_map(|broker| broker.peer_addresses.first().cloned()).take(SEEDS_MAX).collect()
}

/// A number that no broker ever had.
fn next_broker(status: &ClusterStatus) -> u32 {
    status.brokers.iter().map(|broker| broker.broker_id).max().unwrap_or(0).saturating_add(1)
}

/// What starts the new broker; its directory and address are for whoever starts it to say.
fn command(broker: u32, seeds: &[String], token: &str) -> String {
    let mut command = format!("tidemill server --broker-id {broker} --data-dir DIR --listen ADDRESS:PORT");
    if seeds.is_empty() {
        command.push_str(" --seed HOST:PORT");
    }
    for seed in seeds {
        command.push_str(&format!(" --seed {seed}"));
    }
    command.push_str(&format!(" --join {token}"));
    command
}

#[cfg(test)]
mod tests {
    use tidemill_client::messages::BrokerStatus;

    use super::*;

    fn broker(id: u32, alive: bool, state: &str) -> BrokerStatus {
        BrokerStatus {
            broker_id: id,
            alive,
            state: state.to_owned(),
            peer_addresses: vec![format!("log{id}:9640"), format!("10.0.0.{id}:9640")],
            ..BrokerStatus::default()
        }
    }

    #[test]
    fn the_new_broker_is_sent_to_those_that_are_there() {
        let brokers = vec![
            broker(1, false, "active"),
            broker(2, true, "active"),
            BrokerStatus { peer_addresses: Vec::new(), ..broker(3, true, "active") },
            broker(4, true, "draining"),
            broker(7, true, "removed"),
        ];
        let status = ClusterStatus { brokers, ..ClusterStatus::default() };
        assert_eq!(seeds(&status), ["log2:9640", "log4:9640"]);
        assert_eq!(next_broker(&status), 8);
        assert_eq!(
            command(8, &seeds(&status), "tmj1.x"),
            "tidemill server --broker-id 8 --data-dir DIR --listen ADDRESS:PORT \
             --seed log2:9640 --seed log4:9640 --join tmj1.x"
        );
        assert!(command(8, &[], "tmj1.x").contains(" --seed HOST:PORT "));
        assert!(is_alive(&status, 2) && is_alive(&status, 4));
        assert!(!is_alive(&status, 1) && !is_alive(&status, 7) && !is_alive(&status, 8));
        assert!(replaces(2).starts_with("warning: broker 2 is alive"), "{}", replaces(2));
    }

    #[test]
    fn a_token_is_valid_for_a_while() {
        assert_eq!(validity("10m"), Ok(Duration::from_secs(600)));
        assert_eq!(validity("7d"), Ok(VALID_MAX));
        assert!(validity("10d").is_err_and(|reason| reason.contains("7d at the most")));
        assert!(validity("0s").is_err() && validity("1ms").is_err() && validity("soon").is_err());
    }
}
