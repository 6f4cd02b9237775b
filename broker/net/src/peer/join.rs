use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use super::dial::reach;
use super::endpoint::{client_config, note, peer_info};
use super::{DialError, PeerLimits};
use crate::connection::Connection;
use crate::receiving::ReceiveBudget;
use crate::tls::joining;
use crate::transport::{bind_socket, endpoint_config};
use crate::{BindError, NetLimits};

/// Connects to the broker at `address` (`host:port` of its peers' port) as one that wants to join its cluster: without a certificate,
/// hence without a [`crate::PeerEndpoint`]. The broker must be known by the authority with this `fingerprint`, which a join token names;
/// nothing is sent before that is certain. It takes one stream and small frames, for some seconds.
///
/// # Errors
/// See [`DialError`]: its text says what to do.
pub async fn dial_to_join(
    address: &str,
    fingerprint: [u8; 32],
    limits: &PeerLimits,
) -> Result<Connection, DialError> {
    let failed = |reason: String| DialError::Failed { address: address.to_owned(), reason };
    let mut net = limits.of_joiners();
    // Only who joins opens a stream.
    net.streams_max = 0;
    let endpoint = endpoint(&net).map_err(|error| failed(error.to_string()))?;
    let config = config(fingerprint, &net).map_err(|error| failed(error.to_string()))?;
    let outcome = reach(&endpoint, &config, address, limits.dial_timeout).await;
    let quinn = outcome.inspect_err(|error| note(address, error))?;
    let (peer, budget) = (peer_info(&quinn), net.connection_receiving_bytes_max);
    Ok(Connection::new(quinn, peer, &net, ReceiveBudget::new(budget, budget), None))
}

/// It lives as long as its connection.
fn endpoint(limits: &NetLimits) -> io::Result<quinn::Endpoint> {
    let any = |address: SocketAddr| bind_socket(address, limits.socket_buffer_bytes);
    // One of the newer kind reaches addresses of both.
    let socket =
        any((Ipv6Addr::UNSPECIFIED, 0).into()).or_else(|_| any((Ipv4Addr::UNSPECIFIED, 0).into()))?;
    quinn::Endpoint::new(endpoint_config(limits), None, socket, Arc::new(quinn::TokioRuntime))
}

fn config(fingerprint: [u8; 32], limits: &NetLimits) -> Result<quinn::ClientConfig, BindError> {
    client_config(joining(fingerprint)?, limits)
}
