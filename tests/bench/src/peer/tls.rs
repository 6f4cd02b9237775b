use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tidemill_net::{DevCa, NetLimits, bind_socket, endpoint_config, transport_config};

use crate::Outcome;

const ALPN: &[u8] = b"bare/1";
/// What Tidemill's client grants otherwise than the broker: unread bytes of a stream and of a connection. It lets the other side open no
/// streams.
const CLIENT_STREAM_WINDOW_BYTES: u32 = 16 << 20;
const CLIENT_CONNECTION_WINDOW_BYTES: u32 = 64 << 20;

/// An endpoint as the broker's, and the file of its authority.
pub(super) fn server(tls_dir: &Path) -> Outcome<(quinn::Endpoint, std::path::PathBuf)> {
    let authority = DevCa::open_or_create(tls_dir)?;
    let files = authority.server(&[])?;
    let chain = CertificateDer::pem_file_iter(&files.certificate)?.collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_file(&files.key)?;
    let mut tls = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    tls.alpn_protocols = vec![ALPN.to_vec()];
    let limits = NetLimits::default();
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls)?));
    config.transport_config(Arc::new(transport_config(&limits)?));
    let socket = bind_socket(SocketAddr::from(([127, 0, 0, 1], 0)), limits.socket_buffer_bytes)?;
    let endpoint =
        quinn::Endpoint::new(endpoint_config(&limits), Some(config), socket, Arc::new(quinn::TokioRuntime))?;
    Ok((endpoint, authority.authority()))
}

/// An endpoint as that of Tidemill's client, and how it connects.
pub(super) fn client(authority: &Path) -> Outcome<(quinn::Endpoint, quinn::ClientConfig)> {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(authority)? {
        roots.add(certificate?)?;
    }
    let mut tls = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    tls.alpn_protocols = vec![ALPN.to_vec()];
    let limits = NetLimits {
        streams_max: 0,
        stream_window_bytes: CLIENT_STREAM_WINDOW_BYTES,
        connection_window_bytes: CLIENT_CONNECTION_WINDOW_BYTES,
        ..NetLimits::default()
    };
    let mut config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
    config.transport_config(Arc::new(transport_config(&limits)?));
    let any = |address: SocketAddr| bind_socket(address, limits.socket_buffer_bytes);
    let socket =
        any(SocketAddr::from(([0_u16; 8], 0))).or_else(|_| any(SocketAddr::from(([0, 0, 0, 0], 0))))?;
    let endpoint =
        quinn::Endpoint::new(endpoint_config(&limits), None, socket, Arc::new(quinn::TokioRuntime))?;
    Ok((endpoint, config))
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}
