//! Consecutive batches as a reader gets them.

use bytes::{Buf, Bytes, BytesMut};
use tidemill_protocol::Offset;

use crate::batch::first_batch_bytes;

/// Consecutive whole record batches, ready to be sent: the parts one after another are the batches back to back.
///
/// A batch may lie in two parts (the 16 bytes that the log sets, and the body as it came): see [`Self::contiguous`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batches {
    /// The bytes.
    pub parts: Vec<Bytes>,
    /// Base offset of the first batch, which may be before the offset asked for.
    pub first: Offset,
    /// Where to read on: after the last batch, or the offset asked for where there is none.
    pub next: Offset,
    /// Bytes of all parts.
    pub bytes: usize,
    split: bool,
}

impl Batches {
    /// Parts in which no batch is split.
    pub(crate) fn whole(parts: Vec<Bytes>, first: Offset, next: Offset, bytes: usize) -> Self {
        Self { parts, first, next, bytes, split: false }
    }

    /// Prefixes and bodies by turns.
    pub(crate) fn split(parts: Vec<Bytes>, first: Offset, next: Offset, bytes: usize) -> Self {
        Self { parts, first, next, bytes, split: true }
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// The batches one by one, each in one piece: for who looks into them. Copies those that lie in two parts.
    pub fn contiguous(&self) -> impl Iterator<Item = Bytes> + '_ {
        let mut parts = self.parts.iter().cloned();
        let mut rest = Bytes::new();
        std::iter::from_fn(move || {
            if self.split {
                let (prefix, body) = (parts.next()?, parts.next()?);
                let mut joined = BytesMut::with_capacity(prefix.len() + body.len());
                joined.extend_from_slice(&prefix);
                joined.extend_from_slice(&body);
                return Some(joined.freeze());
            }
            while !rest.has_remaining() {
                rest = parts.next()?;
            }
            // Checked when it was read; what can't be cut is handed out as it is, for its reader to refuse.
            let length = first_batch_bytes(&rest).unwrap_or(rest.len());
            Some(rest.split_to(length))
        })
    }
}
