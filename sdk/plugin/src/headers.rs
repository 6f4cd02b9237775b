//! Headers, encoded as in a Kafka v2 record: a zigzag varint count, then for each a length, the name, a length (-1: null), the value.

/// One header of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header<'a> {
    /// UTF-8 by convention.
    pub name: &'a [u8],
    /// None is null.
    pub value: Option<&'a [u8]>,
}

/// The headers of a record, in order.
#[derive(Clone, Debug)]
pub struct Headers<'a> {
    bytes: &'a [u8],
    left: i64,
}

impl<'a> Headers<'a> {
    pub(crate) fn new(mut bytes: &'a [u8]) -> Self {
        let left = read_varint(&mut bytes).unwrap_or(0);
        Self { bytes, left }
    }

    fn read(&mut self) -> Option<Header<'a>> {
        let name_length = usize::try_from(read_varint(&mut self.bytes)?).ok()?;
        let name = self.bytes.split_off(..name_length)?;
        let value_length = read_varint(&mut self.bytes)?;
        let value = match usize::try_from(value_length) {
            Ok(length) => Some(self.bytes.split_off(..length)?),
            Err(_) => None,
        };
        Some(Header { name, value })
    }
}

impl<'a> Iterator for Headers<'a> {
    type Item = Header<'a>;

    fn next(&mut self) -> Option<Header<'a>> {
        if self.left <= 0 {
            return None;
        }
        self.left -= 1;
        // The broker has verified the record, so a header that does not parse is one that a test made up: the list ends there.
        let header = self.read();
        if header.is_none() {
            self.left = 0;
        }
        header
    }
}

/// Encodes headers as [`Headers`] reads them.
pub(crate) fn write_headers<'h>(out: &mut Vec<u8>, headers: &[(&'h str, Option<&'h [u8]>)]) {
    write_varint(out, headers.len() as i64);
    for (name, value) in headers {
        write_varint(out, name.len() as i64);
        out.extend_from_slice(name.as_bytes());
        match value {
            Some(value) => {
                write_varint(out, value.len() as i64);
                out.extend_from_slice(value);
            }
            None => write_varint(out, -1),
        }
    }
}

fn read_varint(bytes: &mut &[u8]) -> Option<i64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let byte = *bytes.split_off_first()?;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some((value >> 1) as i64 ^ -((value & 1) as i64));
        }
    }
    None
}

fn write_varint(out: &mut Vec<u8>, value: i64) {
    let mut rest = ((value << 1) ^ (value >> 63)) as u64;
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn headers_come_back_as_written(headers: Vec<(String, Option<Vec<u8>>)>) {
            let written: Vec<_> = headers.iter().map(|(n, v)| (n.as_str(), v.as_deref())).collect();
            let mut bytes = Vec::new();
            write_headers(&mut bytes, &written);
            let read: Vec<_> = Headers::new(&bytes).map(|h| (std::str::from_utf8(h.name).unwrap(), h.value)).collect();
            prop_assert_eq!(read, written);
        }

        #[test]
        fn any_bytes_end_the_list_at_worst(bytes: Vec<u8>) {
            prop_assert!(Headers::new(&bytes).count() <= bytes.len());
        }
    }

    #[test]
    fn none_is_count_0() {
        let mut bytes = Vec::new();
        write_headers(&mut bytes, &[]);
        assert_eq!(bytes, [0]);
        assert_eq!(Headers::new(&bytes).next(), None);
        assert_eq!(Headers::new(&[]).next(), None);
    }
}
