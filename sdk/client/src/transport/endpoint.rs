use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use socket2::{Domain, Protocol, Socket, Type};
use tidemill_transport::MTU_BYTES_MAX;

use super::tls::client_tls;
use crate::{ClientConfig, ConnectError};

/// A handshake that nobody answers is tried ever more rarely, so another is begun beside it: a broker that starts meanwhile is found at once.
/// Bounded by the time for an attempt to connect.
const ANEW_AFTER: Duration = Duration::from_secs(1);
const KEEP_ALIVE: Duration = Duration::from_secs(10);
const IDLE_TIMEOUT_MS: u32 = 30_000;
/// Unread bytes on one stream.
const STREAM_WINDOW_BYTES: u32 = 16 << 20;
/// Bytes written and not yet acknowledged, over all streams of a connection.
const SEND_WINDOW_BYTES: u64 = 32 << 20;
/// Kernel buffers of the UDP socket; the kernel may grant less.
const SOCKET_BUFFER_BYTES: usize = 8 << 20;

/// Opens QUIC connections from one socket.
#[derive(Debug)]
pub(crate) struct Dialer {
    endpoint: quinn::Endpoint,
    config: quinn::ClientConfig,
    connect_timeout: Duration,
    server_name: Option<String>,
}

impl Dialer {
    pub(crate) fn new(config: &ClientConfig) -> Result<Self, ConnectError> {
        let mut quic = quinn::ClientConfig::new(Arc::new(client_tls(config)?));
        quic.transport_config(Arc::new(transport_config(config.receive_window_bytes)));
        let mut settings = quinn::EndpointConfig::default();
        // Cannot fail: the number is inside what QUIC allows.
        let _ = settings.max_udp_payload_size(MTU_BYTES_MAX);
        let socket = bind().map_err(|error| ConnectError::Socket(error.to_string()))?;
        let endpoint = quinn::Endpoint::new(settings, None, socket, Arc::new(quinn::TokioRuntime))
            .map_err(|error| ConnectError::Socket(error.to_string()))?;
        Ok(Self {
            endpoint,
            config: quic,
            connect_timeout: config.connect_timeout,
            server_name: config.server_name.clone(),
        })
    }

