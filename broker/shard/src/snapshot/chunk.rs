//! Rows in a chunk.
//!
//! ```text
//! ( key length u32 le | key | value length u32 le | value )*       in the order of the keys
//! ```

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::install::InstallError;

/// A chunk is closed when it has so many bytes; one larger row makes a larger chunk.
pub(super) const CHUNK_BYTES: usize = 1 << 20;
/// The largest chunk that a receiver takes: a row is at most as large as an entry of the log.
pub(super) const CHUNK_BYTES_MAX: u64 = 64 << 20;

pub(super) fn put_row(chunk: &mut BytesMut, key: &[u8], value: &[u8]) {
    for part in [key, value] {
        chunk.put_u32_le(u32::try_from(part.len()).expect("a row is bounded far below 4 GiB"));
        chunk.put_slice(part);
    }
}

pub(super) fn rows(mut chunk: Bytes) -> Result<Vec<(Bytes, Bytes)>, InstallError> {
    let mut part = || {
        let length = chunk.try_get_u32_le().ok().and_then(|length| usize::try_from(length).ok());
        let length = length.filter(|length| *length <= chunk.len());
        Some(chunk.split_to(length?)).map(|part| (part, chunk.is_empty()))
    };
    let mut rows = Vec::new();
    loop {
        let (Some((key, _)), Some((value, last))) = (part(), part()) else {
            return Err(InstallError::Malformed);
        };
        rows.push((key, value));
        if last {
            return Ok(rows);
        }
    }
}
