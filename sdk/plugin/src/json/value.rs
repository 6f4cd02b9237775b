//! Values found in a document.

use std::fmt;
use std::ops::ControlFlow;

use super::number::Number;
use super::scan::{Halt, Interest, Malformed, Scanner, Visitor, check_utf8};
use super::text::Text;

/// A well-formed value, as it stands in its document.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Raw<'v> {
    bytes: &'v [u8],
}

/// A value, read.
#[derive(Clone, Copy, Debug)]
pub enum Value<'v> {
    /// `null`
    Null,
    /// `true` or `false`
    Bool(bool),
    /// A number
    Number(Number<'v>),
    /// A string
    Text(Text<'v>),
    /// An array, as it stands
    Array(&'v [u8]),
    /// An object, as it stands
    Object(&'v [u8]),
}

impl<'v> Raw<'v> {
    /// Of bytes that a scan has found to be a value.
    pub(super) fn of(bytes: &'v [u8]) -> Self {
        Self { bytes }
    }

    /// A whole document: one value, space around it allowed.
    pub fn parse(document: &'v [u8]) -> Result<Self, Malformed> {
        check_utf8(document)?;
        match Scanner::new(document, Nothing).document(0) {
            Ok(()) => Ok(Self::of(document.trim_ascii())),
            Err(Halt::Malformed(malformed)) => Err(malformed),
            Err(Halt::Enough) => unreachable!("nothing is looked for"),
        }
    }

    /// As it stands in the document.
    pub fn bytes(&self) -> &'v [u8] {
        self.bytes
    }

    /// What it is.
    pub fn value(&self) -> Value<'v> {
        match self.bytes.first() {
            Some(b'"') => Value::Text(Text::of(&self.bytes[1..self.bytes.len() - 1])),
            Some(b'{') => Value::Object(self.bytes),
            Some(b'[') => Value::Array(self.bytes),
            Some(b't') => Value::Bool(true),
            Some(b'f') => Value::Bool(false),
            Some(b'n') | None => Value::Null,
            Some(_) => Value::Number(Number::of(self.bytes)),
        }
    }

    /// The string, if it is one.
    pub fn text(&self) -> Option<Text<'v>> {
        if let Value::Text(text) = self.value() { Some(text) } else { None }
    }

    /// The number, if it is one.
    pub fn number(&self) -> Option<Number<'v>> {
        if let Value::Number(number) = self.value() { Some(number) } else { None }
    }

    /// Whether it is `null`.
    pub fn is_null(&self) -> bool {
        self.bytes == b"null"
    }

    /// Appends the bytes that stand for a scalar wherever it is used as a key: a string's text without quotes and escapes, a number's
    /// canonical form, `true` or `false`. Answers false, and appends nothing, for null, arrays and objects.
    pub fn write_key(&self, out: &mut Vec<u8>) -> bool {
        match self.value() {
            Value::Text(text) => out.extend_from_slice(&text.bytes()),
            Value::Number(number) => number.write_canonical(out),
            Value::Bool(_) => out.extend_from_slice(self.bytes),
            Value::Null | Value::Array(_) | Value::Object(_) => return false,
        }
        true
    }
}

impl PartialEq<str> for Raw<'_> {
    fn eq(&self, other: &str) -> bool {
        self.text().is_some_and(|text| text == *other.as_bytes())
    }
}

impl PartialEq<&str> for Raw<'_> {
    fn eq(&self, other: &&str) -> bool {
        *self == **other
    }
}

impl fmt::Debug for Raw<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(self.bytes))
    }
}

/// The members of an object, in order.
pub fn entries<'v>(object: Raw<'v>) -> Vec<(Text<'v>, Raw<'v>)> {
    if !matches!(object.value(), Value::Object(_)) {
        return Vec::new();
    }
    let mut members = Members { document: object.bytes, names: Vec::new(), members: Vec::new() };
    // The value is well-formed, so the scan comes to its end.
    let _complete = Scanner::new(object.bytes, &mut members).document(SOME);
    members.names.into_iter().map(Text::of).zip(members.members).collect()
}

/// Looks for nothing: for checking the grammar alone.
struct Nothing;

