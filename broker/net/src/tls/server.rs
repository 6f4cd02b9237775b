use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use quinn::crypto::rustls::QuicServerConfig;
use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

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

impl ClientAuthentication {
    /// Whether its file can be used: for whoever wants to know that before anything depends on it.
    ///
    /// # Errors
    /// It can't.
    pub fn check(&self) -> Result<(), TlsError> {
        self.roots().map(drop)
    }

    fn roots(&self) -> Result<Option<Arc<RootCertStore>>, TlsError> {
        match self {
            Self::None => Ok(None),
            Self::Asked { authorities } => read_roots(authorities).map(Some),
        }
    }
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
    /// Whether its files can be used together, as [`crate::Listener::bind`] will use them.
    ///
    /// # Errors
    /// They can't.
    pub fn check(&self) -> Result<(), TlsError> {
        self.quic_config().map(drop)
    }

    /// The handshake's settings, and the key of stateless resets.
    pub(crate) fn quic_config(&self) -> Result<(QuicServerConfig, Arc<ResetKey>), TlsError> {
        let authorities = self.clients.roots()?;
        let (chain, key) = (read_certificates(&self.certificate)?, read_key(&self.key)?);
        accepting(authorities, chain, key, ALPN)
    }
}

/// Settings of the side that accepts. A certificate that is shown to it must be signed by one of the `authorities`, where
/// there are any; nobody has to show one.
pub(super) fn accepting(
    authorities: Option<Arc<RootCertStore>>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    alpn: &[u8],
) -> Result<(QuicServerConfig, Arc<ResetKey>), TlsError> {
    let provider = provider();
    let builder = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(wrong)?;
    let builder = match authorities {
        None => builder.with_no_client_auth(),
        Some(roots) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider);
            builder.with_client_cert_verifier(verifier.allow_unauthenticated().build().map_err(wrong)?)
        }
    };
    let reset = ResetKey::derive(&key);
    let mut config = builder.with_single_cert(chain, key).map_err(wrong)?;
    config.alpn_protocols = vec![alpn.to_vec()];
    // No data before the handshake is done, and no resumption either: a client whose certificate is no longer
    // accepted does not come back by a ticket from better days.
    config.max_early_data_size = 0;
    config.send_tls13_tickets = 0;
    let config = QuicServerConfig::try_from(config).map_err(wrong)?;
    Ok((config, reset))
}

pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

pub(super) fn wrong(error: impl Display) -> TlsError {
    TlsError::Config(error.to_string())
}

/// The authorities of a PEM file.
pub(super) fn read_roots(path: &Path) -> Result<Arc<RootCertStore>, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in read_certificates(path)? {
        roots.add(certificate).map_err(wrong)?;
    }
    Ok(Arc::new(roots))
}
