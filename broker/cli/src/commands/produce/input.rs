//! A line of input, as a record.

use std::borrow::Cow;
use std::fmt;

use clap::{Args, ValueEnum};
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

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
    #[arg(long = "header", value_name = "NAME=VALUE", value_parser = text::name_value)]
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

/// A record as `--format json` has it, and `consume --json` prints it. What becomes bytes is kept as it stands in the line: read as
/// numbers and maps it would be rounded and sorted.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct JsonRecord<'a> {
    #[serde(borrow)]
    key: Option<&'a RawValue>,
    #[serde(borrow)]
    value: Option<&'a RawValue>,
    #[serde(borrow)]
    headers: Option<&'a RawValue>,
    timestamp: Option<i64>,
    partition: Option<u32>,
    /// Where it was read says nothing about where it goes.
    #[serde(rename = "topic")]
    _topic: Option<IgnoredAny>,
    #[serde(rename = "offset")]
    _offset: Option<IgnoredAny>,
}

/// The fields of a JSON object as they stand in it: in its order, a name as often as it stands there.
struct Fields<'a>(Vec<(String, &'a RawValue)>);

impl<'a> Fields<'a> {
    /// The last of this name: where it stands twice, most readers of JSON take that one.
    fn get(&self, name: &str) -> Option<&'a RawValue> {
        self.0.iter().rfind(|(field, _)| field == name).map(|(_, value)| *value)
    }
}

impl<'de> Deserialize<'de> for Fields<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(FieldsVisitor)
    }
}

struct FieldsVisitor;

impl<'de> Visitor<'de> for FieldsVisitor {
    type Value = Fields<'de>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a JSON object")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
        let mut fields = Vec::new();
        while let Some(field) = map.next_entry::<String, &'de RawValue>()? {
            fields.push(field);
        }
        Ok(Fields(fields))
    }
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
        let fields: Fields<'a> =
            serde_json::from_slice(line).map_err(|error| format!("it is no JSON object: {error}"))?;
        let key = fields.get(field).ok_or_else(|| format!("it has no field '{field}'"))?;
        return Ok(of(bytes_of(key)?, line));
    }
    Ok(of(fixed_key(format), line))
}

/// `--format json`: the line says everything.
fn parse_json<'a>(format: &'a RecordFormat, line: &'a [u8]) -> Result<InputRecord<'a>, String> {
    let parsed: JsonRecord<'a> = serde_json::from_slice(line).map_err(|error| {
        format!("{error}; a line is {{\"key\": .., \"value\": .., \"headers\": {{}}, \"timestamp\": ..}}")
    })?;
    Ok(InputRecord {
        key: parsed.key.map_or(Ok(None), bytes_of)?.or_else(|| fixed_key(format)),
        value: parsed.value.map_or(Ok(None), bytes_of)?,
        headers: parsed.headers.map_or_else(|| Ok(Vec::new()), headers_of)?,
        timestamp: parsed.timestamp,
        partition: parsed.partition,
    })
}

fn fixed_key(format: &RecordFormat) -> Option<Cow<'_, [u8]>> {
    format.key.as_ref().map(|key| Cow::Borrowed(key.as_bytes()))
}

/// `{"name": value}`, or `[{"name": "name", "value": value}]`; in both a name may stand twice.
fn headers_of(headers: &RawValue) -> Result<Headers, String> {
    let json = headers.get();
    if json.starts_with('{') {
        let fields: Fields<'_> = serde_json::from_str(json).map_err(|error| error.to_string())?;
        return fields.0.into_iter().map(|(name, value)| Ok((name, owned_bytes_of(value)?))).collect();
    }
    let list: Vec<Fields<'_>> = serde_json::from_str(json).map_err(|_| HEADERS_SHAPE)?;
    list.iter().map(header_of).collect()
}

const HEADERS_SHAPE: &str = "headers are {\"NAME\": VALUE} or [{\"name\": \"NAME\", \"value\": VALUE}] \
                             as `consume --json` prints them";

/// One header of a list of them.
fn header_of(header: &Fields<'_>) -> Result<(String, Option<Vec<u8>>), String> {
    let name = header.get("name").and_then(|name| text_of(name).ok()).ok_or(HEADERS_SHAPE)?;
    Ok((name, header.get("value").map_or(Ok(None), owned_bytes_of)?))
}

