//! Names of topics, plugins and deployments: parsed once, at the edge.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A name of 1 to 249 characters out of `a-z A-Z 0-9 . _ -`, as Kafka allows for topics. Neither `.` nor `..`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

/// Why a text is not a [`Name`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' is not a name: {reason}")]
pub struct NameError {
    text: String,
    reason: &'static str,
}

const CHARACTERS_MAX: usize = 249;

impl Name {
    /// Parses a name.
    ///
    /// # Errors
    /// [`NameError`] says which rule the text breaks.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let refuse = |reason| {
            let text = text.chars().take(CHARACTERS_MAX + 1).collect();
            Err(NameError { text, reason })
        };
        if text.is_empty() {
            return refuse("it is empty");
        }
        if text.len() > CHARACTERS_MAX {
            return refuse("it is longer than 249 characters");
        }
        if text == "." || text == ".." {
            return refuse("'.' and '..' are kept for the file system");
        }
        if !text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-')) {
            return refuse("only letters a-z and A-Z, digits, '.', '_' and '-' may stand in it");
        }
        Ok(Self(text.to_owned()))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for Name {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        Self::parse(&text)
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_names_pass_and_others_say_why() {
        for good in ["plays", "a.b_c-9", &"x".repeat(249)] {
            assert_eq!(Name::parse(good).expect(good).as_str(), good);
        }
        for (bad, reason) in [
            ("", "empty"),
            (".", "file system"),
            ("..", "file system"),
            ("a/b", "may stand"),
            ("naïve", "may stand"),
            (&"x".repeat(250), "longer"),
        ] {
            let error = Name::parse(bad).expect_err(bad);
            assert!(error.to_string().contains(reason), "{bad}: {error}");
        }
    }
}
