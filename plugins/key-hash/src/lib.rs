//! `key-hash`: places records by their key, exactly as Kafka's default partitioner does.
//!
//! A topic that moves from Kafka, or that is joined with one there, keeps each key in the partition of the same number: murmur2 of
//! the key, without its sign, modulo the number of partitions.
//!
//! | key | what it does | default |
//! | --- | --- | --- |
//! | `null` | records with a null key: `any` partition (a batch's stay together), or `reject` | `any` |
//!
//! ```text
//! tidemill deploy partitioner by-key --plugin key-hash --topic plays
//! ```

use tidemill_plugin::murmur2;
use tidemill_plugin::prelude::*;

/// Places records by their key.
#[derive(Debug)]
pub struct KeyHash {
    null: Place,
}

impl Partitioner for KeyHash {
    fn describe() -> Description {
        Description::new("Places records by their key, as Kafka's default partitioner does.").with_default(
            "null",
            "records with a null key: any (any partition will do) or reject",
            "any",
        )
    }

    fn new(ctx: &Context) -> Result<Self, String> {
        let reject = Place::Reject("the key is null".to_owned());
        Ok(Self { null: ctx.choice("null", &[("any", Place::Any), ("reject", reject)])? })
    }

    fn place(&self, record: &Record<'_>, partitions: u32) -> Place {
        match record.key() {
            Some(key) => Place::Partition(murmur2::partition(key, partitions)),
            None => self.null.clone(),
        }
    }
}

tidemill_plugin::export_partitioner!(KeyHash);

#[cfg(test)]
mod tests {
    use super::*;
    use tidemill_plugin::ANY_PARTITION;
    use tidemill_plugin::testing::{Setup, TestRecord, batch_of};

    /// Hashes from Kafka's `UtilsTest`, without their sign.
    const HASHES: [(&str, i32); 4] = [
        ("21", -973932308),
        ("foobar", -790332482),
        ("a-little-bit-long-string", -985981536),
        ("abc", 479470107),
    ];

    #[test]
    fn keys_go_where_kafka_puts_them() {
        let plugin = Setup::new().partitioner::<KeyHash>().unwrap();
        for partitions in [1, 2, 3, 12, 1_000] {
            let placement =
                plugin.partition(&batch_of(HASHES.map(|(key, _)| (key, ""))), partitions).unwrap();
            let expected = HASHES.map(|(_, hash)| (hash & 0x7fff_ffff) as u32 % partitions);
            assert_eq!(placement.partitions, expected);
        }
    }

    #[test]
    fn an_empty_key_is_a_key() {
        let plugin = Setup::new().partitioner::<KeyHash>().unwrap();
        assert_eq!(plugin.place(TestRecord::new("", "x"), 7), Place::Partition(murmur2::partition(b"", 7)));
        assert_eq!(
            plugin.place(TestRecord::new([0xff, 0x00], "x"), 7),
            plugin.place(TestRecord::new([0xff, 0x00], "y"), 7)
        );
    }

    #[test]
    fn null_keys_go_anywhere_or_nowhere() {
        let batch = batch_of([TestRecord::value("a"), TestRecord::new("k", "b"), TestRecord::null()]);
        let placement = Setup::new().partitioner::<KeyHash>().unwrap().partition(&batch, 3).unwrap();
        assert_eq!(placement.partitions, [ANY_PARTITION, murmur2::partition(b"k", 3), ANY_PARTITION]);
        assert!(placement.rejections.is_empty());
        let placement = Setup::new()
            .config("null", "reject")
            .partitioner::<KeyHash>()
            .unwrap()
            .partition(&batch, 3)
            .unwrap();
        assert_eq!(placement.rejections.iter().map(|r| r.ordinal).collect::<Vec<_>>(), [0, 2]);
    }

    #[test]
    fn a_policy_that_is_none_is_refused() {
        let refused = Setup::new().config("null", "zero").partitioner::<KeyHash>().err().unwrap();
        assert!(refused.contains("any, reject"), "{refused}");
    }
}
