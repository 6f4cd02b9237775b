//! What recovery is not sure of.

use bytes::{Buf, BufMut, Bytes};

use super::entry::EntryId;

/// Something that had been flushed can't be read back, so the shard may have acknowledged (or voted for) what it no
/// longer knows. What to do is the caller's: a replica of a cluster is retired, a single node refuses to start until
/// the loss is accepted ([`super::Wal::accept_doubt`]) or the shard forgotten ([`super::Wal::forget`]). Until then
/// the doubt outlives restarts. What lies behind the loss does not outlive the first write, of any shard: whoever wants to
/// look at it makes a copy of the directory before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Doubt {
    /// What happened.
    pub reason: DoubtReason,
    /// Number of the segment where the sure part of the log ends.
    pub segment: u64,
    /// Sequence of the block where it ends.
    pub block_sequence: u64,
    /// The shard's last entry before, or what it was purged to where its log begins behind a gap (the purge that closed
    /// that may be among what was lost); `None` where there is neither.
    pub sure_to: Option<EntryId>,
}

/// Why there is doubt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum DoubtReason {
    /// Bytes in a segment are not what was written, though later ones prove that they had been flushed.
    Damaged = 1,
    /// A segment file is missing or its header is damaged.
    SegmentMissing = 2,
    /// The machine went down while completions did not wait for the device.
    PowerLoss = 3,
    /// The shard's entries do not follow each other.
    Inconsistent = 4,
}

impl std::fmt::Display for Doubt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let what = match self.reason {
            DoubtReason::Damaged => "flushed bytes of the write-ahead log are damaged",
            DoubtReason::SegmentMissing => "a segment of the write-ahead log is missing",
            DoubtReason::PowerLoss => {
                "the machine lost power while acknowledgements did not wait for the disk"
            }
            DoubtReason::Inconsistent => "entries in the write-ahead log do not follow each other",
        };
        write!(f, "{what} (segment {}, block {}; ", self.segment, self.block_sequence)?;
        match self.sure_to {
            Some(id) => write!(f, "sure up to entry {} of term {})", id.index, id.term),
            None => write!(f, "no entry is sure)"),
        }
    }
}

impl Doubt {
    /// The payload of a frame that repeats the doubt; the frame's header has `sure_to`.
    pub(super) fn encode(&self) -> Bytes {
        let mut bytes = Vec::with_capacity(18);
        bytes.put_u8(self.reason as u8);
        bytes.put_u8(u8::from(self.sure_to.is_some()));
        bytes.put_u64_le(self.segment);
        bytes.put_u64_le(self.block_sequence);
        bytes.into()
    }

    pub(super) fn decode(mut payload: &[u8], sure_to: EntryId) -> Option<Self> {
        let reason = match payload.try_get_u8().ok()? {
            1 => DoubtReason::Damaged,
            2 => DoubtReason::SegmentMissing,
            3 => DoubtReason::PowerLoss,
            4 => DoubtReason::Inconsistent,
            _ => return None,
        };
        let sure_to = (payload.try_get_u8().ok()? != 0).then_some(sure_to);
        let segment = payload.try_get_u64_le().ok()?;
        let block_sequence = payload.try_get_u64_le().ok()?;
        payload.is_empty().then_some(Self { reason, segment, block_sequence, sure_to })
    }
}
