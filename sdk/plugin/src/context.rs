//! Where an instance runs, and its configuration.

use std::fmt::{self, Display};
use std::str::FromStr;

use crate::description::Description;

/// What the broker tells a new instance.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContextParts {
    /// The deployment's name.
    pub deployment: String,
    /// The topics read, in the order that [`Batch::topic`](crate::Batch::topic) counts.
    pub topics: Vec<String>,
    /// The topics that may be emitted to, in the order that [`Target`] counts.
    pub targets: Vec<String>,
    /// The configuration as given.
    pub config: Vec<(String, String)>,
}

/// A topic that the deployment may emit to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target(pub u32);

/// Where an instance runs, and its configuration with defaults filled in.
#[derive(Clone, Debug)]
pub struct Context {
    deployment: String,
    topics: Vec<String>,
    targets: Vec<String>,
    /// A few pairs: a map would cost more in every component than it saves.
    config: Vec<(String, String)>,
}

/// A configuration that a plugin cannot work with; the deployment is refused with this message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError(String);

impl Context {
    /// Checks `parts` against what the plugin describes: no key unknown, none twice, none missing.
    pub fn new(parts: ContextParts, description: &Description) -> Result<Self, ConfigError> {
        let mut config: Vec<(String, String)> = Vec::new();
        for (name, value) in parts.config {
            if description.keys().iter().all(|key| key.name != name) {
                return Err(unknown_key(&name, description));
            }
            if config.iter().any(|(given, _)| *given == name) {
                return Err(ConfigError(format!("config key {name:?} is given twice")));
            }
            config.push((name, value));
        }
        for key in description.keys() {
            if config.iter().any(|(given, _)| *given == key.name) {
                continue;
            }
            match &key.default {
                Some(default) => config.push((key.name.clone(), default.clone())),
                None if key.required => return Err(missing_key(&key.name, &key.doc)),
                None => {}
            }
        }
        Ok(Self { deployment: parts.deployment, topics: parts.topics, targets: parts.targets, config })
    }

    /// The deployment's name.
    pub fn deployment(&self) -> &str {
        &self.deployment
    }

    /// The topics read, in the order that [`Batch::topic`](crate::Batch::topic) counts.
    pub fn topics(&self) -> &[String] {
        &self.topics
    }

    /// The topics that may be emitted to, in the order that [`Target`] counts.
    pub fn targets(&self) -> &[String] {
        &self.targets
    }

    /// The target of this name.
    pub fn target(&self, name: &str) -> Result<Target, ConfigError> {
        match self.targets.iter().position(|target| target == name) {
            Some(index) => Ok(Target(index as u32)),
            None => Err(ConfigError(format!(
                "topic {name:?} is not a target of this deployment ({}): add it as a target",
                listed(self.targets.iter().map(String::as_str))
            ))),
        }
    }

    /// A key's value: as given, or its default. None where neither is there.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.config.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// The value of a key that is required or has a default.
    pub fn text(&self, key: &str) -> Result<&str, ConfigError> {
        self.get(key).ok_or_else(|| ConfigError(format!("config key {key:?} is missing")))
    }

    /// Parses the value of a key that is required or has a default.
    pub fn parse<T: FromStr<Err: Display>>(&self, key: &str) -> Result<T, ConfigError> {
        let text = self.text(key)?;
        text.trim().parse().map_err(|error| invalid(key, text, error))
    }

    /// Parses the value of a key, where it is there.
    pub fn parse_optional<T: FromStr<Err: Display>>(&self, key: &str) -> Result<Option<T>, ConfigError> {
        if self.get(key).is_some() { self.parse(key).map(Some) } else { Ok(None) }
    }

    /// One of several words.
    pub fn choice<T: Clone>(&self, key: &str, choices: &[(&str, T)]) -> Result<T, ConfigError> {
        let text = self.text(key)?;
        match choices.iter().find(|(word, _)| *word == text.trim()) {
            Some((_, choice)) => Ok(choice.clone()),
            None => Err(invalid(
                key,
                text,
                format_args!("choose {}", listed(choices.iter().map(|(word, _)| *word))),
            )),
        }
    }

    /// `true` or `false`.
    pub fn flag(&self, key: &str) -> Result<bool, ConfigError> {
        self.choice(key, &[("true", true), ("false", false)])
    }

