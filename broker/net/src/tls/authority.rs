use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tidemill_protocol::{BrokerId, ClusterId};

use super::files::{create_private_dir, read_if_there, write_private, write_public};
use super::fingerprint::fingerprint_of;
use super::identity::{PEER_NAME, PeerIdentity};
use super::server::{ClientAuthentication, ServerTls};
use crate::TlsError;

/// Names that every server's certificate answers to.
const OWN_NAMES: [&str; 3] = ["localhost", "127.0.0.1", "::1"];
/// Files of the authority and of brokers, which no client's may replace.
const OWN_FILES: [&str; 3] = ["ca", "server", "peer"];
/// Clocks of two machines may differ by this much.
const CLOCK_SLACK: Duration = Duration::from_secs(24 * 3600);
const AUTHORITY_LIFE: Duration = Duration::from_secs(3650 * 24 * 3600);
/// How long a certificate counts that an authority signs, unless it is told otherwise.
pub const CERTIFICATE_LIFE: Duration = Duration::from_secs(365 * 24 * 3600);

const CERTIFICATE_FILE: &str = "ca.pem";
const KEY_FILE: &str = "ca.key";

/// The certificate authority of a cluster, in a directory: every broker of the cluster has a copy.
///
/// ```text
/// DIR/ca.pem        the authority: what clients and peers trust
/// DIR/ca.key        its key, mode 0600
/// DIR/server.pem    the certificate for the clients' port, made anew at each start and before it expires
/// DIR/server.key    its key, mode 0600, made once
/// DIR/peer.pem      the certificate for the peers' port and the authority's behind it, made anew at each start and
///                   before it expires
/// DIR/peer.key      its key, mode 0600, made once
/// DIR/NAME.pem, NAME.key   clients, as issued
/// ```
pub struct ClusterCa {
    dir: PathBuf,
    issuer: Issuer<'static, KeyPair>,
    certificate_pem: String,
    key_pem: String,
    fingerprint: [u8; 32],
    certificate_life: Duration,
}

impl fmt::Debug for ClusterCa {
    /// Without the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClusterCa").field("dir", &self.dir).finish_non_exhaustive()
    }
}

/// Files of an issued certificate, PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IssuedFiles {
    /// The certificate.
    pub certificate: PathBuf,
    /// Its key, mode 0600.
    pub key: PathBuf,
}

/// Files of a broker's certificate for its peers, PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerCertificate {
    /// The certificate, then that of its authority: who joins knows nothing but the authority's fingerprint.
    pub certificate: PathBuf,
    /// Its key, mode 0600.
    pub key: PathBuf,
}

/// What a certificate says.
struct Request<'a> {
    file: &'a str,
    name: &'a str,
    organization: Option<String>,
    alternative_names: Vec<String>,
    usages: Vec<ExtendedKeyUsagePurpose>,
}

impl ClusterCa {
    /// Opens the authority in `dir`, or makes one there. A key alone is what is left where that broke off, and gets its certificate
    /// now: for directories that nobody used before both stood.
    ///
    /// # Errors
    /// The directory or files cannot be used, or the certificate is there without its key.
    pub fn open_or_create(dir: impl Into<PathBuf>) -> Result<Self, TlsError> {
        let (dir, subject) = (dir.into(), "Tidemill cluster authority");
        let (certificate_path, key_path) = (dir.join(CERTIFICATE_FILE), dir.join(KEY_FILE));
        let Some(left) = read_if_there(&key_path)?.filter(|_| !certificate_path.exists()) else {
            return match Self::open_if_there(dir.clone())? {
                Some(authority) => Ok(authority),
                None => Self::create_named(dir, subject),
            };
        };
        let key = KeyPair::from_pem(&left).map_err(|error| TlsError::Content {
            path: key_path,
            reason: format!("not a private key in PEM: {error}; remove it to have another made"),
        })?;
        Self::certify(dir, subject, &key, &left)
    }

    /// Makes a new authority in `dir`, which has none yet.
    pub(super) fn create_named(dir: PathBuf, subject: &str) -> Result<Self, TlsError> {
        let key = KeyPair::generate().map_err(|error| not_issued(subject, &error))?;
        Self::certify(dir, subject, &key, &key.serialize_pem())
    }

