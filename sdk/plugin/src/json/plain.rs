//! One path of plain names, looked for without building a [`Selector`](super::Selector) first.

use std::ops::{ControlFlow, Range};

use super::path::place;
use super::scan::{Interest, Scanner, Visitor};
use super::value::Raw;

/// How many names such a path may have.
const SEGMENTS_MAX: usize = 8;

/// A path whose names need no backticks and hold no `*`.
#[derive(Clone, Copy)]
pub(super) struct PlainPath<'p> {
    segments: [&'p str; SEGMENTS_MAX],
    len: usize,
}

impl<'p> PlainPath<'p> {
    /// Reads a path; none where it is not plain, or long.
    pub(super) fn of(path: &'p str) -> Option<Self> {
        let mut plain = Self { segments: [""; SEGMENTS_MAX], len: 0 };
        for segment in path.split('.') {
            let is_plain =
                segment.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-$@".contains(&byte));
            if segment.is_empty() || !is_plain {
                return None;
            }
            *plain.segments.get_mut(plain.len)? = segment;
            plain.len += 1;
        }
        Some(plain)
    }

    /// The first value that the path names; none also where the document is not JSON up to there.
    pub(super) fn find<'v>(&self, document: &'v [u8]) -> Option<Raw<'v>> {
        let mut walk = Walk { path: self, found: None };
        // Where the scan ends early, it was because the value is found, or because the rest is not JSON: then nothing was found.
        let _end = Scanner::new(document, &mut walk).document(1);
        walk.found.map(|range| Raw::of(&document[range]))
    }
}

/// Bit i: the segment i is the next to match.
struct Walk<'w, 'p> {
    path: &'w PlainPath<'p>,
    found: Option<Range<usize>>,
}

impl Walk<'_, '_> {
    #[inline]
    fn step(&self, within: u64, matches: impl FnOnce(&str) -> bool) -> Interest {
        let segment = within.trailing_zeros() as usize;
        if !matches(self.path.segments[segment]) {
            return Interest::default();
        }
        if segment + 1 == self.path.len {
            Interest { within: 0, itself: 1 }
        } else {
            Interest { within: within << 1, itself: 0 }
        }
    }
}

impl Visitor for &mut Walk<'_, '_> {
    #[inline]
    fn member(&mut self, within: u64, name: &[u8]) -> Interest {
        self.step(within, |segment| super::text::Text::of(name) == *segment.as_bytes())
    }

    fn element(&mut self, within: u64, at: u64) -> Interest {
        self.step(within, |segment| place(segment) == Some(at))
    }

    fn value(&mut self, _: u64, start: usize, end: usize) -> ControlFlow<()> {
        self.found = Some(start..end);
        ControlFlow::Break(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json::{Reach, Selector};

    #[test]
    fn plain_paths_find_what_selectors_find() {
        let documents = [
            r#"{"a":{"b":[1,{"c":"x"}]},"a":2,"d\u0065":3}"#,
            r#"{"de":1,"a":5}"#,
            "[{\"a\":1},2]",
            "{\"a\":1,oops",
            "{\"z\":oops,\"a\":1}",
            "",
            "7",
        ];
        for document in documents {
            for path in ["a", "a.b", "a.b.0", "a.b.1.c", "a.b.01", "de", "0.a", "1", "z"] {
                let mut found = [None];
                let selector = Selector::parse([path]).unwrap();
                let expected =
                    selector.find(document.as_bytes(), Reach::UntilFound, &mut found).ok().and(found[0]);
                assert_eq!(
                    PlainPath::of(path).unwrap().find(document.as_bytes()),
                    expected,
                    "{path} in {document}"
                );
            }
        }
    }

    #[test]
    fn other_paths_are_not_plain() {
        for path in ["", "a.", "*", "a.**.b", "`a`", "a b", "größe", "a.b.c.d.e.f.g.h.i"] {
            assert!(PlainPath::of(path).is_none(), "{path}");
        }
    }
}
