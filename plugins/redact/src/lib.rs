//! `redact`: replaces fields of JSON values, and leaves every other byte as it is.
//!
//! | key | what it does | default |
//! | --- | --- | --- |
//! | `fields` | paths, separated by commas: `user.email, payment.*.card, **.password` (`*` any name or place, `**` any depth) | required |
//! | `mode` | `fixed`: each field becomes the same value; `hash`: a pseudonym, the same for the same value | `fixed` |
//! | `with` | the value that `fixed` writes, as JSON: `"***"`, `null`, `0` | `"***"` |
//! | `secret` | the key of the pseudonyms, which `hash` requires: without it they can't be computed, with it they can be guessed | none |
//! | `nulls` | `keep`: a field that is null stays null; `replace` | `keep` |
//! | `malformed` | a value that is not JSON, where fields can't be told: `reject`, `drop` or `keep` | `reject` |
//!
//! Every occurrence is replaced, also of a name that stands twice in an object, and whatever the field holds: a matched object or array is
//! replaced whole. Null values (tombstones), keys and headers pass as they are.
//!
//! A pseudonym is the first 128 bits of the keyed BLAKE3 of the field, as 32 hexadecimal digits in quotes. The key is derived from
//! `secret`. Strings are hashed by their text, with escapes resolved, and numbers by their value, so that equal values have equal pseudonyms
//! however they are written; objects and arrays as they stand.
//!
//! ```text
//! tidemill consume plays --filter redact --set 'fields=user.email,**.ip' --set mode=hash --set secret=...
//! ```

mod pseudonym;

use tidemill_plugin::json::{Malformed, Match, Path, Raw, Selector};
use tidemill_plugin::prelude::*;
use tidemill_plugin::{Fields, Replacement};

use pseudonym::Pseudonyms;

/// Replaces fields of JSON values.
#[derive(Debug)]
pub struct Redact {
    selector: Selector,
    substitute: Substitute,
    keep_nulls: bool,
    malformed: Policy,
}

#[derive(Debug)]
enum Substitute {
    Fixed(Box<[u8]>),
    Hash(Pseudonyms),
}

#[derive(Clone, Copy, Debug)]
enum Policy {
    Reject,
    Drop,
    Keep,
}

impl Filter for Redact {
    fn describe() -> Description {
        Description::new("Replaces fields of JSON values, and leaves every other byte as it is.")
            .required("fields", "paths, separated by commas: user.email, payment.*.card, **.password")
            .with_default("mode", "fixed (each field becomes the same value) or hash (a pseudonym, the same for the same value)", "fixed")
            .with_default("with", "the value that fixed writes, as JSON", "\"***\"")
            .optional("secret", "the key of the pseudonyms, required by hash")
            .with_default("nulls", "fields that are null: keep or replace", "keep")
            .with_default("malformed", "a value that is not JSON: reject, drop or keep", "reject")
    }

    fn new(ctx: &Context) -> Result<Self, String> {
        let paths: Result<Vec<Path>, _> = ctx.text("fields")?.split(',').map(Path::parse).collect();
        let selector =
            paths.and_then(|paths| Selector::new(&paths)).map_err(|error| ctx.invalid("fields", error))?;
        let substitute = if ctx.choice("mode", &[("fixed", false), ("hash", true)])? {
            let secret = ctx.get("secret").filter(|secret| !secret.is_empty());
            Substitute::Hash(Pseudonyms::new(secret.ok_or("config key \"secret\" is required by mode=hash")?))
        } else {
            let with = ctx.text("with")?;
            let value = Raw::parse(with.as_bytes())
                .map_err(|error| ctx.invalid("with", format_args!("{error}; text stands in quotes")))?;
            Substitute::Fixed(value.bytes().into())
        };
        let policies = [("reject", Policy::Reject), ("drop", Policy::Drop), ("keep", Policy::Keep)];
        Ok(Self {
            selector,
            substitute,
            keep_nulls: ctx.choice("nulls", &[("keep", true), ("replace", false)])?,
            malformed: ctx.choice("malformed", &policies)?,
        })
    }

    fn fields(&self) -> Fields {
        Fields::VALUE
    }

