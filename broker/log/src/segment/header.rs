//! The first bytes of both files, and their names.
//!
//! ```text
//!   0            8         10       12             32            40         44      48
//!   +------------+---------+--------+--------------+-------------+----------+-------+
//!   | magic      | version | header | stream key   | base offset | reserved | crc32 |
//!   | "TMSEG..." | u16     | bytes  | 20 bytes     | i64         | 0        |       |
//!   +------------+---------+--------+--------------+-------------+----------+-------+
//! ```
//!
//! Nothing in it depends on the broker: sealed segments are byte-identical on every replica.

use thiserror::Error;
use tidemill_protocol::Offset;

use super::frame::Fields;
use super::key::StreamKey;

/// Bytes of the header of a log or index file.
pub(super) const HEADER_BYTES: usize = 48;
/// Where the first frame stands.
pub(super) const FIRST_FRAME: u64 = HEADER_BYTES as u64;
const CRC_AT: usize = HEADER_BYTES - 4;
const VERSION: u16 = 1;

/// The two files of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum FileKind {
    Log,
    Index,
}

impl FileKind {
    const fn magic(self) -> &'static [u8; 8] {
        match self {
            Self::Log => b"TMSEGLOG",
            Self::Index => b"TMSEGIDX",
        }
    }

    const fn suffix(self) -> &'static str {
        match self {
            Self::Log => ".log",
            Self::Index => ".index",
        }
    }

    /// The name of the file of the segment at `base_offset`.
    pub(super) fn file_name(self, base_offset: Offset) -> String {
        format!("{:020}{}", base_offset.get(), self.suffix())
    }

    /// Which segment's file a name is of; `None` for a name that is not ours.
    pub(super) fn parse(name: &str) -> Option<(Self, Offset)> {
        [Self::Log, Self::Index].into_iter().find_map(|kind| {
            let digits = name.strip_suffix(kind.suffix())?;
            let plain = digits.len() == 20 && digits.bytes().all(|byte| byte.is_ascii_digit());
            let base = plain.then(|| digits.parse().ok()).flatten()?;
            Some((kind, Offset::new(base)))
        })
    }
}

/// What a file says it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FileHeader {
    pub(super) kind: FileKind,
    pub(super) key: StreamKey,
    pub(super) base_offset: Offset,
}

/// Why the start of a file is not the header of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum HeaderError {
    /// Too short, or another magic.
    #[error("it is not a segment file of Tidemill")]
    NotASegment,
    /// A version that this release does not know.
    #[error(
        "it has format version {0}, this release reads version {VERSION}: use the release that wrote it, or a newer one"
    )]
    Version(u16),
    /// The header's checksum does not match.
    #[error("the checksum of its header does not match")]
    Crc,
}

impl FileHeader {
    pub(super) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let fields = (self.kind.magic().iter().copied())
            .chain(VERSION.to_be_bytes())
            .chain((HEADER_BYTES as u16).to_be_bytes())
            .chain(*self.key.as_bytes())
            .chain(self.base_offset.get().to_be_bytes());
        bytes.iter_mut().zip(fields).for_each(|(slot, byte)| *slot = byte);
        let crc = crc32fast::hash(bytes.get(..CRC_AT).unwrap_or_default());
        bytes.iter_mut().skip(CRC_AT).zip(crc.to_be_bytes()).for_each(|(slot, byte)| *slot = byte);
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, HeaderError> {
        let (Some(bytes), Some(magic)) = (bytes.get(..HEADER_BYTES), bytes.first_chunk::<8>()) else {
            return Err(HeaderError::NotASegment);
        };
        let kind = [FileKind::Log, FileKind::Index].into_iter().find(|kind| kind.magic() == magic);
        let kind = kind.ok_or(HeaderError::NotASegment)?;
        let mut fields = Fields(bytes.get(magic.len()..).unwrap_or_default());
        // The version comes before the checksum: where the checksum stands is the version's business.
        let version = u16::from_be_bytes(fields.take());
        if version != VERSION {
            return Err(HeaderError::Version(version));
        }
        let header_bytes = u16::from_be_bytes(fields.take());
        let key = StreamKey::new(fields.take());
        let base_offset = Offset::new(i64::from_be_bytes(fields.take()));
        let _reserved: [u8; 4] = fields.take();
        let crc = u32::from_be_bytes(fields.take());
        let sound = crc32fast::hash(bytes.get(..CRC_AT).unwrap_or_default()) == crc;
        if !sound || usize::from(header_bytes) != HEADER_BYTES || base_offset < Offset::ZERO {
            return Err(HeaderError::Crc);
        }
        Ok(Self { kind, key, base_offset })
    }
}
