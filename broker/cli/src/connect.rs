//! From flags and saved contexts to a connection.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use tidemill_client::{Client, ClientConfig, ConnectError, Trust};

use crate::arguments::Connection;
use crate::contexts::{Contexts, SavedContext, dev_authority};
use crate::error::CliError;
use crate::waiting::{Broker, Progress};

/// Pause between attempts to connect, where there is more than one.
const CONNECT_PAUSE: Duration = Duration::from_millis(500);

/// Connects as the flags, the environment and the saved contexts say, in this order. With `--timeout` a broker may take that long to
/// come up.
pub(crate) async fn connect(connection: &Connection) -> Result<(Client, Broker), CliError> {
    let (config, context) = config(connection)?;
    let is_alone = config.addresses().len() == 1;
    let failed = |error: ConnectError| CliError::Connect { error, context: context.clone(), is_alone };
    let broker = Broker { addresses: config.addresses().join(","), timeout: connection.timeout };
    // A client that connects when it is used: it says what keeps it from that.
    let client = Client::detached(config.clone()).map_err(failed)?;
    let connecting = async {
        let Some(limit) = broker.timeout else { return until_willing(&client).await.map_err(failed) };
        let mut last = ConnectError::TimedOut { address: broker.addresses.clone(), after: limit };
        let trying = async {
            loop {
                match client.connected().await {
                    Err(error) if error.retriable() => last = error,
                    done => return done,
                }
                tokio::time::sleep(CONNECT_PAUSE).await;
            }
        };
        match tokio::time::timeout(limit, trying).await {
            Ok(done) => done.map_err(failed),
            Err(_) => Err(failed(last)),
        }
    };
    let gives_up_after = broker.timeout.unwrap_or(CONNECT_TIMEOUT);
    let asking = || Progress { is_waiting: true, answers: 0 };
    broker.told(&client, gives_up_after, asking, connecting).await?;
    Ok((client, broker))
}

/// One that is stopping may be back at once: it is asked again for as long as one that is silent would be waited for.
async fn until_willing(client: &Client) -> Result<(), ConnectError> {
    let begun = Instant::now();
    loop {
        match client.connected().await {
            Err(ConnectError::Busy { .. }) if begun.elapsed() < CONNECT_TIMEOUT => {}
            done => return done,
        }
        tokio::time::sleep(CONNECT_PAUSE).await;
    }
}

/// How long one attempt to connect takes at the most.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How to reach a broker, and the name of the saved context that had a say in it.
fn config(connection: &Connection) -> Result<(ClientConfig, Option<String>), CliError> {
    let (context, saved) = saved(connection)?.unzip();
    let saved = saved.unwrap_or_default();
    let addresses: Vec<String> = match &connection.address {
        Some(addresses) => addresses_of(addresses)?,
        None if !saved.addresses.is_empty() => {
            saved.addresses.iter().map(|address| with_port(address)).collect()
        }
        None => vec![with_port("127.0.0.1")],
    };
    let ca = connection.ca.clone().or(saved.ca).or_else(|| authority_of(&addresses));
    let mut config = ClientConfig::new(addresses).client_id("tidemill-cli").connect_timeout(CONNECT_TIMEOUT);
    if let Some(timeout) = connection.timeout {
        config = config.request_timeout(timeout);
    }
    config = match ca {
        Some(ca) => config.trust_file(ca),
        None => config.trust(Trust::System),
    };
    if let Some(rack) = saved.rack {
        config = config.rack(rack);
    }
    let identity = connection.certificate.clone().zip(connection.certificate_key.clone());
    if let Some((certificate, key)) = identity.or_else(|| saved.certificate.zip(saved.key)) {
        config = config.identity(certificate, key);
    }
    Ok((config, context))
}

/// The addresses of a list with commas, each with its port.
pub(crate) fn addresses_of(list: &str) -> Result<Vec<String>, CliError> {
    if list.split(',').any(|address| address.trim().is_empty()) {
        return Err(CliError::usage(
            "--address, or TIDEMILL_ADDRESS, has an empty address: name a broker as HOST:PORT, several with \
             commas, or leave it out",
        ));
    }
    Ok(list.split(',').map(|address| with_port(address.trim())).collect())
}

/// The usual port where an address names none. IPv6 addresses need their brackets: without them the last group is the port.
fn with_port(address: &str) -> String {
    let names_port = address.contains(':') && !address.ends_with(']');
    if names_port {
        return address.to_owned();
    }
    format!("{address}:{}", tidemill_server::DEFAULT_PORT)
}

/// The saved context that counts, if any, with its name.
fn saved(connection: &Connection) -> Result<Option<(String, SavedContext)>, CliError> {
    let mut contexts = Contexts::load()?;
    // A variable that is set to nothing names none.
    let named = connection.context.clone().filter(|name| !name.is_empty());
    let name = match (named, &connection.address) {
        (Some(name), _) => name,
        // An address on the command line stands for itself.
        (None, Some(_)) => return Ok(None),
        (None, None) => match contexts.current.take() {
            Some(name) => name,
            None => return Ok(None),
        },
    };
    match contexts.contexts.remove(&name) {
        Some(saved) => Ok(Some((name, saved))),
        None => {
            Err(CliError::usage(format!("there is no context '{name}'; `tidemill context list` shows them")))
        }
    }
}

/// The authority that a `tidemill dev` or `tidemill server` on this machine left for its port.
fn authority_of(addresses: &[String]) -> Option<PathBuf> {
    addresses.iter().find_map(|address| {
        let port = address.rsplit_once(':')?.1.parse().ok()?;
        dev_authority(port).ok().filter(|path| path.exists())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_without_a_port_have_the_usual_one() {
        assert_eq!(
            addresses_of("log1, log2:1,10.0.0.1,[::1],[::1]:2").expect("addresses"),
            ["log1:9630", "log2:1", "10.0.0.1:9630", "[::1]:9630", "[::1]:2"]
        );
        // It is an error, and remains one.
        assert_eq!(addresses_of("log1:").expect("who connects says so"), ["log1:"]);
        for empty in ["", "log1,", ",log1", " "] {
            assert_eq!(addresses_of(empty).expect_err(empty).exit_code(), 2);
        }
    }
}
