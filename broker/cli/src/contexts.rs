//! Saved connections, in a file of the user's.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use etcetera::BaseStrategy;
use serde::{Deserialize, Serialize};

use crate::error::CliError;

/// The file's contents.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Contexts {
    /// The one that is used when none is named.
    pub(crate) current: Option<String>,
    #[serde(default)]
    pub(crate) contexts: BTreeMap<String, SavedContext>,
}

/// One saved connection.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SavedContext {
    pub(crate) addresses: Vec<String>,
    pub(crate) ca: Option<PathBuf>,
    pub(crate) certificate: Option<PathBuf>,
    pub(crate) key: Option<PathBuf>,
    /// Consumers read from replicas in it, where there are any.
    pub(crate) rack: Option<String>,
}

impl Contexts {
    /// What is saved; nothing where there is no file yet.
    pub(crate) fn load() -> Result<Self, CliError> {
        let path = file()?;
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(CliError::other(format!("{}: {error}", path.display()))),
        };
        toml::from_str(&text).map_err(|error| {
            CliError::other(format!("{} does not read: {}", path.display(), error.message()))
        })
    }

    pub(crate) fn save(&self) -> Result<(), CliError> {
        let path = file()?;
        let text = toml::to_string(self).map_err(|error| CliError::other(error.to_string()))?;
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir)?;
        }
        // Two commands at once each write a whole file; the later one stands.
        let beside = path.with_extension("new");
        fs::write(&beside, text)?;
        fs::rename(&beside, &path)?;
        Ok(())
    }
}

/// `~/.config/tidemill/contexts.toml`, as the system has it.
pub(crate) fn file() -> Result<PathBuf, CliError> {
    Ok(config_dir()?.join("contexts.toml"))
}

/// Where `tidemill dev` leaves a copy of its authority, so that other commands find it.
pub(crate) fn dev_authority(address_port: u16) -> Result<PathBuf, CliError> {
    Ok(config_dir()?.join(format!("dev-{address_port}-ca.pem")))
}

fn config_dir() -> Result<PathBuf, CliError> {
    let strategy = etcetera::choose_base_strategy()
        .map_err(|error| CliError::other(format!("there is no home directory: {error}; set HOME")))?;
    Ok(strategy.config_dir().join("tidemill"))
}

/// Copies a broker's authority to where commands look for it.
pub(crate) fn publish_authority(authority: &Path, port: u16) -> Result<PathBuf, CliError> {
    let path = dev_authority(port)?;
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    fs::copy(authority, &path)?;
    Ok(path)
}
