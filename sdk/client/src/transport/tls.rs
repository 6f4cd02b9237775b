use std::path::Path;
use std::sync::Arc;

use quinn::crypto::rustls::QuicClientConfig;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::{DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

use crate::{ClientConfig, ConnectError, Trust};

/// The application protocol that both sides name in the handshake.
const ALPN: &[u8] = b"tidemill/1";
/// Where systems keep the authorities that they trust.
const SYSTEM_AUTHORITIES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

pub(super) fn client_tls(config: &ClientConfig) -> Result<QuicClientConfig, ConnectError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let wrong = |error: rustls::Error| ConnectError::Tls(error.to_string());
    let builder = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(wrong)?;
    let builder = match &config.trust {
        Trust::Anyone => {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(TrustAnyone::new(&provider)))
        }
        Trust::File(path) => builder.with_root_certificates(authorities(path)?),
        Trust::System => builder.with_root_certificates(system_authorities()?),
    };
    let mut tls = match &config.identity {
        None => builder.with_no_client_auth(),
        Some(identity) => {
            let key = PrivateKeyDer::from_pem_file(&identity.key)
                .map_err(|error| wrong_file(&identity.key, &error))?;
            builder.with_client_auth_cert(certificates(&identity.certificate)?, key).map_err(wrong)?
        }
    };
    tls.alpn_protocols = vec![ALPN.to_vec()];
    // Nothing is ever sent before the handshake is done.
    tls.enable_early_data = false;
    QuicClientConfig::try_from(tls).map_err(|error| ConnectError::Tls(error.to_string()))
}

fn wrong_file(path: &Path, reason: &dyn std::fmt::Display) -> ConnectError {
    ConnectError::File { path: path.to_owned(), reason: reason.to_string() }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, ConnectError> {
    CertificateDer::pem_file_iter(path).and_then(Iterator::collect).map_err(|error| wrong_file(path, &error))
}

fn authorities(path: &Path) -> Result<RootCertStore, ConnectError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|error| wrong_file(path, &error))?;
    }
    if roots.is_empty() {
        return Err(wrong_file(path, &"no certificate in it; expected PEM with BEGIN CERTIFICATE"));
    }
    Ok(roots)
}

fn system_authorities() -> Result<RootCertStore, ConnectError> {
    let named = std::env::var_os("SSL_CERT_FILE");
    let candidates = named.iter().map(Path::new).chain(SYSTEM_AUTHORITIES.iter().map(Path::new));
    let Some(path) = candidates.into_iter().find(|path| path.is_file()) else {
        return Err(ConnectError::Tls(
            "this system has no file of trusted authorities; name the broker's with trust_file".to_owned(),
        ));
    };
    let mut roots = RootCertStore::empty();
    // A system's bundle may hold what rustls cannot read; the others count.
    roots.add_parsable_certificates(certificates(path)?);
    Ok(roots)
}

/// Accepts every certificate whose owner proves to have its key. See [`Trust::Anyone`].
#[derive(Debug)]
struct TrustAnyone {
    algorithms: WebPkiSupportedAlgorithms,
}

impl TrustAnyone {
    fn new(provider: &CryptoProvider) -> Self {
        Self { algorithms: provider.signature_verification_algorithms }
    }
}

impl ServerCertVerifier for TrustAnyone {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
