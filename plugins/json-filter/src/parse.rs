//! The condition's text, read once when an instance starts. The grammar is in the crate's documentation.

use std::cmp::Ordering;
use std::fmt;

use tidemill_plugin::json::{Path, Raw, Value};

use crate::condition::{Condition, Literal, Test};

/// How deep parentheses and negations may nest.
const DEPTH_MAX: usize = 64;

/// A condition that was read.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Parsed {
    pub(crate) condition: Condition,
    /// The fields that it reads, in the order in which it numbers them.
    pub(crate) paths: Vec<Path>,
}

/// A condition that can't be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct InvalidCondition {
    /// Where, in characters from 1.
    column: usize,
    why: String,
}

/// Reads a condition.
pub(crate) fn parse(text: &str) -> Result<Parsed, InvalidCondition> {
    let mut parser = Parser { text, rest: text, paths: Vec::new() };
    let condition = parser.any(0)?;
    parser.space();
    if !parser.rest.is_empty() {
        return Err(parser.expected("&&, || or the end"));
    }
    Ok(Parsed { condition, paths: parser.paths })
}

struct Parser<'t> {
    text: &'t str,
    rest: &'t str,
    paths: Vec<Path>,
}

impl Parser<'_> {
    fn any(&mut self, depth: usize) -> Result<Condition, InvalidCondition> {
        let mut any = vec![self.all(depth)?];
        while self.symbol("||") || self.word("or") {
            any.push(self.all(depth)?);
        }
        Ok(one_or(any, Condition::Any))
    }

    fn all(&mut self, depth: usize) -> Result<Condition, InvalidCondition> {
        let mut all = vec![self.factor(depth)?];
        while self.symbol("&&") || self.word("and") {
            all.push(self.factor(depth)?);
        }
        Ok(one_or(all, Condition::All))
    }

    fn factor(&mut self, depth: usize) -> Result<Condition, InvalidCondition> {
        if depth == DEPTH_MAX {
            return Err(self.expected("no deeper nesting"));
        }
        if self.symbol("!") || self.word("not") {
            return Ok(Condition::Not(Box::new(self.factor(depth + 1)?)));
        }
        if self.symbol("(") {
            let inner = self.any(depth + 1)?;
            self.need(")")?;
            return Ok(inner);
        }
        self.test()
    }

    fn test(&mut self) -> Result<Condition, InvalidCondition> {
        let before = self.rest;
        if self.word("exists") && self.symbol("(") {
            let field = self.field()?;
            self.need(")")?;
            return Ok(Condition::Test { field, test: Test::Exists });
        }
        // A field may be called "exists", too.
        self.rest = before;
        let field = self.field()?;
        let negated = self.word("not");
        let condition = |test| Condition::Test { field, test };
        if self.word("in") {
            let one_of = condition(Test::OneOf(self.list()?));
            return Ok(if negated { Condition::Not(Box::new(one_of)) } else { one_of });
        }
        if negated {
            return Err(self.expected("in, after not"));
        }
        if self.word("starts_with") {
            return Ok(condition(Test::StartsWith(self.string()?)));
        }
        if self.word("ends_with") {
            return Ok(condition(Test::EndsWith(self.string()?)));
        }
        if self.word("contains") {
            return Ok(condition(Test::Contains(self.string()?)));
        }
        self.comparison(field)
    }

    fn comparison(&mut self, field: usize) -> Result<Condition, InvalidCondition> {
        let condition = |test| Condition::Test { field, test };
        if self.symbol("==") {
            return Ok(condition(Test::Equal(self.literal()?)));
        }
        if self.symbol("!=") {
            return Ok(Condition::Not(Box::new(condition(Test::Equal(self.literal()?)))));
        }
        // The longer ones first.
        let orders = [
            ("<=", Ordering::Less, true),
            (">=", Ordering::Greater, true),
            ("<", Ordering::Less, false),
            (">", Ordering::Greater, false),
        ];
        for (symbol, side, or_equal) in orders {
            if self.symbol(symbol) {
                let before = self.rest;
                let than = self.literal()?;
                if matches!(than, Literal::Null | Literal::Bool(_)) {
                    self.rest = before;
                    return Err(self.expected("a number or a string, which have an order"));
                }
                return Ok(condition(Test::Ordered { side, or_equal, than }));
            }
        }
        Err(self.expected("one of ==, !=, <, <=, >, >=, in, not in, starts_with, ends_with, contains"))
    }

    fn field(&mut self) -> Result<usize, InvalidCondition> {
        self.space();
        let Ok((path, rest)) = Path::parse_start(self.rest) else {
            return Err(self.expected("a field such as device or user.id"));
        };
        if !path.is_exact() {
            return Err(self.expected("a field without *"));
        }
        self.rest = rest;
        let known = self.paths.iter().position(|known| *known == path);
        Ok(known.unwrap_or_else(|| {
            self.paths.push(path);
            self.paths.len() - 1
        }))
    }

    fn list(&mut self) -> Result<Vec<Literal>, InvalidCondition> {
        self.need("[")?;
        let mut literals = vec![self.literal()?];
        while self.symbol(",") {
            literals.push(self.literal()?);
        }
        self.need("]")?;
        Ok(literals)
    }

    fn string(&mut self) -> Result<Box<[u8]>, InvalidCondition> {
        self.space();
        let before = self.rest;
        match self.literal() {
            Ok(Literal::Text(text)) => Ok(text),
            _ => {
                self.rest = before;
                Err(self.expected("a string in quotes"))
            }
        }
    }

    fn literal(&mut self) -> Result<Literal, InvalidCondition> {
        const EXPECTED: &str = "a value: a string in quotes, a number, true, false or null";
        self.space();
        let end = if self.rest.starts_with('"') { string_end(self.rest) } else { word_end(self.rest) };
        let Ok(raw) = Raw::parse(&self.rest.as_bytes()[..end]) else { return Err(self.expected(EXPECTED)) };
        let literal = match raw.value() {
            Value::Null => Literal::Null,
            Value::Bool(value) => Literal::Bool(value),
            Value::Number(number) => Literal::Number(number.to_owned()),
            Value::Text(text) => Literal::Text(text.bytes().into()),
            Value::Array(_) | Value::Object(_) => return Err(self.expected(EXPECTED)),
        };
        self.rest = &self.rest[end..];
        Ok(literal)
    }

    fn space(&mut self) {
        self.rest = self.rest.trim_start();
    }

    fn symbol(&mut self, symbol: &str) -> bool {
        self.space();
        // A single ! is not the beginning of !=.
        let taken = self.rest.strip_prefix(symbol).filter(|rest| symbol != "!" || !rest.starts_with('='));
        taken.inspect(|rest| self.rest = rest).is_some()
    }

    fn word(&mut self, word: &str) -> bool {
        self.space();
        // A path may begin with such a word: in `not.a == 1`, `not` is a field.
        let taken = self.rest.strip_prefix(word).filter(|rest| !rest.starts_with(is_word));
        taken.inspect(|rest| self.rest = rest).is_some()
    }

    fn need(&mut self, symbol: &str) -> Result<(), InvalidCondition> {
        if self.symbol(symbol) { Ok(()) } else { Err(self.expected(symbol)) }
    }

    fn expected(&self, what: &str) -> InvalidCondition {
        let rest = self.rest.trim_start();
        let column = self.text[..self.text.len() - rest.len()].chars().count() + 1;
        let found = match rest.get(..word_end(rest).max(rest.chars().next().map_or(0, char::len_utf8))) {
            None | Some("") => "the end".to_owned(),
            Some(found) => format!("{found:?}"),
        };
        InvalidCondition { column, why: format!("expected {what}, found {found}") }
    }
}

