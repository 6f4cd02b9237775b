//! One pass over a document: strict about the grammar (RFC 8259), without a tree.

use std::fmt;
use std::ops::ControlFlow;

/// How deep objects and arrays may nest.
pub const DEPTH_MAX: u32 = 128;

/// A document that is not JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed {
    /// Where, in bytes from the start.
    pub at: usize,
    /// What was expected there.
    pub expected: &'static str,
}

/// Why a scan ended before the end.
#[derive(Debug)]
pub(super) enum Halt {
    Malformed(Malformed),
    /// The visitor has seen enough.
    Enough,
}

/// What a value means to the visitor: two sets of its own. Where both are empty, it is not interested.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Interest {
    /// In what is within the value.
    pub(super) within: u64,
    /// In the value itself.
    pub(super) itself: u64,
}

/// Decides what of a document is of interest, and is told of it.
pub(super) trait Visitor {
    /// The interest in a member of an object, whose name is as it stands between its quotes.
    fn member(&mut self, within: u64, name: &[u8]) -> Interest;
    /// The interest in an element of an array.
    fn element(&mut self, within: u64, place: u64) -> Interest;
    /// Called after each value that is of interest itself.
    fn value(&mut self, itself: u64, start: usize, end: usize) -> ControlFlow<()>;
}

pub(super) struct Scanner<'v, V> {
    bytes: &'v [u8],
    at: usize,
    visitor: V,
}

impl<'v, V: Visitor> Scanner<'v, V> {
    pub(super) fn new(bytes: &'v [u8], visitor: V) -> Self {
        Self { bytes, at: 0, visitor }
    }

    /// Reads a whole document.
    pub(super) fn document(&mut self, within: u64) -> Result<(), Halt> {
        self.value(Interest { within, itself: 0 }, 0)?;
        self.space();
        if self.at < self.bytes.len() { Err(self.expected("the end")) } else { Ok(()) }
    }

    fn value(&mut self, interest: Interest, depth: u32) -> Result<(), Halt> {
        self.space();
        let start = self.at;
        match self.peek() {
            Some(b'"') => {
                self.at += 1;
                self.string()?;
            }
            Some(b'{') => self.object(interest.within, self.deeper(depth)?)?,
            Some(b'[') => self.array(interest.within, self.deeper(depth)?)?,
            Some(b'-' | b'0'..=b'9') => self.number()?,
            Some(b't') => self.word(b"true")?,
            Some(b'f') => self.word(b"false")?,
            Some(b'n') => self.word(b"null")?,
            _ => return Err(self.expected("a value")),
        }
        if interest.itself != 0 && self.visitor.value(interest.itself, start, self.at).is_break() {
            return Err(Halt::Enough);
        }
        Ok(())
    }

    fn object(&mut self, within: u64, depth: u32) -> Result<(), Halt> {
        self.at += 1;
        self.space();
        if self.eat(b'}') {
            return Ok(());
        }
        loop {
            self.space();
            self.need(b'"', "a name in quotes")?;
            let name_start = self.at;
            self.string()?;
            let name = &self.bytes[name_start..self.at - 1];
            self.space();
            self.need(b':', "a colon")?;
            let inner = if within == 0 { Interest::default() } else { self.visitor.member(within, name) };
            self.value(inner, depth)?;
            self.space();
            if self.eat(b'}') {
                return Ok(());
            }
            self.need(b',', "a comma or the end of the object")?;
        }
    }

    fn array(&mut self, within: u64, depth: u32) -> Result<(), Halt> {
        self.at += 1;
        self.space();
        if self.eat(b']') {
            return Ok(());
        }
        for place in 0.. {
            let inner = if within == 0 { Interest::default() } else { self.visitor.element(within, place) };
            self.value(inner, depth)?;
            self.space();
            if self.eat(b']') {
                break;
            }
            self.need(b',', "a comma or the end of the array")?;
        }
        Ok(())
    }

