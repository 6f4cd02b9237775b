//! What a handshake between two brokers came to, in words for people.

use quinn::ConnectionError;

/// TLS's alerts (RFC 8446, section 6.2) begin here among QUIC's codes (RFC 9001, section 4.8), and end before twice that.
const CRYPTO_ERRORS: u64 = 0x100;
/// QUIC's code of a server that takes no connection, as when it stops or has enough of them (RFC 9000, section 20.1).
const CONNECTION_REFUSED: u64 = 0x2;

const ALERT_BAD_CERTIFICATE: u64 = 42;
const ALERT_UNSUPPORTED_CERTIFICATE: u64 = 43;
const ALERT_CERTIFICATE_EXPIRED: u64 = 45;
const ALERT_CERTIFICATE_UNKNOWN: u64 = 46;
const ALERT_UNKNOWN_CA: u64 = 48;
const ALERT_ACCESS_DENIED: u64 = 49;
const ALERT_DECRYPT_ERROR: u64 = 51;
const ALERT_NO_APPLICATION_PROTOCOL: u64 = 120;

/// Why a connection to or from a peer did not come about, as seen from here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fault {
    /// The other side's certificate will not do.
    TheirCertificate(String),
    /// Ours does not satisfy the other side.
    OurCertificate(String),
    /// The authority that a token names is not the other side's.
    Fingerprint,
    /// One side speaks the peers' protocol, and the other does not.
    Protocol,
    /// The other side takes no connections: it stops, or has enough.
    Crowded,
    /// The other side closed the connection, and says why.
    Refused {
        code: u64,
        reason: String,
    },
    /// Nothing came, or nothing more.
    Silent,
    /// Closed on this side.
    ClosedHere,
    Other(String),
}

impl From<&ConnectionError> for Fault {
    fn from(error: &ConnectionError) -> Self {
        match error {
            ConnectionError::TransportError(here) => {
                let alert = alert(here.code.into());
                match alert {
                    Some(ALERT_ACCESS_DENIED) => Self::Fingerprint,
                    Some(ALERT_NO_APPLICATION_PROTOCOL) => Self::Protocol,
                    _ => match alert.and_then(certificate_fault) {
                        Some(fault) => Self::TheirCertificate(format!("{fault} ({})", here.reason)),
                        None => Self::Other(here.to_string()),
                    },
                }
            }
            ConnectionError::ConnectionClosed(there) => {
                let code = u64::from(there.error_code);
                match alert(code) {
                    Some(ALERT_ACCESS_DENIED) => Self::OurCertificate(
                        "its authority is not the one of the join token there".to_owned(),
                    ),
                    Some(ALERT_NO_APPLICATION_PROTOCOL) => Self::Protocol,
                    None if code == CONNECTION_REFUSED => Self::Crowded,
                    alert => match alert.and_then(certificate_fault) {
                        Some(fault) => {
                            let said = String::from_utf8_lossy(&there.reason);
                            Self::OurCertificate(format!("{fault} ({said})"))
                        }
                        None => Self::Other(error.to_string()),
                    },
                }
            }
            ConnectionError::ApplicationClosed(close) => Self::Refused {
                code: close.error_code.into_inner(),
                reason: String::from_utf8_lossy(&close.reason).into_owned(),
            },
            ConnectionError::TimedOut => Self::Silent,
            ConnectionError::LocallyClosed => Self::ClosedHere,
            other => Self::Other(other.to_string()),
        }
    }
}

fn alert(code: u64) -> Option<u64> {
    (CRYPTO_ERRORS..2 * CRYPTO_ERRORS).contains(&code).then(|| code - CRYPTO_ERRORS)
}

/// What an alert says of the certificate that it is about. Two authorities of one name look like a bad signature.
fn certificate_fault(alert: u64) -> Option<&'static str> {
    match alert {
        ALERT_UNKNOWN_CA | ALERT_DECRYPT_ERROR => Some("it was not signed by the authority that is trusted"),
        ALERT_CERTIFICATE_EXPIRED => Some("it has expired, or is not valid yet"),
        ALERT_UNSUPPORTED_CERTIFICATE => Some("it is for another use"),
        ALERT_BAD_CERTIFICATE | ALERT_CERTIFICATE_UNKNOWN => Some("it is no peer's"),
        _ => None,
    }
}
