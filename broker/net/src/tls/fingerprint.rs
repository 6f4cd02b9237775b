use rustls::crypto::aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256;
use rustls_pki_types::CertificateDer;

/// SHA-256 of a certificate: how certificates are named everywhere (`openssl x509 -fingerprint -sha256`).
pub(crate) fn fingerprint_of(certificate: &CertificateDer<'_>) -> [u8; 32] {
    // The hash that TLS works with; no second implementation of it is needed.
    let suite = TLS13_AES_128_GCM_SHA256.tls13().expect("a suite of TLS 1.3");
    let digest = suite.common.hash_provider.hash(certificate);
    digest.as_ref().try_into().expect("SHA-256 has 32 bytes")
}
