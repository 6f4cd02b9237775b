use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::WELCOME;
use super::error::DialError;
use super::refusal::Fault;
use crate::tls::PEER_NAME;

/// Addresses of one host name that are tried.
const ADDRESSES_MAX: usize = 8;
/// A welcome is a byte; what later releases may add to it, this one does not read.
const WELCOME_BYTES_MAX: usize = 1_024;

/// Finds `address`, and tries what it stands for one by one until somebody lets us in.
pub(super) async fn reach(
    endpoint: &quinn::Endpoint,
    config: &quinn::ClientConfig,
    address: &str,
    timeout: Duration,
) -> Result<quinn::Connection, DialError> {
    let mut failure = None;
    for candidate in resolve(address, timeout).await? {
        let error = match attempt(endpoint, config, address, candidate, timeout).await {
            Ok(connection) => return Ok(connection),
            Err(error) => error,
        };
        // What somebody said is worth more than that nobody answered at the host's other address.
        if error.is_answer() || failure.is_none() {
            failure = Some(error);
        }
    }
    Err(failure.unwrap_or_else(|| DialError::Host {
        address: address.to_owned(),
        reason: "it has no address".to_owned(),
    }))
}

async fn resolve(address: &str, timeout: Duration) -> Result<Vec<SocketAddr>, DialError> {
    let wrong = |reason: &str| DialError::Address { address: address.to_owned(), reason: reason.to_owned() };
    let (host, port) = address.rsplit_once(':').ok_or_else(|| wrong("there is no port in it"))?;
    if host.is_empty() {
        return Err(wrong("there is no host in it"));
    }
    if port.parse::<u16>().map_or(true, |port| port == 0) {
        return Err(wrong("its port is no number from 1 to 65535"));
    }
    let unknown = |reason: String| DialError::Host { address: address.to_owned(), reason };
    // The system's resolver blocks: tokio asks it on a thread of its own.
    let found = tokio::time::timeout(timeout, tokio::net::lookup_host(address)).await;
    let found = found.map_err(|_| unknown(format!("the resolver did not answer within {timeout:.1?}")))?;
    Ok(found.map_err(|error| unknown(error.to_string()))?.take(ADDRESSES_MAX).collect())
}

async fn attempt(
    endpoint: &quinn::Endpoint,
    config: &quinn::ClientConfig,
    address: &str,
    candidate: SocketAddr,
    timeout: Duration,
) -> Result<quinn::Connection, DialError> {
    let begun = Instant::now();
    let failed = |fault| DialError::new(address, fault, begun.elapsed());
    let connecting =
        endpoint.connect_with(config.clone(), candidate, PEER_NAME).map_err(|error| match error {
            quinn::ConnectError::EndpointStopping => DialError::Closed,
            quinn::ConnectError::InvalidRemoteAddress(_) => DialError::Address {
                address: address.to_owned(),
                reason: format!(
                    "{candidate} can't be reached from the address that this broker's peers' port is bound to"
                ),
            },
            other => failed(Fault::Other(other.to_string())),
        })?;
    let shaking = async {
        let connection = connecting.await.map_err(|error| failed(Fault::from(&error)))?;
        be_welcomed(&connection).await.map_err(failed)?;
        Ok(connection)
    };
    tokio::time::timeout(timeout, shaking).await.unwrap_or_else(|_| Err(failed(Fault::Silent)))
}

/// Waits until the other side says that it lets us in.
async fn be_welcomed(connection: &quinn::Connection) -> Result<(), Fault> {
    let mut stream = connection.accept_uni().await.map_err(|error| Fault::from(&error))?;
    match stream.read_to_end(WELCOME_BYTES_MAX).await {
        Ok(said) if said.first() == Some(&WELCOME) => Ok(()),
        Err(quinn::ReadToEndError::Read(quinn::ReadError::ConnectionLost(error))) => Err(Fault::from(&error)),
        Ok(_) | Err(_) => Err(Fault::Other("it answers in a way that this release does not know".to_owned())),
    }
}
