use std::fmt;

use rustls_pki_types::CertificateDer;
use tidemill_protocol::{BrokerId, ClusterId};
use uuid::Uuid;
use x509_parser::prelude::{GeneralName, X509Certificate};
use x509_parser::x509::AttributeTypeAndValue;

/// The name that every peer's certificate answers to: who it is, its subject says, and where it is does not matter.
pub(crate) const PEER_NAME: &str = "peer.tidemill";
const COMMON_NAME_PREFIX: &str = "broker-";

/// Which broker a peer is, by the certificate that it showed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PeerIdentity {
    /// Of which cluster: the certificate's `O`.
    pub cluster: ClusterId,
    /// Which broker of it: the certificate's `CN`, `broker-N`.
    pub broker: BrokerId,
}

impl fmt::Display for PeerIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "broker {} of cluster {}", self.broker, self.cluster)
    }
}

impl PeerIdentity {
    pub(super) fn common_name(&self) -> String {
        format!("{COMMON_NAME_PREFIX}{}", self.broker)
    }

    pub(super) fn organization(&self) -> String {
        self.cluster.uuid().to_string()
    }

    /// Of a certificate whose signature was verified; `None` where it is no peer's, but a client's, say, which the same
    /// authority may have signed.
    pub(crate) fn from_certificate(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
        if !answers_to_peer_name(&certificate) {
            return None;
        }
        let subject = certificate.subject();
        let name = only(subject.iter_common_name())?;
        let broker = name.strip_prefix(COMMON_NAME_PREFIX)?.parse().ok().map(BrokerId::new)?;
        let cluster = Uuid::try_parse(only(subject.iter_organization())?).ok().map(ClusterId::new)?;
        let identity = Self { cluster, broker };
        // One spelling: no sign, no leading zeros, no other form of a UUID.
        (identity.common_name() == name && only(subject.iter_organization())? == identity.organization())
            .then_some(identity)
    }
}

fn only<'a, 'b: 'a>(mut values: impl Iterator<Item = &'a AttributeTypeAndValue<'b>>) -> Option<&'a str> {
    let value = values.next()?;
    values.next().is_none().then(|| value.as_str().ok()).flatten()
}

fn answers_to_peer_name(certificate: &X509Certificate<'_>) -> bool {
    let Ok(Some(names)) = certificate.subject_alternative_name() else { return false };
    names.value.general_names.iter().any(|name| matches!(name, GeneralName::DNSName(PEER_NAME)))
}
