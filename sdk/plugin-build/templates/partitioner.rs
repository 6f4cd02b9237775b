//! Places records by the part of their key before a separator: `eu/4711` and `eu/4712` go together.

use tidemill_plugin::murmur2;
use tidemill_plugin::prelude::*;

struct ByPrefix {
    separator: char,
}

impl Partitioner for ByPrefix {
    fn describe() -> Description {
        Description::new("Places records by the part of their key before a separator.")
            .with_default("separator", "one character", "/")
    }

    fn new(ctx: &Context) -> Result<Self, String> {
        Ok(Self { separator: ctx.parse("separator")? })
    }

    fn place(&self, record: &Record<'_>, partitions: u32) -> Place {
        let Some(key) = record.key() else { return Place::Any };
        let Ok(key) = std::str::from_utf8(key) else { return Place::Reject("the key is not text".to_owned()) };
        let prefix = key.split(self.separator).next().unwrap_or(key);
        Place::Partition(murmur2::partition(prefix.as_bytes(), partitions))
    }
}

tidemill_plugin::export_partitioner!(ByPrefix);

#[cfg(test)]
mod tests {
    use super::*;
    use tidemill_plugin::testing::{Setup, TestRecord};

    #[test]
    fn records_of_a_prefix_stay_together() {
        let partitioner = Setup::new().partitioner::<ByPrefix>().unwrap();
        let place = |key: &str| partitioner.place(TestRecord::new(key, "{}"), 12);
        assert_eq!(place("eu/4711"), place("eu/4712"));
        assert_ne!(place("eu/4711"), place("us/4711"));
        assert_eq!(partitioner.place(TestRecord::value("{}"), 12), Place::Any);
    }
}
