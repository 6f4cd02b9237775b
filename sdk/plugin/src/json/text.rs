//! Strings of JSON.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::fmt;

/// A string in a document, between its quotes and with its escapes.
#[derive(Clone, Copy)]
pub struct Text<'v> {
    raw: &'v [u8],
}

impl<'v> Text<'v> {
    /// Of the bytes between the quotes of a well-formed string.
    pub(super) fn of(raw: &'v [u8]) -> Self {
        Self { raw }
    }

    /// The text's bytes, copied only where there are escapes. Half of a surrogate pair reads as U+FFFD.
    pub fn bytes(&self) -> Cow<'v, [u8]> {
        if self.raw.contains(&b'\\') { Cow::Owned(unescaped(self.raw)) } else { Cow::Borrowed(self.raw) }
    }

    /// The text. What is not UTF-8 reads as U+FFFD.
    pub fn text(&self) -> Cow<'v, str> {
        match self.bytes() {
            Cow::Borrowed(bytes) => String::from_utf8_lossy(bytes),
            Cow::Owned(bytes) => Cow::Owned(String::from_utf8_lossy(&bytes).into_owned()),
        }
    }
}

impl PartialEq<[u8]> for Text<'_> {
    fn eq(&self, other: &[u8]) -> bool {
        // An escape is longer than what it stands for, so a text of the same length holds none.
        match self.raw.len().cmp(&other.len()) {
            Ordering::Less => false,
            Ordering::Equal => self.raw == other && !other.contains(&b'\\'),
            Ordering::Greater => self.raw.contains(&b'\\') && unescaped(self.raw) == other,
        }
    }
}

impl fmt::Debug for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.text())
    }
}

fn unescaped(mut raw: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(raw.len());
    while let Some(at) = raw.iter().position(|byte| *byte == b'\\') {
        out.extend_from_slice(&raw[..at]);
        let Some((escape, rest)) = raw[at + 1..].split_first() else { return out };
        raw = rest;
        let plain = match escape {
            b'b' => 0x08,
            b'f' => 0x0c,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'u' => {
                let character = code_point(&mut raw).unwrap_or(char::REPLACEMENT_CHARACTER);
                out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
                continue;
            }
            same => *same,
        };
        out.push(plain);
    }
    out.extend_from_slice(raw);
    out
}

/// Reads the four digits after `\u`, and the second half of a pair with its own `\u`.
fn code_point(raw: &mut &[u8]) -> Option<char> {
    let unit = hex4(raw)?;
    if !(0xd800..0xdc00).contains(&unit) {
        return char::from_u32(unit);
    }
    let mut rest = raw.strip_prefix(b"\\u")?;
    let low = hex4(&mut rest).filter(|low| (0xdc00..0xe000).contains(low))?;
    *raw = rest;
    char::from_u32(0x1_0000 + ((unit - 0xd800) << 10) + (low - 0xdc00))
}

fn hex4(raw: &mut &[u8]) -> Option<u32> {
    let digits = raw.split_off(..4)?;
    u32::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

/// Appends a string of JSON, quoted and escaped. What is not UTF-8 is written as U+FFFD.
pub fn write_text(out: &mut Vec<u8>, text: &[u8]) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    out.push(b'"');
    for chunk in text.utf8_chunks() {
        for byte in chunk.valid().bytes() {
            match byte {
                b'"' | b'\\' => out.extend_from_slice(&[b'\\', byte]),
                b'\n' => out.extend_from_slice(b"\\n"),
                b'\r' => out.extend_from_slice(b"\\r"),
                b'\t' => out.extend_from_slice(b"\\t"),
                0..0x20 => {
                    out.extend_from_slice(b"\\u00");
                    out.extend_from_slice(&[HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
                }
                _ => out.push(byte),
            }
        }
        if !chunk.invalid().is_empty() {
            out.extend_from_slice("\u{fffd}".as_bytes());
        }
    }
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn escapes_are_read() {
        let read = |raw: &str| Text::of(raw.as_bytes()).text().into_owned();
        assert_eq!(read(r#"a\"\\\/\b\f\n\r\t"#), "a\"\\/\u{8}\u{c}\n\r\t");
        assert_eq!(read(r"\u00e9\u4e16\ud83d\ude00"), "é世😀");
        assert_eq!(read(r"\ud83dx"), "\u{fffd}x");
        assert_eq!(read(r"\ude00\ud83d\u0041"), "\u{fffd}\u{fffd}A");
        assert!(Text::of(br"\u0061b") == b"ab"[..]);
        assert!(Text::of(b"ab") != b"abc"[..]);
        assert!(Text::of(br"\n") != br"\n"[..]);
        assert!(Text::of(br"\\n") == br"\n"[..]);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(text: String) {
            let mut out = Vec::new();
            write_text(&mut out, text.as_bytes());
            prop_assert_eq!(serde_json::from_slice::<String>(&out).unwrap(), text.clone());
            prop_assert_eq!(Text::of(&out[1..out.len() - 1]).text().into_owned(), text);
        }

        #[test]
        fn serde_json_reads_strings_alike(text: String) {
            let out = serde_json::to_string(&text).unwrap();
            prop_assert_eq!(Text::of(&out.as_bytes()[1..out.len() - 1]).text().into_owned(), text);
        }
    }
}
