//! From flags and saved contexts to a connection.

use std::path::PathBuf;

use tidemill_client::{Client, ClientConfig, Trust};

use crate::arguments::Connection;
use crate::contexts::{Contexts, SavedContext, dev_authority};
use crate::error::CliError;

/// Connects as the flags, the environment and the saved contexts say, in this order.
pub(crate) async fn connect(connection: &Connection) -> Result<Client, CliError> {
    Ok(Client::connect(config(connection)?).await?)
}

fn config(connection: &Connection) -> Result<ClientConfig, CliError> {
    let saved = saved(connection)?;
    let addresses: Vec<String> = match &connection.address {
        Some(addresses) => addresses.split(',').map(|address| address.trim().to_owned()).collect(),
        None if !saved.addresses.is_empty() => saved.addresses.clone(),
        None => vec![format!("127.0.0.1:{}", tidemill_server::DEFAULT_PORT)],
    };
    let ca = connection.ca.clone().or(saved.ca).or_else(|| authority_of(&addresses));
    let mut config = ClientConfig::new(addresses).client_id("tidemill-cli");
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
