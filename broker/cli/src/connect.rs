//! From flags and saved contexts to a connection.

use std::path::PathBuf;
use std::time::Duration;

use tidemill_client::{Client, ClientConfig, ConnectError, Trust};

use crate::arguments::Connection;
use crate::contexts::{Contexts, SavedContext, dev_authority};
use crate::error::CliError;
use crate::waiting::{Broker, Progress};

/// Pause between attempts to connect, where `--timeout` asks for more than one.
const CONNECT_PAUSE: Duration = Duration::from_millis(500);

/// Connects as the flags, the environment and the saved contexts say, in this order. With `--timeout` a broker may take that long to
/// come up.
pub(crate) async fn connect(connection: &Connection) -> Result<(Client, Broker), CliError> {
    let config = config(connection)?;
    let broker = Broker { addresses: config.addresses().join(","), timeout: connection.timeout };
    // A client that connects when it is used: it says what keeps it from that.
    let client = Client::detached(config.clone())?;
    let connecting = async {
        let Some(limit) = broker.timeout else { return Ok(client.connected().await?) };
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
            Ok(done) => Ok(done?),
            Err(_) => Err(last.into()),
        }
    };
    let gives_up_after = broker.timeout.unwrap_or(CONNECT_TIMEOUT);
    let asking = || Progress { is_waiting: true, answers: 0 };
    broker.told(&client, gives_up_after, asking, connecting).await?;
    Ok((client, broker))
}

/// How long one attempt to connect takes at the most.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

fn config(connection: &Connection) -> Result<ClientConfig, CliError> {
    let saved = saved(connection)?;
    let addresses: Vec<String> = match &connection.address {
        Some(addresses) => addresses.split(',').map(|address| address.trim().to_owned()).collect(),
        None if !saved.addresses.is_empty() => saved.addresses.clone(),
        None => vec![format!("127.0.0.1:{}", tidemill_server::DEFAULT_PORT)],
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
    let identity = connection.certificate.clone().zip(connection.certificate_key.clone());
    if let Some((certificate, key)) = identity.or_else(|| saved.certificate.zip(saved.key)) {
        config = config.identity(certificate, key);
    }
    Ok(config)
}

fn saved(connection: &Connection) -> Result<SavedContext, CliError> {
    let contexts = Contexts::load()?;
    let name = match (&connection.context, &connection.address) {
        (Some(name), _) => name.clone(),
        // An address on the command line stands for itself.
        (None, Some(_)) => return Ok(SavedContext::default()),
        (None, None) => match contexts.current.clone() {
            Some(name) => name,
            None => return Ok(SavedContext::default()),
        },
    };
    contexts.contexts.get(&name).cloned().ok_or_else(|| {
        CliError::usage(format!("there is no context '{name}'; `tidemill context list` shows them"))
    })
}

/// The authority that a `tidemill dev` or `tidemill server` on this machine left for its port.
fn authority_of(addresses: &[String]) -> Option<PathBuf> {
    addresses.iter().find_map(|address| {
        let port = address.rsplit_once(':')?.1.parse().ok()?;
        dev_authority(port).ok().filter(|path| path.exists())
    })
}
