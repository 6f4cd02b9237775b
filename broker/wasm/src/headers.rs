//! Record headers as a Kafka v2 record has them: a varint count, then for each a key and a value with varint lengths
//! (zigzag; -1 is a null value). KIP-82, KIP-98.

/// Bytes of a varint of 32 bits at most.
const VARINT_BYTES_MAX: usize = 5;

/// Checks that the bytes are whole, well-formed headers and nothing after them.
pub(crate) fn check(bytes: &[u8]) -> Result<(), &'static str> {
    let mut rest = bytes;
    let count = varint(&mut rest)?;
    if count < 0 {
        return Err("the count is negative");
    }
    for _ in 0..count {
        let key = varint(&mut rest)?;
        let key = usize::try_from(key).map_err(|_| "a key's length is negative")?;
        let key = take(&mut rest, key)?;
        if std::str::from_utf8(key).is_err() {
            return Err("a key is not UTF-8");
        }
        let value = varint(&mut rest)?;
        if value != -1 {
            let value = usize::try_from(value).map_err(|_| "a value's length is negative")?;
            take(&mut rest, value)?;
        }
    }
    if rest.is_empty() { Ok(()) } else { Err("bytes follow the last header") }
}

fn varint(rest: &mut &[u8]) -> Result<i32, &'static str> {
    let mut value = 0u32;
    for at in 0..VARINT_BYTES_MAX {
        let (&byte, tail) = rest.split_first().ok_or("they end within a length")?;
        *rest = tail;
        if at == VARINT_BYTES_MAX - 1 && byte > 0x0f {
            return Err("a length is longer than 32 bits");
        }
        value |= u32::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            return Ok((value >> 1).cast_signed() ^ -(value & 1).cast_signed());
        }
    }
    Err("a length is longer than 32 bits")
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Result<&'a [u8], &'static str> {
    let (taken, tail) = rest.split_at_checked(length).ok_or("a length reaches past their end")?;
    *rest = tail;
    Ok(taken)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn put_varint(bytes: &mut Vec<u8>, value: i32) {
        let mut left = ((value << 1) ^ (value >> 31)).cast_unsigned();
        while left >= 0x80 {
            bytes.push(left as u8 | 0x80);
            left >>= 7;
        }
        bytes.push(left as u8);
    }

    fn encode(headers: &[(String, Option<Vec<u8>>)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        put_varint(&mut bytes, headers.len() as i32);
        for (key, value) in headers {
            put_varint(&mut bytes, key.len() as i32);
            bytes.extend_from_slice(key.as_bytes());
            put_varint(&mut bytes, value.as_ref().map_or(-1, |value| value.len() as i32));
            bytes.extend_from_slice(value.as_deref().unwrap_or_default());
        }
        bytes
    }

    proptest! {
        #[test]
        fn whole_headers_pass_and_cut_ones_do_not(
            headers in proptest::collection::vec(
                (".{0,8}", proptest::option::of(proptest::collection::vec(any::<u8>(), 0..80))), 0..6))
        {
            let bytes = encode(&headers);
            prop_assert_eq!(check(&bytes), Ok(()));
            for end in 0..bytes.len() {
                prop_assert!(check(&bytes[..end]).is_err(), "cut at {}", end);
            }
            let mut longer = bytes.clone();
            longer.push(0);
            prop_assert!(check(&longer).is_err());
        }

        #[test]
        fn any_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = check(&bytes);
        }
    }

    #[test]
    fn a_huge_count_ends_with_the_bytes() {
        assert!(check(&[0xfe, 0xff, 0xff, 0xff, 0x0f]).is_err());
        assert!(check(&[0xff; 6]).is_err());
        assert!(check(&[1]).is_err(), "a count of -1");
        assert!(check(&[2, 2, 0xff, 0]).is_err(), "a key that is not UTF-8");
    }
}
