//! The shipped plugins, as components.

use std::path::PathBuf;

use tidemill_client::Client;
use tidemill_client::messages::PluginVersion;

use crate::Outcome;

/// The component of a shipped plugin, from `TIDEMILL_COMPONENTS` or where `cargo xtask plugins` puts it.
///
/// # Errors
/// It was not built.
pub fn component(name: &str) -> Outcome<Vec<u8>> {
    let path = directory().join(format!("{name}.wasm"));
    std::fs::read(&path).map_err(|error| {
        format!(
            "{}: {error}; build the plugins with: cargo xtask plugins (or name their directory in TIDEMILL_COMPONENTS)",
            path.display()
        )
        .into()
    })
}

/// Uploads a shipped plugin as version 1, which may be there already.
///
/// # Errors
/// It was not built, or the broker refuses it.
pub async fn upload(client: &Client, name: &str) -> Outcome<PluginVersion> {
    Ok(client.plugins().upload(name, "1", component(name)?).await?)
}

/// Where the components are.
#[must_use]
pub fn directory() -> PathBuf {
    if let Some(named) = std::env::var_os("TIDEMILL_COMPONENTS") {
        return named.into();
    }
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map(PathBuf::from)
        .unwrap_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../target")));
    target.join("plugins").join("components")
}