    fn apply(&self, batch: &Batch) -> Result<Verdict, Failure> {
        let mut kept = Replacement::new();
        let mut rejections = Vec::new();
        // One list for the whole batch.
        let mut matches = Vec::new();
        let (mut untouched, mut records) = (0, 0);
        for record in batch {
            records += 1;
            match record.value().map_or(Ok(()), |value| self.find(value, &mut matches)) {
                Ok(()) if matches.is_empty() => {
                    untouched += 1;
                    kept.keep(&record);
                }
                Ok(()) => {
                    let value = record.value().unwrap_or_default();
                    kept.replace(&record).value_with(|out| self.write(value, &matches, out)).push();
                }
                Err(malformed) => match self.malformed {
                    Policy::Reject => rejections
                        .push(Rejection { ordinal: record.ordinal(), reason: malformed.to_string() }),
                    Policy::Drop => {}
                    Policy::Keep => kept.keep(&record),
                },
            }
            matches.clear();
        }
        // Nothing to copy back where nothing matched.
        let selection = if untouched == records { Selection::KeepAll } else { kept.into() };
        Ok(Verdict { selection, rejections })
    }
}

impl Redact {
    /// The parts to replace, in order and apart from each other.
    fn find(&self, value: &[u8], matches: &mut Vec<Match>) -> Result<(), Malformed> {
        self.selector.find_all(value, matches)?;
        if self.keep_nulls {
            matches.retain(|found| value[found.range.clone()] != *b"null");
        }
        // What lies within another match comes after it, and goes with it.
        matches.sort_by_key(|found| (found.range.start, std::cmp::Reverse(found.range.end)));
        let mut end = 0;
        matches.retain(|found| {
            let apart = found.range.start >= end;
            end = end.max(found.range.end);
            apart
        });
        Ok(())
    }

    fn write(&self, value: &[u8], matches: &[Match], out: &mut Vec<u8>) {
        let mut from = 0;
        for found in matches {
            out.extend_from_slice(&value[from..found.range.start]);
            match &self.substitute {
                Substitute::Fixed(fixed) => out.extend_from_slice(fixed),
                Substitute::Hash(pseudonyms) => pseudonyms.write(&value[found.range.clone()], out),
            }
            from = found.range.end;
        }
        out.extend_from_slice(&value[from..]);
    }
}

