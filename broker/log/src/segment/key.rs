//! Whose bytes these are.

use std::fmt;

/// The identity of the stream that a segment belongs to, opaque here: 20 bytes that enter every checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamKey([u8; Self::BYTES]);

impl StreamKey {
    /// Length of a key.
    pub const BYTES: usize = 20;

    /// Wraps the bytes.
    #[must_use]
    pub const fn new(bytes: [u8; Self::BYTES]) -> Self {
        Self(bytes)
    }

    /// The bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; Self::BYTES] {
        &self.0
    }
}

impl fmt::Display for StreamKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// A crc32 that has seen the key: cloned to begin each checksum, so that the key is hashed once per store.
#[derive(Clone)]
pub(super) struct KeyHasher {
    key: StreamKey,
    hasher: crc32fast::Hasher,
}

impl KeyHasher {
    pub(super) fn new(key: StreamKey) -> Self {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(key.as_bytes());
        Self { key, hasher }
    }

    /// A hasher that has seen the key and nothing else.
    pub(super) fn start(&self) -> crc32fast::Hasher {
        self.hasher.clone()
    }

    pub(super) fn key(&self) -> StreamKey {
        self.key
    }
}
