//! What a plugin says of itself.

use crate::bindings::exports::tidemill::plugin::lifecycle;
use crate::check::BadAnswer;
use crate::text::cut;

/// Bytes of the summary, of a key's doc and of its default; the rest is cut off.
const TEXT_BYTES_MAX: usize = 4096;
const NAME_BYTES_MAX: usize = 128;
const CONFIG_KEYS_MAX: usize = 256;

/// What a plugin is for and how it is configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// A sentence or two.
    pub summary: String,
    /// The configuration keys that it knows.
    pub config: Vec<ConfigKey>,
}

/// A configuration key that a plugin knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigKey {
    /// Its name.
    pub name: String,
    /// What it does.
    pub doc: String,
    /// Whether a deployment must give it.
    pub required: bool,
    /// Its value where a deployment does not give it.
    pub default: Option<String>,
}

impl Description {
    pub(crate) fn from_guest(said: lifecycle::Description) -> Result<Self, BadAnswer> {
        if said.config.len() > CONFIG_KEYS_MAX {
            let keys = said.config.len();
            return Err(BadAnswer(format!(
                "it describes {keys} configuration keys, above {CONFIG_KEYS_MAX}"
            )));
        }
        let config = said.config.into_iter().map(ConfigKey::from_guest).collect::<Result<_, _>>()?;
        Ok(Self { summary: cut(said.summary, TEXT_BYTES_MAX), config })
    }
}

impl ConfigKey {
    fn from_guest(said: lifecycle::ConfigKey) -> Result<Self, BadAnswer> {
        if said.name.is_empty() || said.name.len() > NAME_BYTES_MAX {
            let bytes = said.name.len();
            return Err(BadAnswer(format!(
                "a configuration key's name has {bytes} bytes, not 1 to {NAME_BYTES_MAX}"
            )));
        }
        Ok(Self {
            name: said.name,
            doc: cut(said.doc, TEXT_BYTES_MAX),
            required: said.required,
            default: said.default.map(|default| cut(default, TEXT_BYTES_MAX)),
        })
    }
}
