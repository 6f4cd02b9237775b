//! Numbers of JSON, compared as they are written: exact for any length, where floating point would take 2^53 + 1 for 2^53.
//!
//! A number is read as 0.d1d2d3... * 10^exponent with d1 not zero, so that magnitudes compare by exponent, then digit by digit.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

/// A number in a document.
#[derive(Clone, Copy, Debug)]
pub struct Number<'v> {
    negative: bool,
    /// From the first digit that is not zero; may hold a point. Empty: zero.
    digits: &'v [u8],
    exponent: i64,
}

/// A number on its own, such as a literal of a configuration.
#[derive(Clone, Debug)]
pub struct NumberBuf {
    negative: bool,
    digits: Box<[u8]>,
    exponent: i64,
}

/// What is not a number as JSON writes them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidNumber;

impl<'v> Number<'v> {
    /// Of a well-formed number.
    pub(super) fn of(raw: &'v [u8]) -> Self {
        let (negative, raw) = match raw.strip_prefix(b"-") {
            Some(rest) => (true, rest),
            None => (false, raw),
        };
        let (mantissa, exponent) = match raw.iter().position(|byte| matches!(byte, b'e' | b'E')) {
            Some(e) => (&raw[..e], parse_exponent(&raw[e + 1..])),
            None => (raw, 0),
        };
        let integer_digits = mantissa.iter().position(|byte| *byte == b'.').unwrap_or(mantissa.len());
        let Some(first) = mantissa.iter().position(|byte| matches!(byte, b'1'..=b'9')) else {
            return Self { negative: false, digits: &[], exponent: 0 };
        };
        // Digits before the point that are not leading zeros, or minus the zeros between the point and the first digit.
        let scale = if first < integer_digits {
            (integer_digits - first) as i64
        } else {
            integer_digits as i64 + 1 - first as i64
        };
        let end =
            mantissa.iter().rposition(|byte| matches!(byte, b'1'..=b'9')).map_or(first, |last| last + 1);
        Self { negative, digits: &mantissa[first..end], exponent: exponent.saturating_add(scale) }
    }

    /// The number on its own.
    pub fn to_owned(&self) -> NumberBuf {
        NumberBuf { negative: self.negative, digits: self.digits.into(), exponent: self.exponent }
    }

    /// Appends the number in its one canonical form: 12.50, 1.25e1 and 12.5 are all `12.5`; 1e3 is `1000`, -0 is `0`. From 10^21 on,
    /// and below 10^-6, with an exponent: `1.5e30`.
    pub fn write_canonical(&self, out: &mut Vec<u8>) {
        let mut digits = self.significant().peekable();
        if digits.peek().is_none() {
            return out.push(b'0');
        }
        if self.negative {
            out.push(b'-');
        }
        let point = self.exponent;
        if !(-5..=21).contains(&point) {
            out.extend(digits.next());
            if digits.peek().is_some() {
                out.push(b'.');
                out.extend(digits);
            }
            out.extend_from_slice(format!("e{}", point - 1).as_bytes());
            return;
        }
        if point <= 0 {
            out.extend_from_slice(b"0.");
            out.extend((point..0).map(|_| b'0'));
            out.extend(digits);
            return;
        }
        out.extend((0..point).map(|_| digits.next().unwrap_or(b'0')));
        if digits.peek().is_some() {
            out.push(b'.');
            out.extend(digits);
        }
    }

    fn significant(&self) -> impl Iterator<Item = u8> + use<'v> {
        self.digits.iter().copied().filter(|byte| *byte != b'.')
    }

    fn sign(&self) -> i8 {
        match (self.digits.is_empty(), self.negative) {
            (true, _) => 0,
            (false, false) => 1,
            (false, true) => -1,
        }
    }

    fn compare_magnitude(&self, other: &Self) -> Ordering {
        // Trailing zeros are cut off, so of two numbers with a common start the longer one is greater.
        self.exponent.cmp(&other.exponent).then_with(|| self.significant().cmp(other.significant()))
    }
}

