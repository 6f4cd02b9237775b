use tidemill_protocol::record_batch::Header;
use tidemill_protocol::{PartitionId, Timestamp};

/// A record to send. Borrows everything: what is sent is copied into its batch at once.
///
/// ```
/// # use tidemill_client::{Header, Record};
/// let headers = [Header::new("trace", b"1f")];
/// let record = Record::new(b"{}").key(b"user-7").headers(&headers);
/// ```
#[derive(Debug, Clone, Copy, Default)]
pub struct Record<'a> {
    pub(super) key: Option<&'a [u8]>,
    pub(super) value: Option<&'a [u8]>,
    pub(super) headers: &'a [Header<'a>],
    pub(super) timestamp: Option<Timestamp>,
    pub(super) partition: Option<PartitionId>,
}

impl<'a> Record<'a> {
    /// A record with a value, and no key.
    #[must_use]
    pub fn new(value: &'a (impl AsRef<[u8]> + ?Sized)) -> Self {
        Self { value: Some(value.as_ref()), ..Self::default() }
    }

    /// A record whose value is null: in a compacted topic it removes the key.
    #[must_use]
    pub fn tombstone(key: &'a (impl AsRef<[u8]> + ?Sized)) -> Self {
        Self { key: Some(key.as_ref()), ..Self::default() }
    }

    /// With a key. Records of the same key go to the same partition.
    #[must_use]
    pub fn key(mut self, key: &'a (impl AsRef<[u8]> + ?Sized)) -> Self {
        self.key = Some(key.as_ref());
        self
    }

    /// With headers.
    #[must_use]
    pub const fn headers(mut self, headers: &'a [Header<'a>]) -> Self {
        self.headers = headers;
        self
    }

    /// With a timestamp other than the time of sending.
    #[must_use]
    pub const fn timestamp(mut self, timestamp: Timestamp) -> Self {
        self.timestamp = Some(timestamp);
        self
    }

    /// To this partition, whatever the key.
    #[must_use]
    pub const fn partition(mut self, partition: PartitionId) -> Self {
        self.partition = Some(partition);
        self
    }

    /// Bytes that it takes in the producer's memory, a little more than encoded.
    pub(super) fn buffered_bytes(&self) -> usize {
        /// Lengths, timestamp and offset of a record, rounded up.
        const RECORD_BYTES: usize = 24;
        const HEADER_BYTES: usize = 10;
        let headers: usize = self
            .headers
            .iter()
            .map(|header| HEADER_BYTES + header.key.len() + header.value.map_or(0, <[u8]>::len))
            .sum();
        RECORD_BYTES + self.key.map_or(0, <[u8]>::len) + self.value.map_or(0, <[u8]>::len) + headers
    }
}
