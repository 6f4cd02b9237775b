//! Keyed state of the task: on every replica, committed with the position. Consumers only.
//!
//! Each call here crosses into the broker: read and write many keys at a time. Reads see the call's own writes.

use std::collections::VecDeque;
use std::fmt;

use crate::failure::Failure;
use crate::host;

/// Ends of absent values, and of values that are to be deleted.
pub(crate) const ABSENT: u32 = 0xffff_ffff;

/// Why state was not written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StateError {
    /// A call may write only so much, and a deployment may hold only so much.
    OverBudget,
    /// The keys or values do not make sense.
    Malformed(String),
}

/// A list of byte strings in two buffers: the bytes, and the little-endian u32 ends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Blobs {
    pub(crate) data: Vec<u8>,
    pub(crate) ends: Vec<u8>,
}

impl Blobs {
    /// Adds a byte string.
    pub fn push(&mut self, bytes: &[u8]) {
        self.data.extend_from_slice(bytes);
        let end = u32::try_from(self.data.len())
            .ok()
            .filter(|end| *end != ABSENT)
            .expect("state calls are smaller than 4 GiB");
        self.ends.extend_from_slice(&end.to_le_bytes());
    }

    /// Adds the mark of an absent value.
    pub fn push_absent(&mut self) {
        self.ends.extend_from_slice(&ABSENT.to_le_bytes());
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.ends.len() / 4
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The byte strings in order; none is absent.
    pub fn iter(&self) -> impl Iterator<Item = Option<&[u8]>> {
        self.ends.as_chunks::<4>().0.iter().scan(0, |start, end| {
            let end = u32::from_le_bytes(*end);
            if end == ABSENT {
                return Some(None);
            }
            let bytes = self.data.get(*start..end as usize).expect("ends rise and stay within the data");
            *start = end as usize;
            Some(Some(bytes))
        })
    }
}

/// The value of a key.
pub fn get(key: impl AsRef<[u8]>) -> Option<Vec<u8>> {
    get_many([key]).iter().next().flatten().map(<[u8]>::to_vec)
}

/// The values of keys, in their order.
pub fn get_many<K: AsRef<[u8]>>(keys: impl IntoIterator<Item = K>) -> Blobs {
    let mut wanted = Blobs::default();
    keys.into_iter().for_each(|key| wanted.push(key.as_ref()));
    if wanted.is_empty() { Blobs::default() } else { host::state_get_many(&wanted) }
}

/// Sets a key's value.
pub fn put(key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Result<(), StateError> {
    let mut writes = Writes::new();
    writes.put(key, value);
    writes.write()
}

/// Removes a key.
pub fn delete(key: impl AsRef<[u8]>) -> Result<(), StateError> {
    let mut writes = Writes::new();
    writes.delete(key);
    writes.write()
}

/// Many writes in one call.
///
/// ```
/// use tidemill_plugin::state::{self, Writes};
/// let mut writes = Writes::new();
/// writes.put("a", "1");
/// writes.put("b", "2");
/// writes.delete("c");
/// writes.write().unwrap();
/// assert_eq!(state::get("b"), Some(b"2".to_vec()));
/// ```
#[derive(Clone, Debug, Default)]
pub struct Writes {
    keys: Blobs,
    values: Blobs,
}

impl Writes {
    /// No writes.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets a key's value.
    pub fn put(&mut self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) {
        self.keys.push(key.as_ref());
        self.values.push(value.as_ref());
    }

    /// Removes a key.
    pub fn delete(&mut self, key: impl AsRef<[u8]>) {
        self.keys.push(key.as_ref());
        self.values.push_absent();
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Writes them, for ever.
    pub fn write(self) -> Result<(), StateError> {
        self.write_for(0)
    }

    /// Writes them; they expire `ttl_ms` from now by the log's time, or never where that is 0.
    pub fn write_for(self, ttl_ms: u64) -> Result<(), StateError> {
        if self.is_empty() { Ok(()) } else { host::state_write_many(&self.keys, &self.values, ttl_ms) }
    }
}

/// Some entries in the order of their keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// The keys.
    pub keys: Blobs,
    /// Their values.
    pub values: Blobs,
    /// Whether there are further ones.
    pub more: bool,
}

impl Page {
    /// Keys with their values.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.keys.iter().flatten().zip(self.values.iter().flatten())
    }
}

/// The entries from `start` up to but without `end`, at most `limit`.
pub fn scan(start: &[u8], end: Option<&[u8]>, limit: u32) -> Page {
    host::state_scan(start, end, limit)
}

/// All entries whose key begins with `prefix`, in the order of their keys, read page by page.
pub fn prefix(prefix: impl AsRef<[u8]>) -> Entries {
    let start = prefix.as_ref().to_vec();
    let end = after_prefix(&start);
    Entries { next: Some(start), end, page: VecDeque::new() }
}

/// The least key above all that begin with `prefix`; none where there is no such key.
pub fn after_prefix(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|byte| *byte != 0xff)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end)
}

/// Entries of the state, read page by page.
#[derive(Clone, Debug)]
pub struct Entries {
    next: Option<Vec<u8>>,
    end: Option<Vec<u8>>,
    page: VecDeque<(Vec<u8>, Vec<u8>)>,
}

/// How many entries [`prefix`] reads at a time.
const PAGE_ENTRIES: u32 = 256;

impl Iterator for Entries {
    type Item = (Vec<u8>, Vec<u8>);

    fn next(&mut self) -> Option<Self::Item> {
        if self.page.is_empty() {
            let page = scan(&self.next.take()?, self.end.as_deref(), PAGE_ENTRIES);
            self.page = page.iter().map(|(key, value)| (key.to_vec(), value.to_vec())).collect();
            if page.more {
                self.next = self.page.back().map(|(key, _)| [key, &[0][..]].concat());
            }
        }
        self.page.pop_front()
    }
}

impl fmt::Display for StateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OverBudget => f.write_str("the state is over its budget"),
            Self::Malformed(reason) => write!(f, "the keys or values are malformed: {reason}"),
        }
    }
}

impl std::error::Error for StateError {}

impl From<StateError> for Failure {
    fn from(error: StateError) -> Self {
        match error {
            StateError::OverBudget => Self::retry(error.to_string()),
            StateError::Malformed(_) => Self::reject(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absent_values_take_no_bytes() {
        let mut blobs = Blobs::default();
        blobs.push(b"a");
        blobs.push_absent();
        blobs.push(b"");
        blobs.push(b"bc");
        let read: Vec<_> = blobs.iter().collect();
        assert_eq!(read, [Some(&b"a"[..]), None, Some(b""), Some(b"bc")]);
    }

    #[test]
    fn a_prefix_is_read_to_its_end() {
        let mut writes = Writes::new();
        for i in 0..PAGE_ENTRIES * 2 + 1 {
            writes.put(format!("p{i:05}"), i.to_string());
        }
        writes.put("o", "before");
        writes.put("q", "after");
        writes.write().unwrap();
        let entries: Vec<_> = prefix("p").collect();
        assert_eq!(entries.len(), PAGE_ENTRIES as usize * 2 + 1);
        assert!(entries.is_sorted());
        assert_eq!(prefix("nothing").count(), 0);
    }

    #[test]
    fn the_key_after_a_prefix_carries() {
        assert_eq!(after_prefix(b"ab"), Some(b"ac".to_vec()));
        assert_eq!(after_prefix(b"a\xff\xff"), Some(b"b".to_vec()));
        assert_eq!(after_prefix(b"\xff"), None);
        assert_eq!(after_prefix(b""), None);
    }
}