tidemill_plugin::export_filter!(Redact);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tidemill_plugin::testing::{FilterTest, Setup, TestRecord, batch_of};

    fn plugin(config: &[(&str, &str)]) -> FilterTest<Redact> {
        let setup = config.iter().fold(Setup::new(), |setup, (key, value)| setup.config(key, value));
        setup.filter().unwrap_or_else(|error| panic!("{error}"))
    }

    fn redacted(config: &[(&str, &str)], value: &str) -> String {
        let filtered = plugin(config).apply(&batch_of([value])).unwrap();
        filtered.values().into_iter().next().unwrap_or_else(|| format!("{:?}", filtered.rejections))
    }

    #[test]
    fn fields_are_replaced_and_the_rest_is_untouched() {
        let fields = [("fields", "user.email, items.*.card,**.ip")];
        assert_eq!(
            redacted(
                &fields,
                r#" {"user" : {"email":"a@b", "id": 1.0e0}, "ip":[1,2] ,"items":[{"card":7},{"x":{"ip":{}}}]} "#
            ),
            r#" {"user" : {"email":"***", "id": 1.0e0}, "ip":"***" ,"items":[{"card":"***"},{"x":{"ip":"***"}}]} "#
        );
        assert_eq!(redacted(&fields, r#"{"user":{"\u0065mail":"a"}}"#), r#"{"user":{"\u0065mail":"***"}}"#);
        assert_eq!(redacted(&fields, r#"{"id":"Größe","user":{}}"#), r#"{"id":"Größe","user":{}}"#);
    }

    #[test]
    fn every_occurrence_is_replaced() {
        assert_eq!(redacted(&[("fields", "a")], r#"{"a":1,"a":2}"#), r#"{"a":"***","a":"***"}"#);
        assert_eq!(
            redacted(&[("fields", "a.b,a,a.c")], r#"{"a":{"b":1,"c":2},"b":3}"#),
            r#"{"a":"***","b":3}"#
        );
        assert_eq!(
            redacted(&[("fields", "**.a")], r#"{"a":{"a":1},"b":[{"a":2}]}"#),
            r#"{"a":"***","b":[{"a":"***"}]}"#
        );
        assert_eq!(redacted(&[("fields", "a,a")], r#"{"a":1}"#), r#"{"a":"***"}"#);
    }

    #[test]
    fn the_fixed_value_is_any_json() {
        assert_eq!(redacted(&[("fields", "a"), ("with", " null ")], r#"{"a":1}"#), r#"{"a":null}"#);
        assert_eq!(redacted(&[("fields", "a")], r#"{"a":null}"#), r#"{"a":null}"#);
        assert_eq!(redacted(&[("fields", "a"), ("nulls", "replace")], r#"{"a":null}"#), r#"{"a":"***"}"#);
        let refused =
            Setup::new().config("fields", "a").config("with", "gone").filter::<Redact>().err().unwrap();
        assert!(refused.contains("text stands in quotes"), "{refused}");
    }

    #[test]
    fn equal_values_have_equal_pseudonyms() {
        let hash = |secret: &str, value: &str| {
            redacted(&[("fields", "a"), ("mode", "hash"), ("secret", secret)], &format!("{{\"a\":{value}}}"))
        };
        assert_eq!(hash("s", "\"x\"").len(), "{\"a\":\"\"}".len() + 32);
        assert_eq!(hash("s", "\"x\""), hash("s", "\"\\u0078\""));
        assert_eq!(hash("s", "1.0"), hash("s", "1e0"));
        for other in [hash("t", "\"x\""), hash("s", "\"y\""), hash("s", "[\"x\"]")] {
            assert_ne!(hash("s", "\"x\""), other);
        }
        assert_ne!(hash("s", "1"), hash("s", "\"1\""));
        let refused =
            Setup::new().config("fields", "a").config("mode", "hash").filter::<Redact>().err().unwrap();
        assert!(refused.contains("\"secret\" is required"), "{refused}");
    }

    #[test]
    fn what_is_not_json_does_not_slip_through() {
        for value in ["", "a=secret", r#"{"a":1"#, r#"{"a":1}x"#, "{\"a\":\"\u{1}\"}"] {
            assert!(redacted(&[("fields", "a")], value).contains("not JSON"), "{value}");
            assert_eq!(redacted(&[("fields", "a"), ("malformed", "keep")], value), value);
            assert_eq!(redacted(&[("fields", "a"), ("malformed", "drop")], value), "[]");
        }
        let not_utf8 = plugin(&[("fields", "a")])
            .apply(&batch_of([TestRecord::value(b"{\"b\":\"\xff\",\"a\":1}")]))
            .unwrap();
        assert!(not_utf8.rejections[0].reason.contains("expected UTF-8 at byte 6"));
    }

    #[test]
    fn keys_headers_and_tombstones_pass() {
        let batch = batch_of([
            TestRecord::tombstone("k"),
            TestRecord::new("k", "{\"a\":1}").header("h", Some("v")).timestamp(5),
            TestRecord::new("k", "{}"),
            TestRecord::new("k", "oops"),
        ]);
        let filtered = plugin(&[("fields", "a")]).apply(&batch).unwrap();
        assert_eq!(filtered.ordinals(), [0, 1, 2]);
        assert_eq!(filtered.records[0], TestRecord::tombstone("k").ordinal(0));
        assert_eq!(
            filtered.records[1],
            TestRecord::new("k", "{\"a\":\"***\"}").header("h", Some("v")).timestamp(5).ordinal(1)
        );
        assert_eq!(filtered.rejections[0].ordinal, 3);
    }

    proptest! {
        #[test]
        fn what_comes_out_is_json_without_the_field(secret in "[a-z0-9]{12}", other: String, depth in 0usize..4) {
            let mut value = serde_json::json!({"other": other, "secret": secret, "list": [{"secret": {"x": secret}}]});
            for _ in 0..depth {
                value = serde_json::json!({"secret2": 1, "in": [value]});
            }
            let out = redacted(&[("fields", "**.secret")], &value.to_string());
            prop_assert!(!out.contains(&secret) || other.contains(&secret));
            let batch = batch_of([out.as_str()]);
            prop_assert!(batch.get(0).unwrap().decode_json::<serde_json::Value>().is_ok());
        }
    }
}
