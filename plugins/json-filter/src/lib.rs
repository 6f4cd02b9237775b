//! `json-filter`: keeps the records whose JSON value meets a condition.
//!
//! ```text
//! device == "phone" && ts >= 1700000000
//! user.country in ["de", "at", "ch"] and not exists(test)
//! song.title starts_with "The " || tags.0 == "new"
//! ```
//!
//! | key | what it does | default |
//! | --- | --- | --- |
//! | `where` | the condition, see below | required |
//! | `malformed` | a value that is not JSON: `drop`, `keep` or `reject` | `drop` |
//! | `null` | a null value (a tombstone): `drop` or `keep` | `drop` |
//! | `strict` | `true`: the whole value is checked to be JSON; `false`: it is read up to the last field that is needed | `false` |
//!
//! # Conditions
//!
//! ```text
//! condition  = term { ("||" | "or") term }
//! term       = factor { ("&&" | "and") factor }
//! factor     = ("!" | "not") factor | "(" condition ")" | test
//! test       = "exists" "(" path ")"
//!            | path ("==" | "!=" | "<" | "<=" | ">" | ">=") literal
//!            | path ["not"] "in" "[" literal { "," literal } "]"
//!            | path ("starts_with" | "ends_with" | "contains") string
//! literal    = string | number | "true" | "false" | "null"        as in JSON
//! path       = name { "." name }          a name with other characters than letters, digits, _ - $ @ stands between backticks
//! ```
//!
//! - A field that is absent compares as null: `plan == null` is true without a plan, `plan != "free"` too. `exists(plan)` is true for
//!   a field that is there, null included.
//! - Values of different types are not equal, and none is less than the other: `"7" == 7` is false, `"7" != 7` true, `"7" < 8` false.
//! - Numbers compare exactly, as decimals: 9007199254740993 is not 9007199254740992, and 1.0 is 1.
//! - Text compares by its UTF-8 bytes, with escapes resolved. Objects and arrays are equal to nothing.
//! - Where a name occurs twice in an object, its first occurrence counts.

mod condition;
mod parse;

use tidemill_plugin::json::{Raw, Reach, Selector};
use tidemill_plugin::prelude::*;

use condition::Condition;

/// How many fields a condition may read: each is a place on the stack of a call.
const FIELDS_MAX: usize = 32;

/// Keeps the records whose JSON value meets a condition.
#[derive(Debug)]
pub struct JsonFilter {
    condition: Condition,
    selector: Selector,
    reach: Reach,
    malformed: Judgement,
    null: Judgement,
}

impl Filter for JsonFilter {
    fn describe() -> Description {
        Description::new("Keeps the records whose JSON value meets a condition.")
            .required("where", "the condition, such as: device == \"phone\" && ts >= 1700000000")
            .with_default("malformed", "a value that is not JSON: drop, keep or reject", "drop")
            .with_default("null", "a null value (a tombstone): drop or keep", "drop")
            .with_default(
                "strict",
                "true: the whole value is checked to be JSON; false: it is read up to the last field that is needed",
                "false",
            )
    }

    fn new(ctx: &Context) -> Result<Self, String> {
        let parsed = parse::parse(ctx.text("where")?).map_err(|error| ctx.invalid("where", error))?;
        if parsed.paths.len() > FIELDS_MAX {
            return Err(ctx.invalid("where", format_args!("it reads more than {FIELDS_MAX} fields")).into());
        }
        let selector = Selector::new(&parsed.paths).map_err(|error| ctx.invalid("where", error))?;
        let reject = Judgement::Reject(String::new());
        let malformed = [("drop", Judgement::Drop), ("keep", Judgement::Keep), ("reject", reject)];
        Ok(Self {
            condition: parsed.condition,
            selector,
            reach: if ctx.flag("strict")? { Reach::Whole } else { Reach::UntilFound },
            malformed: ctx.choice("malformed", &malformed)?,
            null: ctx.choice("null", &[("drop", Judgement::Drop), ("keep", Judgement::Keep)])?,
        })
    }

    fn fields(&self) -> Fields {
        Fields::VALUE
    }

