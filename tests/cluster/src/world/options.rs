use std::path::PathBuf;

/// How a [`TestBroker`](super::TestBroker) is started.
#[derive(Debug, Clone)]
pub struct BrokerOptions {
    pub(super) settings: Vec<(String, String)>,
    pub(super) directory: Option<PathBuf>,
    pub(super) arguments: Vec<String>,
}

impl Default for BrokerOptions {
    /// As operators run it, but for files: small ones, so that starting costs little and checkpoints come often.
    fn default() -> Self {
        Self { settings: Vec::new(), directory: None, arguments: Vec::new() }
            .set("wal.segment_bytes", 8 << 20)
            .set("wal.bytes_max", 64 << 20)
            .set("storage.checkpoint_bytes", 4 << 20)
            .set("storage.disk_reserve_bytes", 8 << 20)
            .set("storage.disk_free_min_bytes", 64 << 20)
    }
}

impl BrokerOptions {
    /// The broker's own defaults.
    #[must_use]
    pub const fn as_shipped() -> Self {
        Self { settings: Vec::new(), directory: None, arguments: Vec::new() }
    }

    /// With a setting, by its dotted name. The last one counts.
    #[must_use]
    pub fn set(mut self, name: &str, value: impl ToString) -> Self {
        self.settings.retain(|(known, _)| known != name);
        self.settings.push((name.to_owned(), value.to_string()));
        self
    }

    /// Without a setting that was made before.
    #[must_use]
    pub fn without(mut self, name: &str) -> Self {
        self.settings.retain(|(known, _)| known != name);
        self
    }

    /// Keeps everything in this directory, which stays when the broker goes. By default a temporary one.
    #[must_use]
    pub fn directory(mut self, directory: impl Into<PathBuf>) -> Self {
        self.directory = Some(directory.into());
        self
    }

    /// With a further argument.
    #[must_use]
    pub fn argument(mut self, argument: impl Into<String>) -> Self {
        self.arguments.push(argument.into());
        self
    }
}
