//! Several paths looked for in one pass.
//!
//! All segments of all paths are the states of one automaton, a bit each: a state is set where its segment is the next to match. So
//! wildcards cost nothing but their bit, and a name is compared only with the segments that may match at its place.

use std::ops::{ControlFlow, Range};

use super::path::{InvalidPath, Path, Segment};
use super::scan::{Halt, Interest, Malformed, Scanner, Visitor, check_utf8};
use super::text::Text;
use super::value::Raw;

/// How many segments all paths of a selector may have together.
pub const SEGMENTS_MAX: usize = 64;

/// How much of a document is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Up to the last field that is looked for: what follows it is not checked.
    UntilFound,
    /// All of it: nothing that is not JSON passes.
    Whole,
}

/// A value that a path names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Match {
    /// Which path, in the order given.
    pub path: usize,
    /// Where the value stands in the document.
    pub range: Range<usize>,
}

/// Paths to look for.
#[derive(Clone, Debug)]
pub struct Selector {
    states: Vec<State>,
    /// The states at the root of a document.
    start: u64,
    paths: usize,
}

#[derive(Clone, Debug)]
struct State {
    segment: Segment,
    /// What a value means whose name or place matches: the next states, or the path that ends here.
    matched: Interest,
}

impl Selector {
    /// Looks for these paths.
    pub fn new(paths: &[Path]) -> Result<Self, InvalidPath> {
        let mut selector = Self { states: Vec::new(), start: 0, paths: paths.len() };
        for (index, path) in paths.iter().enumerate() {
            if selector.states.len() + path.segments.len() > SEGMENTS_MAX {
                return Err(InvalidPath::too_many(path));
            }
            let first = selector.states.len();
            for (i, segment) in path.segments.iter().enumerate() {
                let matched = if i + 1 == path.segments.len() {
                    Interest { within: 0, itself: 1 << index }
                } else {
                    Interest { within: 1 << (first + i + 1), itself: 0 }
                };
                selector.states.push(State { segment: segment.clone(), matched });
            }
            selector.start |= 1 << first;
        }
        selector.start = selector.closure(selector.start);
        for i in 0..selector.states.len() {
            selector.states[i].matched.within = selector.closure(selector.states[i].matched.within);
        }
        Ok(selector)
    }

    /// Reads the paths, and looks for them.
    pub fn parse<'p>(paths: impl IntoIterator<Item = &'p str>) -> Result<Self, InvalidPath> {
        Self::new(&paths.into_iter().map(Path::parse).collect::<Result<Vec<_>, _>>()?)
    }

    /// How many paths are looked for.
    pub fn len(&self) -> usize {
        self.paths
    }

    /// Whether nothing is looked for.
    pub fn is_empty(&self) -> bool {
        self.paths == 0
    }

    /// Finds the first value that each path names; one that is absent stays none.
    ///
    /// # Panics
    /// Where `found` is shorter than the list of paths.
    pub fn find<'v>(
        &self,
        document: &'v [u8],
        reach: Reach,
        found: &mut [Option<Raw<'v>>],
    ) -> Result<(), Malformed> {
        let found = &mut found[..self.paths];
        found.fill(None);
        let mut missing = self.paths;
        if reach == Reach::Whole {
            check_utf8(document)?;
        }
        self.visit(document, |path, range| {
            if found[path].is_none() {
                found[path] = Some(Raw::of(&document[range]));
                missing -= 1;
            }
            if missing == 0 && reach == Reach::UntilFound {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })
    }

    /// Finds every value that a path names, duplicates included, in the order in which they end. Reads the whole document.
    pub fn find_all(&self, document: &[u8], matches: &mut Vec<Match>) -> Result<(), Malformed> {
        check_utf8(document)?;
        self.visit(document, |path, range| {
            matches.push(Match { path, range });
            ControlFlow::Continue(())
        })
    }

    fn visit(
        &self,
        document: &[u8],
        found: impl FnMut(usize, Range<usize>) -> ControlFlow<()>,
    ) -> Result<(), Malformed> {
        match Scanner::new(document, Walk { selector: self, found }).document(self.start) {
            Ok(()) | Err(Halt::Enough) => Ok(()),
            Err(Halt::Malformed(malformed)) => Err(malformed),
        }
    }

    /// `**` may stand for no name at all: where it may come next, so may what follows it.
    fn closure(&self, mut states: u64) -> u64 {
        for (i, state) in self.states.iter().enumerate() {
            if states & 1 << i != 0 && state.segment == Segment::Deep {
                states |= 1 << (i + 1);
            }
        }
        states
    }
}

struct Walk<'s, F> {
    selector: &'s Selector,
    found: F,
}