    fn judge(&self, record: &Record<'_>) -> Judgement {
        let Some(value) = record.value() else { return self.null.clone() };
        let mut found: [Option<Raw<'_>>; FIELDS_MAX] = [None; FIELDS_MAX];
        match self.selector.find(value, self.reach, &mut found) {
            Ok(()) if self.condition.holds(&found) => Judgement::Keep,
            Ok(()) => Judgement::Drop,
            Err(malformed) => match self.malformed {
                Judgement::Reject(_) => Judgement::Reject(malformed.to_string()),
                ref other => other.clone(),
            },
        }
    }
}

tidemill_plugin::export_filter!(JsonFilter);

#[cfg(test)]
mod tests {
    use super::*;
    use tidemill_plugin::testing::{FilterTest, Setup, TestRecord, batch_of};

    fn filter(condition: &str) -> FilterTest<JsonFilter> {
        Setup::new().config("where", condition).filter().unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn records_that_meet_the_condition_are_kept() {
        let filter = filter(r#"device == "phone" && ts >= 1700000000"#);
        assert!(filter.keeps(r#"{"ts":1700000000,"device":"phone"}"#));
        assert!(filter.keeps(r#" { "device" : "ph\u006fne" , "ts" : 1.7e9 } "#));
        assert!(!filter.keeps(r#"{"ts":1699999999.9,"device":"phone"}"#));
        assert!(!filter.keeps(r#"{"ts":"1700000000","device":"phone"}"#));
        assert!(!filter.keeps(r#"{"device":"phone"}"#));
        assert_eq!(filter.fields(), Fields::VALUE);
    }

    #[test]
    fn a_batch_keeps_what_matches_as_it_is() {
        let filter = filter("n > 1");
        let records = ["{\"n\":1}", "{\"n\":2}", "", "x", "{\"n\":3}"]
            .map(|value| TestRecord::new("k", value).header("h", Some("v")));
        let filtered = filter.apply(&batch_of(records)).unwrap();
        assert_eq!(filtered.ordinals(), [1, 4]);
        assert_eq!(filtered.records[0], TestRecord::new("k", "{\"n\":2}").header("h", Some("v")).ordinal(1));
    }

    #[test]
    fn what_is_not_json_goes_by_the_policy() {
        let with = |policy: &str, value: &str| {
            let setup = Setup::new().config("where", "a == 1").config("malformed", policy);
            setup.filter::<JsonFilter>().unwrap().apply(&batch_of([value])).unwrap()
        };
        for value in ["", "text", "{\"a\":", "{\"a\"=1}", "\u{0}", "[1,"] {
            assert!(with("drop", value).records.is_empty(), "{value}");
            assert_eq!(with("keep", value).records.len(), 1, "{value}");
            assert!(with("reject", value).rejections[0].reason.starts_with("not JSON: expected"), "{value}");
        }
    }

    #[test]
    fn strictness_is_about_what_follows() {
        let value = r#"{"a":1,"b":}"#;
        assert!(filter("a == 1").keeps(value));
        assert!(
            !Setup::new()
                .config("where", "a == 1")
                .config("strict", "true")
                .filter::<JsonFilter>()
                .unwrap()
                .keeps(value)
        );
    }

    #[test]
    fn tombstones_go_by_their_own_policy() {
        let batch = batch_of([TestRecord::tombstone("k")]);
        assert!(filter("a == null").apply(&batch).unwrap().records.is_empty());
        let keep =
            Setup::new().config("where", "a == 1").config("null", "keep").filter::<JsonFilter>().unwrap();
        assert_eq!(keep.apply(&batch).unwrap().records, [TestRecord::tombstone("k").ordinal(0)]);
    }

    #[test]
    fn a_bad_condition_is_refused_with_its_place() {
        let refused =
            |condition: &str| Setup::new().config("where", condition).filter::<JsonFilter>().err().unwrap();
        assert!(refused("device = \"phone\"").contains("==, !=,"), "{}", refused("device = \"phone\""));
        let many: Vec<String> = (0..33).map(|i| format!("f{i} == 1")).collect();
        assert!(refused(&many.join(" || ")).contains("more than 32 fields"));
    }
}