fn parse_exponent(text: &[u8]) -> i64 {
    let (negative, digits) = match text {
        [b'-', digits @ ..] => (true, digits),
        [b'+', digits @ ..] => (false, digits),
        digits => (false, digits),
    };
    let magnitude =
        digits.iter().fold(0i64, |all, digit| all.saturating_mul(10).saturating_add(i64::from(digit - b'0')));
    // Far from the ends of i64, so that the digits of the mantissa can be added.
    let magnitude = magnitude.min(i64::MAX / 4);
    if negative { -magnitude } else { magnitude }
}

impl Ord for Number<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.sign().cmp(&other.sign()).then_with(|| match self.sign() {
            0 => Ordering::Equal,
            1 => self.compare_magnitude(other),
            _ => other.compare_magnitude(self),
        })
    }
}

impl PartialOrd for Number<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Number<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Number<'_> {}

impl NumberBuf {
    /// The number, to compare.
    pub fn number(&self) -> Number<'_> {
        Number { negative: self.negative, digits: &self.digits, exponent: self.exponent }
    }
}

impl PartialEq for NumberBuf {
    fn eq(&self, other: &Self) -> bool {
        self.number() == other.number()
    }
}

impl Eq for NumberBuf {}

impl PartialEq<NumberBuf> for Number<'_> {
    fn eq(&self, other: &NumberBuf) -> bool {
        *self == other.number()
    }
}

impl FromStr for NumberBuf {
    type Err = InvalidNumber;

    fn from_str(text: &str) -> Result<Self, InvalidNumber> {
        let raw = super::value::Raw::parse(text.as_bytes()).map_err(|_| InvalidNumber)?;
        Ok(raw.number().ok_or(InvalidNumber)?.to_owned())
    }
}

impl fmt::Display for InvalidNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a number such as 7, -2.5 or 1e6")
    }
}

impl std::error::Error for InvalidNumber {}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn canonical(text: &str) -> String {
        let mut out = Vec::new();
        Number::of(text.as_bytes()).write_canonical(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn one_number_has_one_form() {
        for (text, form) in [
            ("0", "0"),
            ("-0", "0"),
            ("-0.0e5", "0"),
            ("7", "7"),
            ("-7.50", "-7.5"),
            ("1.25e1", "12.5"),
            ("1e3", "1000"),
            ("100", "100"),
            ("0.05", "0.05"),
            ("5e-2", "0.05"),
            ("0.000001", "0.000001"),
            ("0.0000001", "1e-7"),
            ("1e20", "100000000000000000000"),
            ("1.5E+30", "1.5e30"),
            ("9007199254740993", "9007199254740993"),
            ("1e99999999999999999999", "1e2305843009213693951"),
        ] {
            assert_eq!(canonical(text), form, "{text}");
        }
    }

    #[test]
    fn numbers_compare_exactly() {
        let sorted = [
            "-1e400",
            "-10",
            "-9.99",
            "-0.1",
            "0",
            "1e-400",
            "0.1",
            "0.11",
            "1",
            "9",
            "10",
            "9007199254740992",
            "9007199254740993",
            "1e400",
        ];
        for (i, a) in sorted.iter().enumerate() {
            for (j, b) in sorted.iter().enumerate() {
                let (a, b) = (Number::of(a.as_bytes()), Number::of(b.as_bytes()));
                assert_eq!(a.cmp(&b), i.cmp(&j), "{a:?} {b:?}");
            }
        }
        assert_eq!(Number::of(b"1.0"), Number::of(b"1e0"));
    }

    proptest! {
        #[test]
        fn integers_compare_as_integers(a: i64, b: i64) {
            let (text_a, text_b) = (a.to_string(), b.to_string());
            prop_assert_eq!(Number::of(text_a.as_bytes()).cmp(&Number::of(text_b.as_bytes())), a.cmp(&b));
            prop_assert_eq!(canonical(&text_a), text_a);
        }

        #[test]
        fn floats_compare_as_floats(a in -1e9f64..1e9, b in -1e9f64..1e9) {
            let (text_a, text_b) = (format!("{a:e}"), format!("{b}"));
            prop_assert_eq!(Number::of(text_a.as_bytes()).cmp(&Number::of(text_b.as_bytes())), a.partial_cmp(&b).unwrap());
        }
    }
}
