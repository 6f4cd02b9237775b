use std::path::PathBuf;
use std::sync::Arc;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::authority::{ClusterCa, PeerCertificate};
use super::files::{read_certificates, read_key};
use super::identity::PeerIdentity;
use super::pinned::PinnedAuthority;
use super::server::{accepting, provider, read_roots, wrong};
use crate::TlsError;
use crate::reset::ResetKey;

/// The application protocol of peers: another than that of clients, so that neither is taken for the other.
pub const PEER_ALPN: &[u8] = b"tidemill-peer/1";

/// A broker's certificate for its peers, and the authority of theirs. Names files; they are read when the endpoint starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerTls {
    /// PEM: the broker's certificate, then that of the authority. See [`ClusterCa::issue_peer`].
    pub certificate: PathBuf,
    /// PEM: its private key.
    pub key: PathBuf,
    /// PEM: the cluster's authority.
    pub authority: PathBuf,
}

impl PeerTls {
    /// A certificate with the authority that issued it.
    #[must_use]
    pub fn new(files: PeerCertificate, authority: &ClusterCa) -> Self {
        Self { certificate: files.certificate, key: files.key, authority: authority.authority() }
    }

    /// Reads the files.
    pub(crate) fn load(&self) -> Result<PeerHandshakes, TlsError> {
        let chain = read_certificates(&self.certificate)?;
        let key = read_key(&self.key)?;
        let roots = read_roots(&self.authority)?;
        let identity = chain.first().and_then(PeerIdentity::from_certificate).ok_or_else(|| {
            let reason = "not a broker's certificate for its peers: \
                expected CN=broker-N, O=the cluster's id, and the name peer.tidemill"
                .to_owned();
            TlsError::Content { path: self.certificate.clone(), reason }
        })?;
        let (accepting, reset) =
            accepting(Some(Arc::clone(&roots)), chain.clone(), key.clone_key(), PEER_ALPN)?;
        let dialing = dialing(roots, chain, key)?;
        Ok(PeerHandshakes { identity, accepting, dialing, reset })
    }
}

/// Both sides' settings of a broker among its peers.
pub(crate) struct PeerHandshakes {
    pub(crate) identity: PeerIdentity,
    pub(crate) accepting: QuicServerConfig,
    pub(crate) dialing: QuicClientConfig,
    pub(crate) reset: Arc<ResetKey>,
}

fn dialing(
    roots: Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<QuicClientConfig, TlsError> {
    let provider = provider();
    let verifier = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&provider));
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(wrong)?
        .with_webpki_verifier(verifier.build().map_err(wrong)?)
        .with_client_auth_cert(chain, key)
        .map_err(wrong)?;
    over_quic(config)
}

/// Settings of who joins: shows no certificate, and trusts the authority with this fingerprint alone.
pub(crate) fn joining(fingerprint: [u8; 32]) -> Result<QuicClientConfig, TlsError> {
    let provider = provider();
    let pinned = PinnedAuthority::new(fingerprint, Arc::clone(&provider));
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(wrong)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(pinned))
        .with_no_client_auth();
    over_quic(config)
}

fn over_quic(mut config: ClientConfig) -> Result<QuicClientConfig, TlsError> {
    config.alpn_protocols = vec![PEER_ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    QuicClientConfig::try_from(config).map_err(wrong)
}
