//! A line of input, as a record.

use std::borrow::Cow;

use clap::{Args, ValueEnum};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

use crate::text;

// The flags that say how a line becomes a record, the same for every command that reads some. (No documentation comment: clap would
// take it for the command's own.)
#[derive(Debug, Args)]
pub(crate) struct RecordFormat {
    /// What the input is.
    #[arg(long, value_enum, default_value_t = Format::Lines)]
    format: Format,
    /// Key of every record; with --format json of those that have none.
    #[arg(long, conflicts_with = "key_separator")]
    key: Option<String>,
    /// A line is KEY, this, VALUE.
    #[arg(long, value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    key_separator: Option<String>,
    /// A line is a JSON object, whole the value; this field of it is the key.
    #[arg(long, value_name = "FIELD", conflicts_with_all = ["key", "key_separator"])]
    value_field_key: Option<String>,
    /// A header of every record; may be repeated.
    #[arg(long = "header", value_name = "NAME=VALUE", value_parser = text::key_value)]
    pub(crate) fixed_headers: Vec<(String, String)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A record per line.
    Lines,
    /// A JSON object per line: key, value, headers, timestamp, partition; also as `consume --json` prints it.
    Json,
}

/// A record as the input says it, without the headers that every record has. Null and empty differ.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct InputRecord<'a> {
    pub(crate) key: Option<Cow<'a, [u8]>>,
    pub(crate) value: Option<Cow<'a, [u8]>>,
    pub(crate) headers: Headers,
    /// Milliseconds since 1970.
    pub(crate) timestamp: Option<i64>,
    pub(crate) partition: Option<u32>,
}

/// Names, which may stand twice, with their values.
pub(crate) type Headers = Vec<(String, Option<Vec<u8>>)>;

/// A record as `--format json` has it, and `consume --json` prints it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct JsonRecord {
    #[serde(default)]
    key: Value,
    #[serde(default)]
    value: Value,
    #[serde(default)]
    headers: Value,
    timestamp: Option<i64>,
    partition: Option<u32>,
    /// Where it was read says nothing about where it goes.
    #[serde(rename = "topic")]
    _topic: Option<IgnoredAny>,
    #[serde(rename = "offset")]
    _offset: Option<IgnoredAny>,
}

impl RecordFormat {
    /// What the grammar can't say.
    pub(crate) fn check(&self) -> Result<(), String> {
        let only_for_lines = [
            ("--key-separator", self.key_separator.is_some()),
            ("--value-field-key", self.value_field_key.is_some()),
        ];
        match only_for_lines.iter().find(|(_, is_given)| *is_given && self.format == Format::Json) {
            Some((flag, _)) => {
                Err(format!("{flag} is for --format lines; with --format json a line names its own \"key\""))
            }
            None => Ok(()),
        }
    }

    /// The record of a line, given without its end; `None` where there is none in it.
    pub(crate) fn parse<'a>(&'a self, line: &'a [u8]) -> Result<Option<InputRecord<'a>>, String> {
        match self.format {
            Format::Lines => parse_text(self, line).map(Some),
            Format::Json if line.is_empty() => Ok(None),
            Format::Json => parse_json(self, line).map(Some),
        }
    }
}

/// `--format lines`: the line is the value; its key comes from the flags.
fn parse_text<'a>(format: &'a RecordFormat, line: &'a [u8]) -> Result<InputRecord<'a>, String> {
    let of = |key: Option<Cow<'a, [u8]>>, value: &'a [u8]| InputRecord {
        key,
        value: Some(Cow::Borrowed(value)),
        ..InputRecord::default()
    };
    if let Some(separator) = &format.key_separator {
        let separator = separator.as_bytes();
        let at = line
            .windows(separator.len())
            .position(|window| window == separator)
            .ok_or("there is no key separator in it")?;
        return Ok(of(Some(line[..at].into()), &line[at + separator.len()..]));
    }
    if let Some(field) = &format.value_field_key {
        let value: Value =
            serde_json::from_slice(line).map_err(|error| format!("it is not JSON: {error}"))?;
        let key = value.get(field).ok_or_else(|| format!("it has no field '{field}'"))?;
        return Ok(of(bytes_of(key)?.map(Cow::Owned), line));
    }
    Ok(of(fixed_key(format), line))
}

