use std::ops::Deref;
use std::path::PathBuf;

use super::authority::ClusterCa;
use crate::TlsError;

/// The authority of a single broker, for development and small set-ups: made where there is none. It is a [`ClusterCa`]
/// like any other, and stays the cluster's when the broker grows to one.
#[derive(Debug)]
pub struct DevCa(ClusterCa);

impl DevCa {
    /// Opens the authority in `dir`, or makes one there.
    ///
    /// # Errors
    /// The directory or files cannot be used, or one of the two files is there without the other.
    pub fn open_or_create(dir: impl Into<PathBuf>) -> Result<Self, TlsError> {
        let dir = dir.into();
        match ClusterCa::open_if_there(dir.clone())? {
            Some(authority) => Ok(Self(authority)),
            None => ClusterCa::create_named(dir, "Tidemill development authority").map(Self),
        }
    }
}

impl Deref for DevCa {
    type Target = ClusterCa;

    fn deref(&self) -> &ClusterCa {
        &self.0
    }
}
