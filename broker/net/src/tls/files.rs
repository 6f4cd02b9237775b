use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::TlsError;

/// Only the owner reads a private key.
const PRIVATE_FILE_MODE: u32 = 0o600;
/// Anybody may read a certificate.
const PUBLIC_FILE_MODE: u32 = 0o644;
/// The directory that holds keys.
const PRIVATE_DIR_MODE: u32 = 0o700;

fn file_error(path: &Path) -> impl FnOnce(std::io::Error) -> TlsError + use<'_> {
    move |source| TlsError::File { path: path.to_owned(), source }
}

pub(super) fn create_private_dir(path: &Path) -> Result<(), TlsError> {
    fs::DirBuilder::new().recursive(true).mode(PRIVATE_DIR_MODE).create(path).map_err(file_error(path))
}

pub(super) fn write_private(path: &Path, content: &str) -> Result<(), TlsError> {
    write(path, content, PRIVATE_FILE_MODE)
}

pub(super) fn write_public(path: &Path, content: &str) -> Result<(), TlsError> {
    write(path, content, PUBLIC_FILE_MODE)
}

/// Whole or not at all: a reader never sees half a key, and a crash leaves the old one.
fn write(path: &Path, content: &str, mode: u32) -> Result<(), TlsError> {
    // By the whole name: a certificate and its key differ in the extension alone.
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    // One that a crash left keeps its mode, and whoever has it open reads on: the mode counts for a file that is made.
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(file_error(&beside)(error)),
        _ => {}
    }
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true).mode(mode);
    let mut file = options.open(&beside).map_err(file_error(&beside))?;
    file.write_all(content.as_bytes()).and_then(|()| file.sync_all()).map_err(file_error(&beside))?;
    fs::rename(&beside, path).map_err(file_error(path))
}

/// The file's text; `None` where there is no such file.
pub(super) fn read_if_there(path: &Path) -> Result<Option<String>, TlsError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(TlsError::File { path: path.to_owned(), source }),
    }
}

pub(super) fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let text = fs::read(path).map_err(file_error(path))?;
    let wrong = |reason: String| TlsError::Content { path: path.to_owned(), reason };
    let certificates = CertificateDer::pem_slice_iter(&text)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| wrong(format!("not PEM: {error}")))?;
    if certificates.is_empty() {
        return Err(wrong("no certificate in it; expected PEM with BEGIN CERTIFICATE".to_owned()));
    }
    Ok(certificates)
}

pub(super) fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let text = fs::read(path).map_err(file_error(path))?;
    PrivateKeyDer::from_pem_slice(&text).map_err(|error| TlsError::Content {
        path: path.to_owned(),
        reason: format!("no private key in PEM: {error}"),
    })
}