/// `--format json`: the line says everything.
fn parse_json<'a>(format: &'a RecordFormat, line: &[u8]) -> Result<InputRecord<'a>, String> {
    let parsed: JsonRecord = serde_json::from_slice(line).map_err(|error| {
        format!("{error}; a line is {{\"key\": .., \"value\": .., \"headers\": {{}}, \"timestamp\": ..}}")
    })?;
    Ok(InputRecord {
        key: bytes_of(&parsed.key)?.map(Cow::Owned).or_else(|| fixed_key(format)),
        value: bytes_of(&parsed.value)?.map(Cow::Owned),
        headers: headers_of(&parsed.headers)?,
        timestamp: parsed.timestamp,
        partition: parsed.partition,
    })
}

fn fixed_key(format: &RecordFormat) -> Option<Cow<'_, [u8]>> {
    format.key.as_ref().map(|key| Cow::Borrowed(key.as_bytes()))
}

/// `{"name": value}`, or `[{"name": "name", "value": value}]`, where a name may stand twice.
fn headers_of(headers: &Value) -> Result<Headers, String> {
    const SHAPE: &str = "headers are {\"NAME\": VALUE} or [{\"name\": \"NAME\", \"value\": VALUE}] as `consume --json` prints them";
    match headers {
        Value::Null => Ok(Vec::new()),
        Value::Object(map) => map.iter().map(|(name, value)| Ok((name.clone(), bytes_of(value)?))).collect(),
        Value::Array(list) => {
            let pair = |header: &Value| {
                let name = header.get("name").and_then(Value::as_str).ok_or(SHAPE)?;
                Ok((name.to_owned(), bytes_of(header.get("value").unwrap_or(&Value::Null))?))
            };
            list.iter().map(pair).collect()
        }
        _ => Err(SHAPE.to_owned()),
    }
}

/// Null as null, a string as its text, `{"base16": ".."}` as these bytes, anything else as JSON.
fn bytes_of(value: &Value) -> Result<Option<Vec<u8>>, String> {
    match value {
        Value::Null => Ok(None),
        Value::String(text) => Ok(Some(text.clone().into_bytes())),
        Value::Object(object) if object.len() == 1 && object.contains_key("base16") => {
            let digits = object.get("base16").and_then(Value::as_str).and_then(bytes_of_digits);
            digits.map(Some).ok_or_else(|| {
                format!("{value} does not read: base16 is a text of two hexadecimal digits per byte")
            })
        }
        other => Ok(Some(other.to_string().into_bytes())),
    }
}

