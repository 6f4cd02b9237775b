//! What compressed records say of their size before anything of them is decompressed.
//!
//! ```text
//!  gzip     nothing that can be relied on: the size behind the data is the last member's alone, modulo 4 GiB
//!  snappy   each block begins with its size; the decoder holds it to that
//!  lz4      a frame may say its size; it says how large its blocks are at the most, and the decoder holds them to that
//!  zstd     a frame may say its size; the decoder holds a single one to that
//! ```

use zstd::zstd_safe;

use super::Compression;

/// How snappy-java begins: magic, version 1, compatible with 1.
pub(super) const XERIAL_HEADER: &[u8; 16] = b"\x82SNAPPY\0\0\0\0\x01\0\0\0\x01";
/// The LZ4 frame's magic number, little-endian. Legacy and skippable frames have others.
pub(super) const LZ4_MAGIC: [u8; 4] = 0x184D_2204_u32.to_le_bytes();
/// No block of LZ4 has more bytes than this for each of its own.
const LZ4_RATIO_MOST: u64 = 255;

/// Sizes of a compressed section, decompressed. Framing that is broken says nothing: the decoder tells how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Framing {
    /// What it gives as its size.
    pub(super) declared: Option<u64>,
    /// What its decoder gives at the most, whatever the section has.
    pub(super) at_most: Option<u64>,
}

impl Framing {
    /// What a section says.
    pub(super) fn of(compression: Compression, section: &[u8]) -> Self {
        match compression {
            Compression::None => Self::exact(Some(section.len() as u64)),
            Compression::Gzip => Self::default(),
            Compression::Snappy => Self::exact(snappy(section)),
            Compression::Lz4 => lz4(section).unwrap_or_default(),
            Compression::Zstd => Self::exact(zstd_single_frame(section)),
        }
    }

    const fn exact(size: Option<u64>) -> Self {
        Self { declared: size, at_most: size }
    }
}

fn snappy(section: &[u8]) -> Option<u64> {
    let size = |block| snap::raw::decompress_len(block).ok().map(|size| size as u64);
    let Some(mut rest) = section.strip_prefix(XERIAL_HEADER) else { return size(section) };
    let mut sum = 0_u64;
    while !rest.is_empty() {
        let (length, behind) = rest.split_first_chunk()?;
        let (block, behind) = behind.split_at_checked(u32::from_be_bytes(*length) as usize)?;
        sum = sum.saturating_add(size(block)?);
        rest = behind;
    }
    Some(sum)
}

/// The size of the content, where the section is one frame that says it.
pub(super) fn zstd_single_frame(section: &[u8]) -> Option<u64> {
    let size = zstd_safe::get_frame_content_size(section).ok()??;
    (zstd_safe::find_frame_compressed_size(section).ok()? == section.len()).then_some(size)
}

/// All frames of the section: <https://github.com/lz4/lz4/blob/dev/doc/lz4_Frame_format.md>.
fn lz4(mut section: &[u8]) -> Option<Framing> {
    let (mut declared, mut at_most) = (Some(0_u64), 0_u64);
    while !section.is_empty() {
        let frame = Lz4Frame::read(&mut section)?;
        declared = declared.zip(frame.declared).map(|(sum, size)| sum.saturating_add(size));
        at_most = at_most.saturating_add(frame.at_most);
    }
    Some(Framing { declared, at_most: Some(at_most) })
}

struct Lz4Frame {
    declared: Option<u64>,
    at_most: u64,
}

impl Lz4Frame {
    fn read(rest: &mut &[u8]) -> Option<Self> {
        if take::<4>(rest)? != LZ4_MAGIC {
            return None;
        }
        let [flags, sizes] = take(rest)?;
        let block_bytes_max = match sizes >> 4 & 0b111 {
            size @ 4..=7 => 1_u64 << (8 + 2 * size),
            _ => return None,
        };
        let flag = |bit: u8| flags >> bit & 1 == 1;
        let declared = if flag(3) { Some(u64::from_le_bytes(take(rest)?)) } else { None };
        if flag(0) {
            let _dictionary: [u8; 4] = take(rest)?;
        }
        let [_header_checksum] = take(rest)?;
        let mut at_most = 0_u64;
        loop {
            let block = u32::from_le_bytes(take(rest)?);
            if block == 0 {
                break;
            }
            let (is_plain, bytes) = (block >> 31 == 1, block & (u32::MAX >> 1));
            let more = if is_plain { u64::from(bytes) } else { u64::from(bytes) * LZ4_RATIO_MOST };
            at_most = at_most.saturating_add(more.min(block_bytes_max));
            *rest = rest.get(bytes as usize..)?;
            if flag(4) {
                let _block_checksum: [u8; 4] = take(rest)?;
            }
        }
        if flag(2) {
            let _content_checksum: [u8; 4] = take(rest)?;
        }
        Some(Self { declared, at_most })
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (field, behind) = rest.split_first_chunk()?;
    *rest = behind;
    Some(*field)
}

#[cfg(test)]
mod tests {
    use lz4_flex::frame::{BlockSize, FrameEncoder, FrameInfo};
    use std::io::Write;

    use super::super::compression::compress;
    use super::*;

    fn packed(compression: Compression, raw: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        compress(compression, None, raw, &mut out).expect("compresses");
        out
    }

    #[test]
    fn each_codec_says_what_it_can() {
        let raw = vec![7; 150_000];
        let all = Some(150_000);
        let of = |compression| Framing::of(compression, &packed(compression, &raw));
        assert_eq!(of(Compression::None), Framing { declared: all, at_most: all });
        assert_eq!(of(Compression::Snappy), Framing { declared: all, at_most: all });
        assert_eq!(of(Compression::Zstd), Framing { declared: all, at_most: all });
        assert_eq!(of(Compression::Gzip), Framing::default());
        // Three blocks of 64 KiB; this crate's own frames do not say their size.
        let lz4 = of(Compression::Lz4);
        assert_eq!(lz4.declared, None);
        assert!(lz4.at_most.is_some_and(|most| (150_000..=3 << 16).contains(&most)), "{lz4:?}");
        let info = FrameInfo::new().block_size(BlockSize::Max4MB).content_size(Some(150_000));
        let mut encoder = FrameEncoder::with_frame_info(info.block_checksums(true), Vec::new());
        encoder.write_all(&raw).expect("writes");
        let framed = encoder.finish().expect("ends");
        let said = Framing::of(Compression::Lz4, &framed);
        assert_eq!(said.declared, all);
        assert!(said.at_most.is_some_and(|most| (150_000..200_000).contains(&most)), "{said:?}");
        let twice = Framing::of(Compression::Lz4, &[&framed[..], &framed].concat());
        assert_eq!(twice.declared, Some(300_000));
    }

    #[test]
    fn broken_framing_says_nothing() {
        for compression in [Compression::Snappy, Compression::Lz4, Compression::Zstd] {
            let whole = packed(compression, &[1; 100_000]);
            // A block of snappy's ends where it ends: cut inside the first, there is none.
            for end in 1..whole.len().min(40) {
                let said = Framing::of(compression, &whole[..end]);
                assert!(
                    said.at_most.is_none_or(|most| most < 100_000),
                    "{compression} cut at {end}: {said:?}"
                );
            }
        }
        assert_eq!(Framing::of(Compression::Lz4, b"no frame at all"), Framing::default());
    }
}
