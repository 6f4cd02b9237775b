//! What a plugin says of itself at upload.

/// A summary and the configuration keys. Keys not named here are refused when the plugin is deployed.
///
/// ```
/// use tidemill_plugin::Description;
/// let description = Description::new("Passes the events of one device.")
///     .required("device", "the device to pass")
///     .with_default("field", "where the device stands in the event", "device")
///     .optional("country", "pass events of this country only");
/// assert_eq!(description.keys().len(), 3);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    summary: String,
    keys: Vec<ConfigKey>,
}

/// One configuration key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigKey {
    /// As it is written in `--set name=value`.
    pub name: String,
    /// What it does, its unit, its choices.
    pub doc: String,
    /// Whether a deployment must give it.
    pub required: bool,
    /// What holds when a deployment does not give it.
    pub default: Option<String>,
}

impl Description {
    /// A plugin without configuration. `summary` is one sentence.
    pub fn new(summary: impl Into<String>) -> Self {
        Self { summary: summary.into(), keys: Vec::new() }
    }

    /// Adds a key that every deployment must give.
    pub fn required(self, name: &str, doc: &str) -> Self {
        self.key(name, doc, true, None)
    }

    /// Adds a key that may be absent.
    pub fn optional(self, name: &str, doc: &str) -> Self {
        self.key(name, doc, false, None)
    }

    /// Adds a key that has a default.
    pub fn with_default(self, name: &str, doc: &str, default: &str) -> Self {
        self.key(name, doc, false, Some(default.to_owned()))
    }

    fn key(mut self, name: &str, doc: &str, required: bool, default: Option<String>) -> Self {
        assert!(
            self.keys.iter().all(|key| key.name != name),
            "configuration key {name:?} is described twice"
        );
        self.keys.push(ConfigKey { name: name.to_owned(), doc: doc.to_owned(), required, default });
        self
    }

    /// What the plugin does, in one sentence.
    pub fn summary(&self) -> &str {
        &self.summary
    }

    /// The keys, as described.
    pub fn keys(&self) -> &[ConfigKey] {
        &self.keys
    }
}
