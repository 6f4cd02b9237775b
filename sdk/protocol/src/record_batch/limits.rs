//! What a batch may measure.

/// Limits on a batch and what is in it. Each is checked before anything of that size is allocated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchLimits {
    /// The batch as it is sent and stored.
    pub batch_bytes_max: usize,
    /// One record in its encoded form, its length included.
    pub record_bytes_max: usize,
    /// The records section after decompression.
    pub decompressed_bytes_max: usize,
    /// Records in a batch.
    pub records_max: u32,
    /// Whether records may be missing: offsets rise, but not by one. So it is where something filtered; a producer's
    /// batch has none.
    pub allow_gaps: bool,
}

impl BatchLimits {
    /// What stored batches are read with. They were checked when they came, so these are no less than any broker may be
    /// set to accept, whatever it is set to now; records may be missing.
    pub const STORED: Self = Self {
        batch_bytes_max: 64 << 20,
        record_bytes_max: Self::DECOMPRESSED_BYTES_MOST,
        decompressed_bytes_max: Self::DECOMPRESSED_BYTES_MOST,
        records_max: u32::MAX,
        allow_gaps: true,
    };

    /// What this process has just made of a batch that was within its limits: uncompressed, it may be larger than any that is sent.
    pub const MADE_HERE: Self =
        Self { batch_bytes_max: usize::MAX, decompressed_bytes_max: usize::MAX, ..Self::STORED };

    /// What no broker may be set beyond, in bytes of a batch's records after decompression.
    pub const DECOMPRESSED_BYTES_MOST: usize = 256 << 20;

    /// The same limits, for batches of which records may have been removed.
    #[must_use]
    pub const fn allowing_gaps(self) -> Self {
        Self { allow_gaps: true, ..self }
    }
}

impl Default for BatchLimits {
    fn default() -> Self {
        Self {
            batch_bytes_max: 8 << 20,
            record_bytes_max: 8 << 20,
            decompressed_bytes_max: 64 << 20,
            records_max: 1 << 20,
            allow_gaps: false,
        }
    }
}
