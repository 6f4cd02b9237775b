//! Conditions, and how they are decided.

use std::cmp::Ordering;

use tidemill_plugin::json::{NumberBuf, Raw, Value};

/// A condition over fields, which are numbered as the parser met them.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Condition {
    All(Vec<Self>),
    Any(Vec<Self>),
    Not(Box<Self>),
    Test { field: usize, test: Test },
}

/// What is asked of a field.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Test {
    Exists,
    Equal(Literal),
    /// Of the same type and on this side of the literal; `or_equal` counts the literal in.
    Ordered {
        side: Ordering,
        or_equal: bool,
        than: Literal,
    },
    OneOf(Vec<Literal>),
    StartsWith(Box<[u8]>),
    EndsWith(Box<[u8]>),
    Contains(Box<[u8]>),
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Literal {
    Null,
    Bool(bool),
    Number(NumberBuf),
    Text(Box<[u8]>),
}

impl Condition {
    /// Whether the fields found meet it.
    pub(crate) fn holds(&self, fields: &[Option<Raw<'_>>]) -> bool {
        match self {
            Self::All(all) => all.iter().all(|condition| condition.holds(fields)),
            Self::Any(any) => any.iter().any(|condition| condition.holds(fields)),
            Self::Not(inner) => !inner.holds(fields),
            Self::Test { field, test } => test.holds(fields.get(*field).copied().flatten()),
        }
    }
}

impl Test {
    fn holds(&self, field: Option<Raw<'_>>) -> bool {
        let value = || field.map_or(Value::Null, |field| field.value());
        match self {
            Self::Exists => field.is_some(),
            Self::Equal(literal) => literal.equals(value()),
            Self::OneOf(literals) => literals.iter().any(|literal| literal.equals(value())),
            Self::Ordered { side, or_equal, than } => than
                .compare(value())
                .is_some_and(|ordering| ordering == *side || (*or_equal && ordering.is_eq())),
            Self::StartsWith(part) => text(value(), |text| text.starts_with(part)),
            Self::EndsWith(part) => text(value(), |text| text.ends_with(part)),
            Self::Contains(part) => {
                text(value(), |text| part.is_empty() || text.windows(part.len()).any(|w| w == &**part))
            }
        }
    }
}

fn text(value: Value<'_>, test: impl FnOnce(&[u8]) -> bool) -> bool {
    if let Value::Text(text) = value { test(&text.bytes()) } else { false }
}

impl Literal {
    fn equals(&self, value: Value<'_>) -> bool {
        match (self, value) {
            (Self::Null, Value::Null) => true,
            (Self::Bool(literal), Value::Bool(value)) => *literal == value,
            (Self::Number(literal), Value::Number(value)) => value == *literal,
            (Self::Text(literal), Value::Text(value)) => value == **literal,
            _ => false,
        }
    }

    /// How a value compares with the literal; none where they are of different types, or of one without an order.
    fn compare(&self, value: Value<'_>) -> Option<Ordering> {
        match (self, value) {
            (Self::Number(literal), Value::Number(value)) => Some(value.cmp(&literal.number())),
            (Self::Text(literal), Value::Text(value)) => Some((*value.bytes()).cmp(literal)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::parse::parse;
    use tidemill_plugin::json::{Reach, Selector};

    fn holds(condition: &str, value: &str) -> bool {
        let parsed = parse(condition).unwrap_or_else(|error| panic!("{condition}: {error}"));
        let mut found = vec![None; parsed.paths.len()];
        Selector::new(&parsed.paths).unwrap().find(value.as_bytes(), Reach::Whole, &mut found).unwrap();
        parsed.condition.holds(&found)
    }

    const EVENT: &str = r#"{"n":7,"s":"phone","t":"Größe \"L\"","b":true,"z":null,"o":{"x":1.50,"l":["a","b"]},"big":9007199254740993}"#;

    #[test]
    fn what_is_true_of_an_event() {
        for condition in [
            "n == 7",
            "n == 7.0",
            "n != 8",
            "n < 7.01",
            "n <= 7",
            "n > -1",
            "n >= 7",
            "n in [1, 7]",
            "n not in [1, 2]",
            "s == \"phone\"",
            "s > \"phon\"",
            "s < \"phonf\"",
            "s starts_with \"ph\"",
            "s ends_with \"one\"",
            "s contains \"hon\"",
            "s contains \"\"",
            "s in [\"tablet\", \"phone\"]",
            "t == \"Gr\\u00f6\\u00dfe \\\"L\\\"\"",
            "t contains \"ö\"",
            "b == true",
            "b != false",
            "z == null",
            "exists(z)",
            "!exists(y)",
            "y == null",
            "y != \"free\"",
            "o.x == 1.5",
            "o.l.1 == \"b\"",
            "o != null",
            "o != \"x\"",
            "not o == \"x\"",
            "big == 9007199254740993",
            "big != 9007199254740992",
            "big > 9007199254740992",
            "s != 7",
            "n != \"7\"",
            "`n` == 7",
            "n == 7 && s == \"phone\" || b == false",
            "b == false || n == 7 && s == \"phone\"",
            "(b == false or n == 7) and s == \"phone\"",
            "! (n == 8) && !(n == 9)",
            "not not n == 7",
            "exists ( n )",
        ] {
            assert!(holds(condition, EVENT), "{condition}");
        }
    }

    #[test]
    fn what_is_not() {
        for condition in [
            "n == \"7\"",
            "n < \"8\"",
            "s < 8",
            "z < 1",
            "y < 1",
            "y > \"\"",
            "o == 1",
            "o.l == \"a\"",
            "n starts_with \"7\"",
            "exists(y)",
            "exists(o.y)",
            "z != null",
            "y in [1]",
            "b == 1",
            "n in [\"7\"]",
            "o.x starts_with \"1\"",
            "s == \"Phone\"",
            "s contains \"phones\"",
        ] {
            assert!(!holds(condition, EVENT), "{condition}");
        }
    }
}