    /// Connects to the first of the addresses behind `host:port` that answers.
    pub(crate) async fn dial(&self, address: &str) -> Result<quinn::Connection, ConnectError> {
        let host = host_of(address).map_err(|reason| ConnectError::Address {
            address: address.to_owned(),
            reason: reason.to_owned(),
        })?;
        let name = self.server_name.as_deref().unwrap_or(host);
        let unknown = |reason: String| ConnectError::Lookup { address: address.to_owned(), reason };
        let resolved = tokio::net::lookup_host(address).await.map_err(|error| unknown(error.to_string()))?;
        let mut last = unknown("the name has no address".to_owned());
        for target in resolved {
            match self.dial_one(address, target, name).await {
                Ok(connection) => return Ok(connection),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    async fn dial_one(
        &self,
        address: &str,
        target: SocketAddr,
        name: &str,
    ) -> Result<quinn::Connection, ConnectError> {
        let failed = |reason: String| ConnectError::Handshake { address: address.to_owned(), reason };
        let mut attempts = FuturesUnordered::new();
        let attempting = async {
            loop {
                let connecting = self
                    .endpoint
                    .connect_with(self.config.clone(), target, name)
                    .map_err(|error| failed(error.to_string()))?;
                attempts.push(connecting);
                tokio::select! {
                    Some(connected) = attempts.next() => return Ok(connected),
                    () = tokio::time::sleep(ANEW_AFTER) => {}
                }
            }
        };
        match tokio::time::timeout(self.connect_timeout, attempting).await {
            Ok(Err(error)) => Err(error),
            Ok(Ok(Ok(connection))) => Ok(connection),
            Ok(Ok(Err(quinn::ConnectionError::TimedOut))) | Err(_) => {
                Err(ConnectError::TimedOut { address: address.to_owned(), after: self.connect_timeout })
            }
            Ok(Ok(Err(quinn::ConnectionError::TransportError(error))))
                if is_about_certificate(error.code) =>
            {
                Err(ConnectError::Certificate { address: address.to_owned(), reason: error.reason })
            }
            Ok(Ok(Err(quinn::ConnectionError::ConnectionClosed(close))))
                if is_unwilling(close.error_code) =>
            {
                Err(ConnectError::Busy { address: address.to_owned() })
            }
            Ok(Ok(Err(quinn::ConnectionError::ConnectionClosed(close))))
                if u64::from(close.error_code) == NO_APPLICATION_PROTOCOL =>
            {
                Err(ConnectError::BadAnswer {
                    address: address.to_owned(),
                    reason: "it may be a broker's port for other brokers; clients' is mostly ten lower"
                        .to_owned(),
                })
            }
            Ok(Ok(Err(error))) => Err(failed(error.to_string())),
        }
    }

    /// Closes every connection and gives the peers a moment to hear of it.
    pub(crate) async fn close(&self) {
        self.endpoint.close(0u32.into(), b"closed by the client");
        // Nothing is lost where a peer does not answer in time.
        let _ = tokio::time::timeout(Duration::from_secs(1), self.endpoint.wait_idle()).await;
    }
}

/// TLS alert 120 (RFC 7301, 3.2), in QUIC's codes: who is there speaks QUIC, and another protocol in it.
const NO_APPLICATION_PROTOCOL: u64 = 0x100 + 120;

/// Whether the peer ended the handshake as a broker that has enough does, or as one that stops in the middle of it does.
fn is_unwilling(code: quinn::TransportErrorCode) -> bool {
    matches!(
        code,
        quinn::TransportErrorCode::CONNECTION_REFUSED | quinn::TransportErrorCode::APPLICATION_ERROR
    )
}

/// Whether this side ended the handshake for the peer's certificate: TLS alerts 42 to 46, 48 and 51 (RFC 8446, 6.2), from 0x100 on in
/// QUIC's codes (RFC 9001, 4.8). 51 is a signature that does not verify: an authority of the same name, with another key.
fn is_about_certificate(code: quinn::TransportErrorCode) -> bool {
    matches!(u64::from(code).checked_sub(0x100), Some(42..=46 | 48 | 51))
}

/// The host of `host:port`, without the brackets of an IPv6 address; or what is wrong with it.
fn host_of(address: &str) -> Result<&str, &'static str> {
    let (host, port) = address.rsplit_once(':').ok_or("it names no port")?;
    if port.parse::<u16>().is_err() {
        return Err("its port is no number up to 65535");
    }
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    if host.is_empty() { Err("it names no host") } else { Ok(host) }
}

fn transport_config(receive_window_bytes: u32) -> quinn::TransportConfig {
    let mut transport = tidemill_transport::tuned(MTU_BYTES_MAX);
    transport
        // The broker opens no streams.
        .max_concurrent_bidi_streams(0u32.into())
        .max_concurrent_uni_streams(0u32.into())
        .stream_receive_window(STREAM_WINDOW_BYTES.min(receive_window_bytes).into())
        .receive_window(receive_window_bytes.into())
        .send_window(SEND_WINDOW_BYTES)
        .max_idle_timeout(Some(quinn::VarInt::from_u32(IDLE_TIMEOUT_MS).into()))
        .keep_alive_interval(Some(KEEP_ALIVE));
    transport
}

/// A socket that reaches both families where the system has both.
fn bind() -> std::io::Result<std::net::UdpSocket> {
    bind_to((Ipv6Addr::UNSPECIFIED, 0).into()).or_else(|_| bind_to((Ipv4Addr::UNSPECIFIED, 0).into()))
}

fn bind_to(address: SocketAddr) -> std::io::Result<std::net::UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    // The kernel may keep its own sizes: slower, not wrong.
    let _ = socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES);
    let _ = socket.set_send_buffer_size(SOCKET_BUFFER_BYTES);
    socket.bind(&address.into())?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_found_in_addresses() {
        assert_eq!(host_of("broker:4433"), Ok("broker"));
        assert_eq!(host_of("[::1]:4433"), Ok("::1"));
        for (wrong, said) in [
            ("broker", "no port"),
            ("broker:", "65535"),
            ("broker:port", "65535"),
            (":4433", "no host"),
            ("broker:70000", "65535"),
        ] {
            assert!(host_of(wrong).is_err_and(|reason| reason.contains(said)), "{wrong}");
        }
    }
}