impl<F> Walk<'_, F> {
    /// What a value means, where `matches` says which segments its name or place matches.
    #[inline]
    fn step(&self, within: u64, matches: impl Fn(&Segment) -> bool) -> Interest {
        let mut interest = Interest::default();
        let mut rest = within;
        while rest != 0 {
            let bit = rest.trailing_zeros();
            rest &= rest - 1;
            let state = &self.selector.states[bit as usize];
            if state.segment == Segment::Deep {
                // Stays where it is, however deep; what follows it is set beside it.
                interest.within |= 0b11 << bit;
            } else if matches(&state.segment) {
                interest.within |= state.matched.within;
                interest.itself |= state.matched.itself;
            }
        }
        interest
    }
}

impl<F: FnMut(usize, Range<usize>) -> ControlFlow<()>> Visitor for Walk<'_, F> {
    #[inline]
    fn member(&mut self, within: u64, name: &[u8]) -> Interest {
        self.step(within, |segment| match segment {
            Segment::Name(wanted, _) => Text::of(name) == **wanted,
            Segment::Any => true,
            Segment::Deep => false,
        })
    }

    fn element(&mut self, within: u64, place: u64) -> Interest {
        self.step(within, |segment| match segment {
            Segment::Name(_, wanted) => *wanted == Some(place),
            Segment::Any => true,
            Segment::Deep => false,
        })
    }

    fn value(&mut self, itself: u64, start: usize, end: usize) -> ControlFlow<()> {
        let mut rest = itself;
        while rest != 0 {
            let path = rest.trailing_zeros();
            rest &= rest - 1;
            (self.found)(path as usize, start..end)?;
        }
        ControlFlow::Continue(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(paths: &[&str], document: &str) -> Vec<String> {
        let selector = Selector::parse(paths.iter().copied()).unwrap();
        let mut found = vec![None; paths.len()];
        selector.find(document.as_bytes(), Reach::Whole, &mut found).unwrap();
        found.into_iter().map(|value| value.map_or("-".to_owned(), |value| format!("{value:?}"))).collect()
    }

    fn find_all(paths: &[&str], document: &str) -> Vec<(usize, String)> {
        let mut matches = Vec::new();
        Selector::parse(paths.iter().copied()).unwrap().find_all(document.as_bytes(), &mut matches).unwrap();
        matches.into_iter().map(|m| (m.path, document[m.range].to_owned())).collect()
    }

    const EVENT: &str = r#"{"user":{"id":7,"email":"a@b","tags":["x","y"]},"items":[{"price":1,"email":"c@d"},{"price":2}],"a\u0062":true}"#;

    #[test]
    fn paths_find_their_values() {
        assert_eq!(
            find(&["user.id", "items.1.price", "user.tags.1", "ab", "none", "user.id.x"], EVENT),
            ["7", "2", "\"y\"", "true", "-", "-"]
        );
        assert_eq!(find(&["user", "user.id"], r#"{"user":{"id":1}}"#), [r#"{"id":1}"#, "1"]);
        assert_eq!(find(&["a", "a"], r#"{"a":1,"a":2}"#), ["1", "1"]);
        assert_eq!(find(&["a"], "[]"), ["-"]);
        assert_eq!(find(&["0"], r#"{"0":1}"#), ["1"]);
    }

    #[test]
    fn wildcards_find_all() {
        assert_eq!(find_all(&["items.*.price"], EVENT), [(0, "1".into()), (0, "2".into())]);
        assert_eq!(find_all(&["**.email"], EVENT), [(0, "\"a@b\"".into()), (0, "\"c@d\"".into())]);
        assert_eq!(
            find_all(&["**.email"], r#"{"email":{"email":1}}"#),
            [(0, "1".into()), (0, r#"{"email":1}"#.into())]
        );
        assert_eq!(find_all(&["items.**.price", "*.0"], EVENT).len(), 3);
        assert_eq!(find_all(&["a"], r#"{"a":1,"a":2}"#), [(0, "1".into()), (0, "2".into())]);
    }

    #[test]
    fn reading_ends_where_everything_is_found() {
        let selector = Selector::parse(["a"]).unwrap();
        let mut found = [None];
        assert!(selector.find(br#"{"a":1,,,"#, Reach::UntilFound, &mut found).is_ok());
        assert!(found[0].is_some());
        assert!(selector.find(br#"{"a":1,,,"#, Reach::Whole, &mut found).is_err());
        assert!(selector.find(br#"{"b":1,,,"#, Reach::UntilFound, &mut found).is_err());
        let error = selector.find(b"{\"b\":tru}", Reach::UntilFound, &mut found).unwrap_err();
        assert_eq!(error.to_string(), "not JSON: expected true, false or null at byte 5");
    }

    #[test]
    fn too_many_segments_are_refused() {
        let path = ["a"; 33].join(".");
        assert!(Selector::parse([path.as_str()]).is_ok());
        assert!(Selector::parse([path.as_str(), path.as_str()]).unwrap_err().to_string().contains("64"));
    }
}
