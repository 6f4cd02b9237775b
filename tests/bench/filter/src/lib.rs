//! Keeps the records whose value begins with a small enough byte: the simplest filter that reads its records, so that what is measured is the
//! call and not the plugin. The benchmark does the same without WebAssembly, by the same function.

use tidemill_plugin::prelude::*;

/// Whether a value goes on.
#[inline]
#[must_use]
pub fn keeps(value: Option<&[u8]>, below: u8) -> bool {
    value.and_then(<[u8]>::first).is_some_and(|first| *first < below)
}

/// See the crate's documentation.
#[derive(Debug)]
pub struct FirstByte {
    below: u8,
}

impl Filter for FirstByte {
    fn describe() -> Description {
        Description::new("Keeps the records whose value begins with a small enough byte.")
            .required("below", "the least byte, as a number, that does not go on")
    }

    fn new(ctx: &Context) -> Result<Self, String> {
        let below = ctx.text("below")?.parse().map_err(|_| ctx.invalid("below", "a number up to 255"))?;
        Ok(Self { below })
    }

    fn fields(&self) -> Fields {
        Fields::VALUE
    }

    fn keep(&self, record: &Record<'_>) -> bool {
        keeps(record.value(), self.below)
    }
}

tidemill_plugin::export_filter!(FirstByte);

#[cfg(test)]
mod tests {
    use tidemill_plugin::testing::Setup;

    use super::*;

    #[test]
    fn the_first_byte_decides() {
        let filter = Setup::new().config("below", "3").filter::<FirstByte>().expect("a filter");
        assert!(filter.keeps("\u{2}rest") && filter.keeps("\u{0}"));
        assert!(!filter.keeps("\u{3}") && !filter.keeps("") && !filter.keeps("text"));
        Setup::new().config("below", "many").filter::<FirstByte>().expect_err("no number");
    }
}