fn owned_bytes_of(value: &RawValue) -> Result<Option<Vec<u8>>, String> {
    Ok(bytes_of(value)?.map(Cow::into_owned))
}

/// Null as null, a string as its text, `{"base16": ".."}` as these bytes, anything else as the JSON that stands there, letter for
/// letter.
fn bytes_of(value: &RawValue) -> Result<Option<Cow<'_, [u8]>>, String> {
    let json = value.get();
    match json.as_bytes().first() {
        Some(b'n') => Ok(None),
        Some(b'"') => Ok(Some(Cow::Owned(text_of(value)?.into_bytes()))),
        Some(b'{') => match base16_of(json) {
            Some(digits) => digits.map(|bytes| Some(Cow::Owned(bytes))),
            None => Ok(Some(Cow::Borrowed(json.as_bytes()))),
        },
        _ => Ok(Some(Cow::Borrowed(json.as_bytes()))),
    }
}

/// What a string says.
fn text_of(value: &RawValue) -> Result<String, String> {
    serde_json::from_str(value.get()).map_err(|error| format!("a text in it does not read: {error}"))
}

/// The bytes of `{"base16": ".."}`; `None` where the object is another.
fn base16_of(json: &str) -> Option<Result<Vec<u8>, String>> {
    let fields: Fields<'_> = serde_json::from_str(json).ok()?;
    let [(name, digits)] = fields.0.as_slice() else { return None };
    if name != "base16" {
        return None;
    }
    let bytes = text_of(digits).ok().and_then(|digits| bytes_of_digits(&digits));
    let wrong = || format!("{json} does not read: base16 is a text of two hexadecimal digits per byte");
    Some(bytes.ok_or_else(wrong))
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
    fn what_is_no_text_is_kept_letter_for_letter() {
        let by_field = produce(&["--value-field-key", "id"]);
        for kept in [
            r#"{"z":1,"a":12345678901234567890123,"f":1.10,"e":1e3}"#,
            r#"{"a":1,"a":2}"#,
            r#"{"base16":"00","base16":"01"}"#,
            r#"{"deep": [ 1.10, {"\u0062": -0.0} ]}"#,
            "12345678901234567890123",
            "1.10",
            "1e400",
            "[1, 2.50]",
            "true",
        ] {
            let bytes = kept.as_bytes();
            let line = format!(r#"{{"key": {kept} ,"value":{kept},"headers":{{"h":{kept},"a":{kept}}}}}"#);
            let record = json(&line).expect(kept);
            assert_eq!((record.key, record.value), (owned(bytes), owned(bytes)), "{kept}");
            let headers = ["h", "a"].map(|name| (name.to_owned(), Some(bytes.to_vec())));
            assert_eq!(record.headers, headers, "{kept}");
            let line = format!(r#"{{"other":0,"id": {kept} }}"#);
            let record = parse_text(&by_field, line.as_bytes()).expect(kept);
            assert_eq!((record.key, record.value), (owned(bytes), owned(line.as_bytes())), "{kept}");
        }
        assert_eq!(json(r#"{"value":"\u00e9\n"}"#).expect("a text").value, owned("é\n".as_bytes()));
        for wrong in [r#"{"value":"\ud800"}"#, r#"{"value":01}"#, r#"{"value":{"a":}}"#, r#"{"value":nul}"#] {
            assert!(json(wrong).is_err(), "{wrong}");
        }
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
        let twice = json(r#"{"headers":{"b":"1","a":"2","b":"3"}}"#).expect("a name twice").headers;
        assert_eq!(twice.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["b", "a", "b"]);
        assert_eq!(json(r#"{"headers":null}"#), Ok(InputRecord::default()));
        for wrong in [
            r#"{"headers":["a"]}"#,
            r#"{"headers":"a"}"#,
            r#"{"headers":[["a","1"]]}"#,
            r#"{"headers":[{"key":"a"}]}"#,
            r#"{"headers":[{"name":7}]}"#,
        ] {
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
        assert_eq!(parse_text(&by_field, br#"{"id":1,"id":2}"#).expect("JSON").key, owned(b"2"));
        for wrong in [&b"id"[..], b"[1]", b""] {
            assert!(parse_text(&by_field, wrong).is_err_and(|reason| reason.contains("no JSON object")));
        }
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
