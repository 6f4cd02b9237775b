//! `field-hash`: places records by a field of their JSON value, so that events of one user, say, stay together and in order whatever
//! their key is.
//!
//! The field's canonical bytes are hashed as Kafka hashes keys: the text of a string, the shortest form of a number (7, 7.0 and 70e-1 are
//! one), `true` or `false`. So a topic placed by `user_id` is co-partitioned with one whose key is the user id.
//!
//! | key | what it does | default |
//! | --- | --- | --- |
//! | `field` | the path of the field, such as `user_id` or `user.address.city` | required |
//! | `missing` | a record without it (absent, null, an array or object, or the value is not JSON): `any` partition, by its `key`, or `reject` | `any` |
//!
//! ```text
//! tidemill deploy partitioner by-user --plugin field-hash --topic plays --set field=user_id
//! ```

use tidemill_plugin::json::{Path, Raw, Reach, Selector};
use tidemill_plugin::murmur2;
use tidemill_plugin::prelude::*;

/// Places records by a field of their JSON value.
#[derive(Debug)]
pub struct FieldHash {
    path: Path,
    selector: Selector,
    missing: Missing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Missing {
    Any,
    Key,
    Reject,
}

impl Partitioner for FieldHash {
    fn describe() -> Description {
        Description::new("Places records by a field of their JSON value.")
            .required("field", "the path of the field, such as user_id or user.address.city")
            .with_default(
                "missing",
                "a record without the field: any (any partition will do), key (placed by its key) or reject",
                "any",
            )
    }

    fn new(ctx: &Context) -> Result<Self, String> {
        let path: Path = ctx.parse("field")?;
        if !path.is_exact() {
            return Err(ctx.invalid("field", "it names one place: no *").into());
        }
        let choices = [("any", Missing::Any), ("key", Missing::Key), ("reject", Missing::Reject)];
        let selector =
            Selector::new(std::slice::from_ref(&path)).map_err(|error| ctx.invalid("field", error))?;
        Ok(Self { path, selector, missing: ctx.choice("missing", &choices)? })
    }

    fn fields(&self) -> Fields {
        if self.missing == Missing::Key { Fields::KEY | Fields::VALUE } else { Fields::VALUE }
    }

    fn place(&self, record: &Record<'_>, partitions: u32) -> Place {
        if let Some(hash) = self.hash(record) {
            return Place::Partition((hash & 0x7fff_ffff) % partitions);
        }
        match self.missing {
            Missing::Any => Place::Any,
            Missing::Key => {
                record.key().map_or(Place::Any, |key| Place::Partition(murmur2::partition(key, partitions)))
            }
            Missing::Reject => Place::Reject(format!("the value has no field {}", self.path)),
        }
    }
}

impl FieldHash {
    fn hash(&self, record: &Record<'_>) -> Option<u32> {
        let mut found: [Option<Raw<'_>>; 1] = [None];
        self.selector.find(record.value()?, Reach::UntilFound, &mut found).ok()?;
        let field = found[0]?;
        if let Some(text) = field.text() {
            // No copy, unless there are escapes.
            return Some(murmur2::hash(&text.bytes()));
        }
        let mut canonical = Vec::new();
        field.write_key(&mut canonical).then(|| murmur2::hash(&canonical))
    }
}

tidemill_plugin::export_partitioner!(FieldHash);

#[cfg(test)]
mod tests {
    use super::*;
    use tidemill_plugin::testing::{PartitionerTest, Setup, TestRecord};

    fn plugin(field: &str, missing: &str) -> PartitionerTest<FieldHash> {
        Setup::new().config("field", field).config("missing", missing).partitioner().unwrap()
    }

    fn by_key(key: &str) -> Place {
        Place::Partition(murmur2::partition(key.as_bytes(), 12))
    }

    #[test]
    fn a_field_places_as_a_key_of_its_text_does() {
        let plugin = plugin("user.id", "any");
        let place = |value: &str| plugin.place(TestRecord::value(value), 12);
        assert_eq!(place(r#"{"user":{"id":"u-17"},"n":1}"#), by_key("u-17"));
        assert_eq!(place(r#"{"n":1,"user":{"name":"x","id":"\u0075-17"}}"#), by_key("u-17"));
        assert_eq!(place(r#"{"user":{"id":"名前-é"}}"#), by_key("名前-é"));
        assert_eq!(place(r#"{"user":{"id":""}}"#), by_key(""));
        assert_eq!(place(r#"{"user":{"id":true}}"#), by_key("true"));
        for seven in ["7", "7.0", "70e-1", "0.7E+1"] {
            assert_eq!(place(&format!(r#"{{"user":{{"id":{seven}}}}}"#)), by_key("7"));
        }
    }

    #[test]
    fn a_record_without_the_field_goes_by_the_policy() {
        for value in [
            "{}",
            r#"{"id":null}"#,
            r#"{"id":[1]}"#,
            r#"{"id":{}}"#,
            "",
            "plain text",
            r#"{"id":"#,
            "[]",
            "\u{0}",
        ] {
            let record = TestRecord::new("k", value);
            assert_eq!(plugin("id", "any").place(record.clone(), 12), Place::Any, "{value}");
            assert_eq!(plugin("id", "key").place(record.clone(), 12), by_key("k"), "{value}");
            assert_eq!(
                plugin("id", "reject").place(record, 12),
                Place::Reject("the value has no field id".into()),
                "{value}"
            );
        }
        assert_eq!(plugin("id", "key").place(TestRecord::null(), 12), Place::Any);
    }

    #[test]
    fn keys_are_asked_for_only_where_they_are_needed() {
        assert_eq!(plugin("id", "any").fields(), Fields::VALUE);
        assert!(plugin("id", "key").fields().contains(Fields::KEY));
    }

    #[test]
    fn a_bad_configuration_is_refused() {
        let refused =
            |field: &str| Setup::new().config("field", field).partitioner::<FieldHash>().err().unwrap();
        assert!(refused("a..b").contains("a name is missing"));
        assert!(refused("items.*").contains("no *"));
        assert!(Setup::new().partitioner::<FieldHash>().err().unwrap().contains("--set field="));
    }
}
