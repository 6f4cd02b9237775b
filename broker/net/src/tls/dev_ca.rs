use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

use super::files::{create_private_dir, read_if_there, write_private, write_public};
use super::server::{ClientAuthentication, ServerTls};
use crate::TlsError;

/// Names that every development server answers to.
const OWN_NAMES: [&str; 3] = ["localhost", "127.0.0.1", "::1"];
/// Clocks of two machines may differ by this much.
const CLOCK_SLACK: Duration = Duration::from_secs(24 * 3600);
const AUTHORITY_LIFE: Duration = Duration::from_secs(3650 * 24 * 3600);
const CERTIFICATE_LIFE: Duration = Duration::from_secs(365 * 24 * 3600);

/// A certificate authority in a directory, for development and small set-ups.
///
/// ```text
/// DIR/ca.pem        the authority: what clients trust
/// DIR/ca.key        its key, mode 0600
/// DIR/server.pem    the server's certificate, made anew at each start
/// DIR/server.key    its key, mode 0600, made once
/// DIR/NAME.pem, NAME.key   clients, as issued
/// ```
#[derive(Debug)]
pub struct DevCa {
    dir: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

/// Files of an issued certificate, PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IssuedFiles {
    /// The certificate.
    pub certificate: PathBuf,
    /// Its key, mode 0600.
    pub key: PathBuf,
}

impl DevCa {
    /// Opens the authority in `dir`, or makes one there.
    ///
    /// # Errors
    /// The directory or files cannot be used, or one of the two files is there without the other.
    pub fn open_or_create(dir: impl Into<PathBuf>) -> Result<Self, TlsError> {
        let dir = dir.into();
        create_private_dir(&dir)?;
        let (certificate_path, key_path) = (dir.join("ca.pem"), dir.join("ca.key"));
        let issuer = match (read_if_there(&certificate_path)?, read_if_there(&key_path)?) {
            (Some(certificate), Some(key)) => {
                let key = KeyPair::from_pem(&key).map_err(|error| TlsError::Content {
                    path: key_path,
                    reason: format!("not a private key in PEM: {error}"),
                })?;
                Issuer::from_ca_cert_pem(&certificate, key).map_err(|error| TlsError::Content {
                    path: certificate_path,
                    reason: format!("not an authority's certificate in PEM: {error}"),
                })?
            }
            (None, None) => create_authority(&certificate_path, &key_path)?,
            (there, _) => {
                let (path, other) =
                    if there.is_some() { (key_path, "ca.pem") } else { (certificate_path, "ca.key") };
                let reason =
                    format!("missing, though {other} is there; restore it, or remove both to begin anew");
                return Err(TlsError::Content { path, reason });
            }
        };
        Ok(Self { dir, issuer })
    }

    /// The authority's certificate: what a client needs to trust the server.
    #[must_use]
    pub fn authority(&self) -> PathBuf {
        self.dir.join("ca.pem")
    }

    /// A fresh certificate for a server that answers to `localhost`, the loopback addresses and `names`
    /// (host names or IP addresses). Asks clients for nothing; set `clients` to change that.
    ///
    /// # Errors
    /// A name that is neither a host name nor an address, or the files cannot be written.
    pub fn server(&self, names: &[String]) -> Result<ServerTls, TlsError> {
        let mut all: Vec<String> = OWN_NAMES.iter().map(ToString::to_string).collect();
        all.extend(names.iter().filter(|name| !OWN_NAMES.contains(&name.as_str())).cloned());
        let files = self.issue("server", "Tidemill server", all, ExtendedKeyUsagePurpose::ServerAuth)?;
        Ok(ServerTls { certificate: files.certificate, key: files.key, clients: ClientAuthentication::None })
    }

    /// A fresh certificate for a client; the broker sees `CN=name`.
    ///
    /// # Errors
    /// A name that is no plain file name, or the files cannot be written.
    pub fn client(&self, name: &str) -> Result<IssuedFiles, TlsError> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        if name.is_empty() || !name.chars().all(plain) || matches!(name, "ca" | "server") {
            return Err(TlsError::Issue {
                subject: name.to_owned(),
                reason: "a client's name is letters, digits, - and _, and neither ca nor server".to_owned(),
            });
        }
        self.issue(name, name, Vec::new(), ExtendedKeyUsagePurpose::ClientAuth)
    }

    fn issue(
        &self,
        file: &str,
        subject: &str,
        names: Vec<String>,
        usage: ExtendedKeyUsagePurpose,
    ) -> Result<IssuedFiles, TlsError> {
        let wrong =
            |error: rcgen::Error| TlsError::Issue { subject: subject.to_owned(), reason: error.to_string() };
        let mut params = CertificateParams::new(names).map_err(wrong)?;
        params.distinguished_name.push(DnType::CommonName, subject);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        params.use_authority_key_identifier_extension = true;
        set_life(&mut params, CERTIFICATE_LIFE);
        let files = IssuedFiles {
            certificate: self.dir.join(format!("{file}.pem")),
            key: self.dir.join(format!("{file}.key")),
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
        write_public(&files.certificate, &certificate.pem())?;
        Ok(files)
    }
}

fn create_authority(certificate_path: &Path, key_path: &Path) -> Result<Issuer<'static, KeyPair>, TlsError> {
    const SUBJECT: &str = "Tidemill development authority";
    let wrong =
        |error: rcgen::Error| TlsError::Issue { subject: SUBJECT.to_owned(), reason: error.to_string() };
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, SUBJECT);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    set_life(&mut params, AUTHORITY_LIFE);
    let key = KeyPair::generate().map_err(wrong)?;
    let certificate = params.self_signed(&key).map_err(wrong)?;
    // The certificate last: where it stands, the key does too.
    write_private(key_path, &key.serialize_pem())?;
    write_public(certificate_path, &certificate.pem())?;
    Ok(Issuer::new(params, key))
}

fn set_life(params: &mut CertificateParams, life: Duration) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    // A whole second: certificates say no less.
    let now = rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(now.as_secs());
    params.not_before = now - CLOCK_SLACK;
    params.not_after = now + life;
}