fn bytes_of_digits(digits: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let pairs = digits.as_bytes().chunks(2);
    pairs.map(|pair| Some(digit(*pair.first()?)? << 4 | digit(*pair.get(1)?)?)).collect()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::arguments::{Arguments, Command};

    fn produce(flags: &[&str]) -> RecordFormat {
        let words = ["tidemill", "produce", "t"].iter().chain(flags);
        match Arguments::try_parse_from(words).expect("it parses").command {
            Command::Produce(produce) => produce.format,
            other => panic!("{other:?}"),
        }
    }

    fn json(line: &str) -> Result<InputRecord<'static>, String> {
        let produce = produce(&["--format", "json"]);
        parse_json(&produce, line.as_bytes()).map(|record| InputRecord {
            key: record.key.map(|key| Cow::Owned(key.into_owned())),
            value: record.value.map(|value| Cow::Owned(value.into_owned())),
            ..record
        })
    }

    fn owned(bytes: &[u8]) -> Option<Cow<'static, [u8]>> {
        Some(Cow::Owned(bytes.to_vec()))
    }

    #[test]
    fn null_and_empty_differ_with_and_without_a_key() {
        assert_eq!(json("{}"), Ok(InputRecord::default()));
        assert_eq!(json(r#"{"value":null}"#), Ok(InputRecord::default()));
        assert_eq!(json(r#"{"value":""}"#), Ok(InputRecord { value: owned(b""), ..InputRecord::default() }));
        let tombstone = InputRecord { key: owned(b"u1"), ..InputRecord::default() };
        assert_eq!(json(r#"{"key":"u1","value":null}"#), Ok(tombstone));
        assert_eq!(json(r#"{"value":{"n":7}}"#).expect("JSON").value, owned(br#"{"n":7}"#));
        assert_eq!(json(r#"{"key":7}"#).expect("a number").key, owned(b"7"));
    }

    #[test]
    fn headers_are_a_map_or_a_list() {
        let map = json(r#"{"headers":{"a":"1","n":null}}"#).expect("a map").headers;
        assert_eq!(map, [("a".to_owned(), Some(b"1".to_vec())), ("n".to_owned(), None)]);
        let list =
            r#"{"headers":[{"name":"a","value":"1"},{"name":"a","value":{"base16":"00fF"}},{"name":"n"}]}"#;
        let headers = json(list).expect("a list").headers;
        let expected = [("a", Some(b"1".to_vec())), ("a", Some(vec![0, 255])), ("n", None)];
        assert_eq!(headers, expected.map(|(name, value)| (name.to_owned(), value)));
        for wrong in [r#"{"headers":["a"]}"#, r#"{"headers":"a"}"#, r#"{"headers":[{"key":"a"}]}"#] {
            assert!(json(wrong).is_err_and(|reason| reason.contains("\"name\"")), "{wrong}");
        }
    }

    #[test]
    fn where_a_record_was_is_passed_over_and_a_typing_error_is_not() {
        let printed =
            r#"{"topic":"t","partition":2,"offset":7,"timestamp":5,"key":null,"value":"v","headers":[]}"#;
        let record = json(printed).expect("as it is printed");
        assert_eq!((record.partition, record.timestamp), (Some(2), Some(5)));
        assert!(json(r#"{"valeu":1}"#).is_err_and(|reason| reason.contains("valeu")));
        for digits in ["0", "0g", "é"] {
            let line = format!(r#"{{"value":{{"base16":"{digits}"}}}}"#);
            assert!(json(&line).is_err_and(|reason| reason.contains("hexadecimal")), "{digits}");
        }
    }

    #[test]
    fn lines_have_their_key_from_the_flags() {
        let keyed = produce(&["--key-separator", "::"]);
        let record = parse_text(&keyed, b"k::v::w").expect("a separator");
        assert_eq!((record.key, record.value), (owned(b"k"), owned(b"v::w")));
        assert!(parse_text(&keyed, b"none").is_err());
        let by_field = produce(&["--value-field-key", "id"]);
        assert_eq!(parse_text(&by_field, br#"{"id":7}"#).expect("JSON").key, owned(b"7"));
        assert_eq!(parse_text(&by_field, br#"{"id":null}"#).expect("JSON").key, None);
        assert!(parse_text(&by_field, b"{}").is_err_and(|reason| reason.contains("'id'")));
        assert_eq!(parse_text(&produce(&["--key", "k"]), b"").expect("empty").value, owned(b""));
    }

    #[test]
    fn flags_that_a_format_ignores_are_refused() {
        for flag in ["--key-separator", "--value-field-key"] {
            let refused = produce(&["--format", "json", flag, "x"]).check().expect_err("refused");
            assert!(refused.contains(flag), "{refused}");
            produce(&[flag, "x"]).check().expect("that is what it is for");
        }
        produce(&["--format", "json", "--key", "k"]).check().expect("a key for those without");
    }
}
