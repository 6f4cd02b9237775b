//! Entries as bytes.
//!
//! ```text
//! format u8 (1) | head length u32 le | head: postcard of (time, body lengths, units without bodies)
//! body 0 | body 1 | ...              whole record batches, as they came
//! ```
//! Encoded as a list of parts, the head and each body: they are written gathered and never joined on the way to the
//! disk. Decoded from the same parts, from one piece, or however a log cut them; bodies are slices of what was given
//! unless a cut goes through one.

use bytes::{Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use tidemill_protocol::Timestamp;

use crate::unit::{Entry, Unit};

const FORMAT: u8 = 1;
const FIXED_BYTES: usize = 5;

/// Bytes that are no entry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// Written by a newer release.
    #[error("the entry has format {0}; this release reads format 1")]
    Format(u8),
    /// Fewer bytes than its lengths say.
    #[error("the entry ends inside its {0}")]
    Short(&'static str),
    /// More bytes than its lengths say.
    #[error("{0} bytes are left over behind the entry")]
    Long(usize),
    /// The head does not decode.
    #[error("the entry's head is damaged: {0}")]
    Head(String),
}

#[derive(Serialize)]
struct HeadRef<'a> {
    time: Timestamp,
    body_lengths: Vec<u32>,
    units: &'a [Unit],
}

#[derive(Deserialize)]
struct Head {
    time: Timestamp,
    body_lengths: Vec<u32>,
    units: Vec<Unit>,
}

impl Entry {
    /// The entry as parts: the head, then each record batch as it is.
    #[must_use]
    pub fn encode(&self) -> Vec<Bytes> {
        let bodies: Vec<&Bytes> = self.units.iter().flat_map(Unit::bodies).collect();
        let length = |body: &&Bytes| u32::try_from(body.len()).expect("a batch is bounded far below 4 GiB");
        let body_lengths = bodies.iter().map(length).collect();
        let head = HeadRef { time: self.time, body_lengths, units: &self.units };
        let start = vec![FORMAT, 0, 0, 0, 0];
        let mut bytes = postcard::to_extend(&head, start).expect("plain data always encodes into memory");
        let head_bytes =
            u32::try_from(bytes.len() - FIXED_BYTES).expect("an entry's head is bounded far below 4 GiB");
        bytes[1..FIXED_BYTES].copy_from_slice(&head_bytes.to_le_bytes());
        let mut parts = Vec::with_capacity(1 + bodies.len());
        parts.push(Bytes::from(bytes));
        parts.extend(bodies.into_iter().cloned());
        parts
    }

    /// Reads an entry back, however it was cut into parts.
    ///
    /// # Errors
    /// [`EntryError`] where it is of another format, cut short, too long, or damaged. Batches are not looked into.
    pub fn decode(parts: &[Bytes]) -> Result<Self, EntryError> {
        let mut parts = Parts { parts, position: 0 };
        let fixed = parts.take(FIXED_BYTES, "head")?;
        let (format, head_length) = match fixed[..] {
            [format, a, b, c, d] => (format, u32::from_le_bytes([a, b, c, d])),
            _ => return Err(EntryError::Short("head")),
        };
        if format != FORMAT {
            return Err(EntryError::Format(format));
        }
        let head_bytes = parts.take(to_usize(head_length), "head")?;
        let (head, rest) = postcard::take_from_bytes::<Head>(&head_bytes)
            .map_err(|error| EntryError::Head(error.to_string()))?;
        if !rest.is_empty() {
            return Err(EntryError::Head(format!("{} bytes are left over", rest.len())));
        }
        let mut lengths = head.body_lengths.into_iter();
        let mut units = head.units;
        for body in units.iter_mut().flat_map(Unit::bodies_mut) {
            let length = lengths.next().ok_or_else(|| EntryError::Head("a batch has no length".into()))?;
            *body = parts.take(to_usize(length), "batches")?;
        }
        if lengths.next().is_some() {
            return Err(EntryError::Head("it has more lengths than batches".into()));
        }
        match parts.remaining() {
            0 => Ok(Self { time: head.time, units }),
            left => Err(EntryError::Long(left)),
        }
    }

    /// About how many bytes it takes in the log and in memory.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.units.iter().map(Unit::bytes).sum::<usize>() + FIXED_BYTES
    }
}

fn to_usize(length: u32) -> usize {
    usize::try_from(length).unwrap_or(usize::MAX)
}

/// A cursor over bytes in parts.
struct Parts<'a> {
    parts: &'a [Bytes],
    position: usize,
}

impl Parts<'_> {
    fn remaining(&self) -> usize {
        self.parts.iter().map(Bytes::len).sum::<usize>() - self.position
    }

    fn take(&mut self, bytes: usize, what: &'static str) -> Result<Bytes, EntryError> {
        while let Some((first, rest)) = self.parts.split_first()
            && self.position == first.len()
        {
            (self.parts, self.position) = (rest, 0);
        }
        if bytes == 0 {
            return Ok(Bytes::new());
        }
        if let Some(first) = self.parts.first()
            && bytes <= first.len() - self.position
        {
            let slice = first.slice(self.position..self.position + bytes);
            self.position += bytes;
            return Ok(slice);
        }
        if self.remaining() < bytes {
            return Err(EntryError::Short(what));
        }
        // A cut goes through it: the only case in which bytes are copied.
        let mut joined = BytesMut::with_capacity(bytes);
        while joined.len() < bytes
            && let Some((first, rest)) = self.parts.split_first()
        {
            let wanted = (bytes - joined.len()).min(first.len() - self.position);
            joined.extend_from_slice(&first[self.position..self.position + wanted]);
            self.position += wanted;
            if self.position == first.len() {
                (self.parts, self.position) = (rest, 0);
            }
        }
        Ok(joined.freeze())
    }
}

#[cfg(test)]
#[path = "codec_tests.rs"]
mod tests;