    /// Reads on to the end of a string whose first quote was read.
    fn string(&mut self) -> Result<(), Halt> {
        loop {
            self.skip_plain();
            match self.next() {
                Some(b'"') => return Ok(()),
                Some(b'\\') => match self.next() {
                    Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => {}
                    Some(b'u') if self.hex4() => {}
                    _ => return Err(self.expected_before("an escape")),
                },
                Some(0..0x20) => return Err(self.expected_before("no control character in a string")),
                Some(_) => {}
                None => return Err(self.expected("the end of the string")),
            }
        }
    }

    /// Skips bytes that mean nothing in a string, eight at a time.
    #[inline]
    fn skip_plain(&mut self) {
        const ONES: u64 = 0x0101_0101_0101_0101;
        const HIGHS: u64 = 0x8080_8080_8080_8080;
        let zero_byte = |word: u64| word.wrapping_sub(ONES) & !word & HIGHS;
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        for chunk in rest.as_chunks::<8>().0 {
            let word = u64::from_le_bytes(*chunk);
            let quote = zero_byte(word ^ (ONES * u64::from(b'"')));
            let backslash = zero_byte(word ^ (ONES * u64::from(b'\\')));
            // Bytes below 0x20: the subtraction borrows, and the byte's own high bit is clear.
            let control = word.wrapping_sub(ONES * 0x20) & !word & HIGHS;
            let special = quote | backslash | control;
            if special != 0 {
                // The lowest hit is exact; borrows can only add false ones above it.
                self.at += special.trailing_zeros() as usize / 8;
                return;
            }
            self.at += 8;
        }
    }

    fn hex4(&mut self) -> bool {
        let digits = self.bytes.get(self.at..self.at + 4).unwrap_or_default();
        self.at += digits.len();
        digits.len() == 4 && digits.iter().all(u8::is_ascii_hexdigit)
    }

    fn number(&mut self) -> Result<(), Halt> {
        self.eat(b'-');
        if !self.eat(b'0') {
            self.digits()?;
        }
        if self.eat(b'.') {
            self.digits()?;
        }
        if self.eat(b'e') || self.eat(b'E') {
            let _sign = self.eat(b'+') || self.eat(b'-');
            self.digits()?;
        }
        Ok(())
    }

    fn digits(&mut self) -> Result<(), Halt> {
        let from = self.at;
        while let Some(b'0'..=b'9') = self.peek() {
            self.at += 1;
        }
        if self.at == from { Err(self.expected("a digit")) } else { Ok(()) }
    }

    fn word(&mut self, word: &'static [u8]) -> Result<(), Halt> {
        if self.bytes[self.at..].starts_with(word) {
            self.at += word.len();
            Ok(())
        } else {
            Err(self.expected("true, false or null"))
        }
    }

    fn deeper(&self, depth: u32) -> Result<u32, Halt> {
        if depth < DEPTH_MAX { Ok(depth + 1) } else { Err(self.expected("no deeper nesting")) }
    }

    #[inline]
    fn space(&mut self) {
        while let Some(b' ' | b'\t' | b'\n' | b'\r') = self.peek() {
            self.at += 1;
        }
    }

    #[inline]
    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    #[inline]
    fn next(&mut self) -> Option<u8> {
        let byte = self.peek()?;
        self.at += 1;
        Some(byte)
    }

    #[inline]
    fn eat(&mut self, byte: u8) -> bool {
        let there = self.peek() == Some(byte);
        self.at += usize::from(there);
        there
    }

    fn need(&mut self, byte: u8, what: &'static str) -> Result<(), Halt> {
        if self.eat(byte) { Ok(()) } else { Err(self.expected(what)) }
    }

    #[cold]
    fn expected(&self, expected: &'static str) -> Halt {
        Halt::Malformed(Malformed { at: self.at, expected })
    }

    #[cold]
    fn expected_before(&self, expected: &'static str) -> Halt {
        Halt::Malformed(Malformed { at: self.at.saturating_sub(1), expected })
    }
}

/// Checks that a document is text at all: the scan itself looks at ASCII only.
pub(super) fn check_utf8(document: &[u8]) -> Result<(), Malformed> {
    match std::str::from_utf8(document) {
        Ok(_) => Ok(()),
        Err(error) => Err(Malformed { at: error.valid_up_to(), expected: "UTF-8" }),
    }
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not JSON: expected {} at byte {}", self.expected, self.at)
    }
}

impl std::error::Error for Malformed {}
