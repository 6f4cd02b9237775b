use std::path::PathBuf;
use std::sync::Arc;

use quinn::crypto::rustls::QuicServerConfig;
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;

use super::files::{read_certificates, read_key};
use crate::reset::ResetKey;
use crate::{ALPN, TlsError};

/// Whether clients must show a certificate.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ClientAuthentication {
    /// None is asked for.
    #[default]
    None,
    /// One that is shown must be signed by an authority of this PEM file. Who shows none has no identity: whether that will do, whoever
    /// accepts the connection decides, and can say so.
    Asked {
        /// PEM file of the authorities.
        authorities: PathBuf,
    },
}

/// The server's certificate and its rule for clients. Names files; they are read when the listener starts.
#[derive(Debug, Clone)]
pub struct ServerTls {
    /// PEM: the server's certificate, then those between it and its authority.
    pub certificate: PathBuf,
    /// PEM: its private key.
    pub key: PathBuf,
    /// Rule for clients.
    pub clients: ClientAuthentication,
}

impl ServerTls {
    /// The handshake's settings, and the key of stateless resets.
    pub(crate) fn quic_config(&self) -> Result<(QuicServerConfig, Arc<ResetKey>), TlsError> {
        let wrong = |error: &dyn std::fmt::Display| TlsError::Config(error.to_string());
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| wrong(&error))?;

        let authorities = match &self.clients {
            ClientAuthentication::None => None,
            ClientAuthentication::Asked { authorities } => {
                let mut roots = RootCertStore::empty();
                for certificate in read_certificates(authorities)? {
                    roots.add(certificate).map_err(|error| wrong(&error))?;
                }
                Some(Arc::new(roots))
            }
        };
        let builder = match authorities {
            None => builder.with_no_client_auth(),
            Some(roots) => {
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider);
                let verifier = verifier.allow_unauthenticated();
                builder.with_client_cert_verifier(verifier.build().map_err(|error| wrong(&error))?)
            }
        };

        let chain = read_certificates(&self.certificate)?;
        let key = read_key(&self.key)?;
        let reset = ResetKey::derive(&key);
        let mut config = builder.with_single_cert(chain, key).map_err(|error| wrong(&error))?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        // No data before the handshake is done, and no resumption either: a client whose certificate is no longer
        // accepted does not come back by a ticket from better days.
        config.max_early_data_size = 0;
        config.send_tls13_tickets = 0;
        let config = QuicServerConfig::try_from(config).map_err(|error| wrong(&error))?;
        Ok((config, reset))
    }
}