impl Visitor for Nothing {
    fn member(&mut self, _: u64, _: &[u8]) -> Interest {
        Interest::default()
    }

    fn element(&mut self, _: u64, _: u64) -> Interest {
        Interest::default()
    }

    fn value(&mut self, _: u64, _: usize, _: usize) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

/// Any interest will do: only the object itself has members of interest.
const SOME: u64 = 1;

struct Members<'v> {
    document: &'v [u8],
    names: Vec<&'v [u8]>,
    members: Vec<Raw<'v>>,
}

impl Visitor for &mut Members<'_> {
    fn member(&mut self, _: u64, name: &[u8]) -> Interest {
        // The name is a part of the document: found again by its place, for its longer lifetime.
        let start = name.as_ptr() as usize - self.document.as_ptr() as usize;
        self.names.push(&self.document[start..start + name.len()]);
        Interest { within: 0, itself: SOME }
    }

    fn element(&mut self, _: u64, _: u64) -> Interest {
        Interest::default()
    }

    fn value(&mut self, _: u64, start: usize, end: usize) -> ControlFlow<()> {
        self.members.push(Raw::of(&self.document[start..end]));
        ControlFlow::Continue(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn objects_have_entries() {
        let object = Raw::parse(br#" {"a" : 1, "b\n":{"c":[2]},"d":null} "#).unwrap();
        let read: Vec<_> = entries(object)
            .into_iter()
            .map(|(name, value)| (name.text().into_owned(), format!("{value:?}")))
            .collect();
        let expected =
            [("a", "1"), ("b\n", r#"{"c":[2]}"#), ("d", "null")].map(|(a, b)| (a.to_owned(), b.to_owned()));
        assert_eq!(read, expected);
        assert!(entries(Raw::parse(b"[1]").unwrap()).is_empty());
    }

    #[test]
    fn scalars_are_keys() {
        let key = |text: &str| {
            let mut out = Vec::new();
            Raw::parse(text.as_bytes()).unwrap().write_key(&mut out).then(|| String::from_utf8(out).unwrap())
        };
        assert_eq!(key(r#""a\u00e9""#).as_deref(), Some("aé"));
        assert_eq!(key("1.50").as_deref(), Some("1.5"));
        assert_eq!(key("true").as_deref(), Some("true"));
        assert_eq!(key("null").or(key("[]")).or(key("{}")), None);
    }

    #[test]
    fn what_is_not_json_is_refused_as_serde_json_refuses_it() {
        let deep = |n: usize| format!("{}{}", "[".repeat(n), "]".repeat(n));
        assert!(Raw::parse(deep(128).as_bytes()).is_ok());
        assert!(Raw::parse(deep(129).as_bytes()).is_err());
        for text in [
            "",
            " ",
            "{",
            "}",
            "[1,]",
            "[,1]",
            "{\"a\"}",
            "{\"a\":}",
            "{a:1}",
            "{\"a\":1,}",
            "01",
            "1.",
            ".5",
            "-",
            "+1",
            "1e",
            "1e+",
            "tru",
            "nullx",
            "\"",
            "\"\\",
            "\"\\x\"",
            "\"\\u12\"",
            "\"\\u12g4\"",
            "\"\u{1}\"",
            "1 2",
            "{} {}",
            "[1 2]",
            "{\"a\" 1}",
            "'a'",
            "NaN",
            "\"12345678\u{1f}\"",
            "\"1234567890abcde\n\"",
            "\u{feff}{}",
        ] {
            assert!(serde_json::from_str::<serde_json::Value>(text).is_err(), "{text}");
            assert!(Raw::parse(text.as_bytes()).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_json_here_where_it_is_there(text in r#"[\[\]{}:,"\\ \n0-9eE.+\-a-u\u00e9]{0,24}"#) {
            let there = serde_json::from_str::<serde::de::IgnoredAny>(&text).is_ok();
            prop_assert_eq!(Raw::parse(text.as_bytes()).is_ok(), there, "{}", text);
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes: Vec<u8>) {
            let _ = Raw::parse(&bytes);
        }
    }
}
