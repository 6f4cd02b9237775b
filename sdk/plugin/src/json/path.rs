//! Dotted paths: `user.address.city`, `tags.0`, `` `a name with.dots` ``, `items.*.price`, `**.email`.

use std::fmt;

/// Where a value stands in a document.
///
/// Segments are separated by dots: a name of an object, or a place in an array from 0. `*` is any name or place, `**` any
/// number of them. Names with other characters than letters, digits, `_`, `-`, `$`, `@` stand between backticks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path {
    pub(super) segments: Vec<Segment>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Segment {
    /// A name, and the place in an array that it stands for if it is a number.
    Name(Box<[u8]>, Option<u64>),
    /// `*`
    Any,
    /// `**`
    Deep,
}

/// A path that can't be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidPath {
    path: String,
    why: &'static str,
}

impl Path {
    /// Reads a path.
    pub fn parse(text: &str) -> Result<Self, InvalidPath> {
        let (path, rest) = Self::parse_start(text.trim())?;
        if rest.is_empty() {
            Ok(path)
        } else {
            Err(invalid(text, "a name with this character stands between backticks"))
        }
    }

    /// Reads a path from the start of a text, and answers what follows it.
    pub fn parse_start(text: &str) -> Result<(Self, &str), InvalidPath> {
        let mut segments = Vec::new();
        let mut rest = text;
        loop {
            let (segment, after) = Segment::parse_start(rest).map_err(|why| invalid(text, why))?;
            segments.push(segment);
            match after.strip_prefix('.') {
                Some(next) => rest = next,
                None => {
                    if segments.last() == Some(&Segment::Deep) {
                        return Err(invalid(text, "a name follows **"));
                    }
                    return Ok((Self { segments }, after));
                }
            }
        }
    }

    /// Whether it names one place: no `*` and no `**`.
    pub fn is_exact(&self) -> bool {
        self.segments.iter().all(|segment| matches!(segment, Segment::Name(..)))
    }

    /// The last name, such as `city` of `user.address.city`; none where that is `*`.
    pub fn last_name(&self) -> Option<&str> {
        match self.segments.last() {
            Some(Segment::Name(name, _)) => std::str::from_utf8(name).ok(),
            _ => None,
        }
    }
}

impl Segment {
    fn parse_start(text: &str) -> Result<(Self, &str), &'static str> {
        if let Some(quoted) = text.strip_prefix('`') {
            let (name, rest) = quoted.split_once('`').ok_or("a backtick is not closed")?;
            return Ok((Self::Name(name.as_bytes().into(), None), rest));
        }
        if let Some(rest) = text.strip_prefix("**") {
            return Ok((Self::Deep, rest));
        }
        if let Some(rest) = text.strip_prefix('*') {
            return Ok((Self::Any, rest));
        }
        let end = text.find(|c: char| !(c.is_alphanumeric() || "_-$@".contains(c))).unwrap_or(text.len());
        match text.split_at(end) {
            ("", _) => Err("a name is missing"),
            (name, rest) => Ok((Self::Name(name.as_bytes().into(), place(name)), rest)),
        }
    }
}

/// The place in an array that a name stands for: digits without leading zeros.
pub(super) fn place(name: &str) -> Option<u64> {
    let canonical = name == "0" || !name.starts_with('0');
    if canonical && name.bytes().all(|byte| byte.is_ascii_digit()) { name.parse().ok() } else { None }
}

impl InvalidPath {
    pub(super) fn too_many(path: &Path) -> Self {
        invalid(&path.to_string(), "all paths together have more than 64 segments")
    }
}

fn invalid(path: &str, why: &'static str) -> InvalidPath {
    InvalidPath { path: path.to_owned(), why }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, segment) in self.segments.iter().enumerate() {
            if i > 0 {
                f.write_str(".")?;
            }
            match segment {
                Segment::Any => f.write_str("*")?,
                Segment::Deep => f.write_str("**")?,
                Segment::Name(name, _) => {
                    let name = std::str::from_utf8(name).unwrap_or_default();
                    let plain = Self::parse_start(name)
                        .is_ok_and(|(path, rest)| rest.is_empty() && path.segments.len() == 1);
                    if plain { f.write_str(name)? } else { write!(f, "`{name}`")? }
                }
            }
        }
        Ok(())
    }
}

impl fmt::Display for InvalidPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is not a path such as user.address.city: {}", self.path, self.why)
    }
}

impl std::error::Error for InvalidPath {}

impl std::str::FromStr for Path {
    type Err = InvalidPath;

    fn from_str(text: &str) -> Result<Self, InvalidPath> {
        Self::parse(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_print_as_they_are_written() {
        for text in ["a", "a.b-c.$d", "tags.0", "items.*.price", "**.email", "`a b`.c", "`x.y`", "größe.名前"]
        {
            assert_eq!(Path::parse(text).unwrap().to_string(), text);
        }
        assert!(Path::parse("a.b").unwrap().is_exact());
        assert!(!Path::parse("a.*").unwrap().is_exact());
        assert_eq!(Path::parse("a.b").unwrap().last_name(), Some("b"));
    }

    #[test]
    fn what_is_no_path_says_why() {
        for (text, why) in [
            ("", "missing"),
            ("a.", "missing"),
            (".a", "missing"),
            ("a..b", "missing"),
            ("a b", "backticks"),
            ("`a", "closed"),
            ("a.**", "follows"),
            ("a[0]", "backticks"),
        ] {
            let message = Path::parse(text).unwrap_err().to_string();
            assert!(message.contains(why), "{text}: {message}");
        }
    }

    #[test]
    fn what_follows_a_path_is_left() {
        let (path, rest) = Path::parse_start("a.b == 1").unwrap();
        assert_eq!((path.to_string().as_str(), rest), ("a.b", " == 1"));
    }
}