    /// A duration in milliseconds, written `500ms`, `30s`, `5m`, `2h` or `1d`.
    pub fn duration_ms(&self, key: &str) -> Result<u64, ConfigError> {
        let text = self.text(key)?;
        duration_ms(text.trim()).ok_or_else(|| invalid(key, text, "write 500ms, 30s, 5m, 2h or 1d"))
    }

    /// An error about a key's value, for checks of the plugin's own.
    pub fn invalid(&self, key: &str, why: impl Display) -> ConfigError {
        invalid(key, self.get(key).unwrap_or_default(), why)
    }
}

fn duration_ms(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let unit_ms: u64 = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(unit_ms)
}

fn invalid(key: &str, text: &str, why: impl Display) -> ConfigError {
    ConfigError(format!("config key {key:?}: {text:?} is not valid: {why}"))
}

fn missing_key(name: &str, doc: &str) -> ConfigError {
    ConfigError(format!("config key {name:?} is required ({doc}): give it with --set {name}=..."))
}

fn unknown_key(name: &str, description: &Description) -> ConfigError {
    let known = listed(description.keys().iter().map(|key| key.name.as_str()));
    ConfigError(format!("config key {name:?} is not known to this plugin, which knows {known}"))
}

fn listed<'a>(words: impl Iterator<Item = &'a str>) -> String {
    let mut list = String::new();
    for word in words {
        if !list.is_empty() {
            list.push_str(", ");
        }
        list.push_str(word);
    }
    if list.is_empty() { "none".to_owned() } else { list }
}

impl Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ConfigError {}

impl From<ConfigError> for String {
    fn from(error: ConfigError) -> Self {
        error.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(config: &[(&str, &str)]) -> Result<Context, ConfigError> {
        let description = Description::new("test")
            .required("field", "the field to read")
            .with_default("window", "how long", "5m")
            .with_default("missing", "what to do", "skip")
            .optional("limit", "at most");
        let config = config.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        Context::new(
            ContextParts { targets: vec!["a".into(), "b".into()], config, ..Default::default() },
            &description,
        )
    }

    #[test]
    fn defaults_are_filled_in_and_values_parsed() {
        let ctx = context(&[("field", "x"), ("limit", " 7 ")]).unwrap();
        assert_eq!(ctx.text("field").unwrap(), "x");
        assert_eq!(ctx.duration_ms("window").unwrap(), 300_000);
        assert_eq!(ctx.parse_optional::<u8>("limit").unwrap(), Some(7));
        assert_eq!(ctx.choice("missing", &[("skip", 1), ("reject", 2)]).unwrap(), 1);
        assert_eq!(ctx.target("b").unwrap(), Target(1));
        assert_eq!(context(&[("field", "x")]).unwrap().parse_optional::<u8>("limit").unwrap(), None);
    }

    #[test]
    fn a_bad_configuration_says_what_to_do() {
        let message = |config: &[(&str, &str)]| context(config).unwrap_err().to_string();
        assert!(message(&[]).contains("--set field="));
        assert!(message(&[("field", "x"), ("feild", "y")]).contains("knows field, window, missing, limit"));
        assert!(message(&[("field", "x"), ("field", "y")]).contains("given twice"));
        let ctx =
            context(&[("field", "x"), ("window", "5 minutes"), ("limit", "300"), ("missing", "no")]).unwrap();
        assert!(ctx.duration_ms("window").unwrap_err().to_string().contains("30s, 5m"));
        assert!(ctx.parse::<u8>("limit").unwrap_err().to_string().contains("too large"));
        assert!(
            ctx.choice("missing", &[("skip", 1), ("reject", 2)])
                .unwrap_err()
                .to_string()
                .contains("skip, reject")
        );
        assert!(ctx.target("c").unwrap_err().to_string().contains("(a, b)"));
    }

    #[test]
    fn durations_that_overflow_or_lack_a_unit_are_refused() {
        assert_eq!(duration_ms("1d"), Some(86_400_000));
        for text in ["", "5", "ms", "-1s", "1.5s", "99999999999999999999d", "18446744073709551615d"] {
            assert_eq!(duration_ms(text), None, "{text}");
        }
    }
}