    fn certify(dir: PathBuf, subject: &str, key: &KeyPair, key_pem: &str) -> Result<Self, TlsError> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, subject);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        set_life(&mut params, AUTHORITY_LIFE);
        let certificate = params.self_signed(key).map_err(|error| not_issued(subject, &error))?;
        Self::from_pem(dir, &certificate.pem(), key_pem)
    }

    /// Opens the authority in `dir`.
    ///
    /// # Errors
    /// A file is missing, cannot be read, or is not what it should be; certificate and key belong to different authorities.
    pub fn open(dir: impl Into<PathBuf>) -> Result<Self, TlsError> {
        let dir = dir.into();
        match Self::open_if_there(dir.clone())? {
            Some(authority) => Ok(authority),
            None => {
                let reason = "there is no authority here; `tidemill cluster init` makes one, and who joins a cluster gets it".to_owned();
                Err(TlsError::Content { path: dir.join(CERTIFICATE_FILE), reason })
            }
        }
    }

    /// As [`Self::open`]; `None` where neither of the two files is there.
    pub(super) fn open_if_there(dir: PathBuf) -> Result<Option<Self>, TlsError> {
        let (certificate_path, key_path) = (dir.join(CERTIFICATE_FILE), dir.join(KEY_FILE));
        match (read_if_there(&certificate_path)?, read_if_there(&key_path)?) {
            (Some(certificate), Some(key)) => Self::from_parts(dir, certificate, key).map(Some),
            (None, None) => Ok(None),
            (there, _) => {
                let (path, other) =
                    if there.is_some() { (key_path, CERTIFICATE_FILE) } else { (certificate_path, KEY_FILE) };
                let reason =
                    format!("missing, though {other} is there; restore it, or remove both to begin anew");
                Err(TlsError::Content { path, reason })
            }
        }
    }

    /// Writes an authority into `dir` as another broker gave it, or as it was made. The same one may be there already.
    ///
    /// # Errors
    /// What is given is no authority, another one is there, or the files cannot be written.
    pub fn from_pem(dir: impl Into<PathBuf>, certificate: &str, key: &str) -> Result<Self, TlsError> {
        let dir = dir.into();
        create_private_dir(&dir)?;
        let given = Self::from_parts(dir.clone(), certificate.to_owned(), key.to_owned())?;
        let (certificate_path, key_path) = (dir.join(CERTIFICATE_FILE), dir.join(KEY_FILE));
        // Half of one is what a crash between the two writes leaves; the same certificate or key may be completed.
        for (path, ours) in [(&certificate_path, certificate), (&key_path, key)] {
            if read_if_there(path)?.is_some_and(|there| there.trim() != ours.trim()) {
                let reason = "another authority is here already, and is not replaced; \
                    remove ca.pem and ca.key if nothing uses it any more"
                    .to_owned();
                return Err(TlsError::Content { path: path.clone(), reason });
            }
        }
        // The certificate last: where it stands, the key does too.
        write_private(&key_path, key)?;
        write_public(&certificate_path, certificate)?;
        Ok(given)
    }

    fn from_parts(dir: PathBuf, certificate_pem: String, key_pem: String) -> Result<Self, TlsError> {
        let content = |file: &str, reason: String| TlsError::Content { path: dir.join(file), reason };
        let key = KeyPair::from_pem(&key_pem)
            .map_err(|error| content(KEY_FILE, format!("not a private key in PEM: {error}")))?;
        let not_authority = |error: &dyn fmt::Display| {
            content(CERTIFICATE_FILE, format!("not an authority's certificate in PEM: {error}"))
        };
        let certificate = CertificateDer::from_pem_slice(certificate_pem.as_bytes())
            .map_err(|error| not_authority(&error))?;
        let (_, parsed) =
            x509_parser::parse_x509_certificate(&certificate).map_err(|error| not_authority(&error))?;
        if !parsed.is_ca() {
            return Err(not_authority(&"it may sign no other certificates"));
        }
        if parsed.public_key().raw != key.subject_public_key_info() {
            let reason =
                format!("not the key of {CERTIFICATE_FILE} beside it; restore the one that belongs to it");
            return Err(content(KEY_FILE, reason));
        }
        let fingerprint = fingerprint_of(&certificate);
        let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(|error| not_authority(&error))?;
        Ok(Self { dir, issuer, certificate_pem, key_pem, fingerprint, certificate_life: CERTIFICATE_LIFE })
    }

    /// The same authority, whose certificates count for so long from when they are made.
    #[must_use]
    pub const fn certificates_live(mut self, life: Duration) -> Self {
        self.certificate_life = life;
        self
    }

    /// The authority's certificate: what a client needs to trust a broker.
    #[must_use]
    pub fn authority(&self) -> PathBuf {
        self.dir.join(CERTIFICATE_FILE)
    }

    /// The certificate, PEM.
    #[must_use]
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// The private key, PEM: whoever has it is the cluster.
    #[must_use]
    pub fn key_pem(&self) -> &str {
        &self.key_pem
    }

    /// SHA-256 of the certificate (DER): how a join token names the cluster's authority.
    #[must_use]
    pub const fn fingerprint(&self) -> [u8; 32] {
        self.fingerprint
    }

    /// A fresh certificate for the clients' port, that answers to `localhost`, the loopback addresses and `names`
    /// (host names or IP addresses). Asks clients for nothing; set `clients` to change that.
    ///
    /// # Errors
    /// A name that is neither a host name nor an address, or the files cannot be written.
    pub fn server(&self, names: &[String]) -> Result<ServerTls, TlsError> {
        let mut all: Vec<String> = OWN_NAMES.iter().map(ToString::to_string).collect();
        all.extend(names.iter().filter(|name| !OWN_NAMES.contains(&name.as_str())).cloned());
        let request = Request {
            file: "server",
            name: "Tidemill server",
            organization: None,
            alternative_names: all,
            usages: vec![ExtendedKeyUsagePurpose::ServerAuth],
        };
        let files = self.issue(request, &self.dir, "")?;
        Ok(ServerTls { certificate: files.certificate, key: files.key, clients: ClientAuthentication::None })
    }

    /// A fresh certificate for a client; the broker sees `CN=name`.
    ///
    /// # Errors
    /// A name that is no plain file name, or the files cannot be written.
    pub fn client(&self, name: &str) -> Result<IssuedFiles, TlsError> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        if name.is_empty() || !name.chars().all(plain) || OWN_FILES.contains(&name) {
            return Err(TlsError::Issue {
                subject: name.to_owned(),
                reason: "a client's name is letters, digits, - and _, and none of ca, server and peer"
                    .to_owned(),
            });
        }
        let request = Request {
            file: name,
            name,
            organization: None,
            alternative_names: Vec::new(),
            usages: vec![ExtendedKeyUsagePurpose::ClientAuth],
        };
        self.issue(request, &self.dir, "")
    }

    /// A fresh certificate by which the peers of `broker` know it, as `peer.pem` and `peer.key` in `dir`. Its key is
    /// made once.
    ///
    /// # Errors
    /// The directory or files cannot be used.
    pub fn issue_peer(
        &self,
        cluster: ClusterId,
        broker: BrokerId,
        dir: impl AsRef<Path>,
    ) -> Result<PeerCertificate, TlsError> {
        let dir = dir.as_ref();
        create_private_dir(dir)?;
        let identity = PeerIdentity { cluster, broker };
        let request = Request {
            file: "peer",
            name: &identity.common_name(),
            organization: Some(identity.organization()),
            alternative_names: vec![PEER_NAME.to_owned()],
            usages: vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
        };
        let files = self.issue(request, dir, &self.certificate_pem)?;
        Ok(PeerCertificate { certificate: files.certificate, key: files.key })
    }

    /// Makes and writes a certificate, with the PEM text `behind` it.
    fn issue(&self, request: Request<'_>, dir: &Path, behind: &str) -> Result<IssuedFiles, TlsError> {
        let wrong = |error: rcgen::Error| not_issued(request.name, &error);
        let mut params = CertificateParams::new(request.alternative_names).map_err(wrong)?;
        params.distinguished_name.push(DnType::CommonName, request.name);
        if let Some(organization) = request.organization {
            params.distinguished_name.push(DnType::OrganizationName, organization);
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = request.usages;
        params.use_authority_key_identifier_extension = true;
        set_life(&mut params, self.certificate_life);
        let files = IssuedFiles {
            certificate: dir.join(format!("{}.pem", request.file)),
            key: dir.join(format!("{}.key", request.file)),
        };
        // A key that is there stays: a server's stateless resets are derived from it.
        let key = match read_if_there(&files.key)? {
            Some(key) => KeyPair::from_pem(&key).map_err(|error| TlsError::Content {
                path: files.key.clone(),
                reason: format!("not a private key in PEM: {error}; remove it to have another made"),
            })?,
            None => {
                let key = KeyPair::generate().map_err(wrong)?;
                write_private(&files.key, &key.serialize_pem())?;
                key
            }
        };
        let certificate = params.signed_by(&key, &self.issuer).map_err(wrong)?;
        write_public(&files.certificate, &format!("{}{behind}", certificate.pem()))?;
        Ok(files)
    }
}

fn not_issued(subject: &str, error: &rcgen::Error) -> TlsError {
    TlsError::Issue { subject: subject.to_owned(), reason: error.to_string() }
}

fn set_life(params: &mut CertificateParams, life: Duration) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    // A whole second: certificates say no less.
    let now = rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(now.as_secs());
    params.not_before = now - CLOCK_SLACK;
    params.not_after = now + life;
}