fn one_or(mut conditions: Vec<Condition>, many: impl FnOnce(Vec<Condition>) -> Condition) -> Condition {
    if conditions.len() == 1 { conditions.swap_remove(0) } else { many(conditions) }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || "_-$@+.".contains(c)
}

/// Where a number or a word ends.
fn word_end(text: &str) -> usize {
    text.find(|c| !is_word(c)).unwrap_or(text.len())
}

/// Where a string in quotes ends, its quotes included.
fn string_end(text: &str) -> usize {
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

impl fmt::Display for InvalidCondition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at character {}: {}", self.column, self.why)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn error(text: &str) -> String {
        parse(text).unwrap_err().to_string()
    }

    #[test]
    fn fields_are_numbered_once() {
        let parsed = parse(r#"a == 1 || b.c == 2 && a == 3 || exists(`d e`)"#).unwrap();
        let paths: Vec<String> = parsed.paths.iter().map(Path::to_string).collect();
        assert_eq!(paths, ["a", "b.c", "`d e`"]);
    }

    #[test]
    fn and_binds_closer_than_or() {
        assert_eq!(parse("a == 1 || b == 2 && c == 3"), parse("a == 1 or (b == 2 and c == 3)"));
        assert_ne!(parse("a == 1 || b == 2 && c == 3"), parse("(a == 1 || b == 2) && c == 3"));
        assert_eq!(parse("!a == 1 && b == 2"), parse("(not (a == 1)) && b == 2"));
    }

    #[test]
    fn words_may_be_names() {
        for text in [
            "exists == 1",
            "not.a == 1",
            "order == 1",
            "android == 1",
            "in.x == 1",
            "nothing == 1",
            "existsx == 1",
            "`not` == 1",
        ] {
            assert!(parse(text).is_ok(), "{text}: {}", error(text));
        }
    }

    #[test]
    fn errors_name_the_place() {
        assert_eq!(error(""), "at character 1: expected a field such as device or user.id, found the end");
        assert_eq!(
            error("a"),
            "at character 2: expected one of ==, !=, <, <=, >, >=, in, not in, starts_with, ends_with, contains, found the end"
        );
        assert_eq!(
            error("größe ~ 1"),
            "at character 7: expected one of ==, !=, <, <=, >, >=, in, not in, starts_with, ends_with, contains, found \"~\""
        );
        assert!(error("a == ").contains("at character 6: expected a value"));
        assert!(error("a == phone").contains("found \"phone\""));
        assert!(error("a == \"phone").contains("expected a value"));
        assert!(error("a == 01").contains("expected a value"));
        assert!(error("a == 1 b == 2").contains("expected &&, || or the end, found \"b\""));
        assert!(error("(a == 1").contains("expected )"));
        assert!(error("a in []").contains("expected a value"));
        assert!(error("a in [1 2]").contains("expected ]"));
        assert!(error("a not == 1").contains("in, after not"));
        assert!(error("a < true").contains("have an order"));
        assert!(error("a starts_with 7").contains("a string in quotes"));
        assert!(error("a.* == 7").contains("without *"));
        assert!(error(&format!("{}a == 1", "!".repeat(100))).contains("no deeper nesting"));
        assert!(error("a == [1]").contains("expected a value"));
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in r#"[a-c!&|()<>=\[\]",.`0-9 ]{0,40}|(a|not|in|exists|\(|\)|==|1|"x"|&&| ){0,20}|\PC{0,20}"#) {
            if let Err(error) = parse(&text) {
                prop_assert!(error.column <= text.chars().count() + 1, "{error}");
            }
        }
    }
}
