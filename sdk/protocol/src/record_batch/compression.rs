//! The five compressions, bounded on the way back.
//!
//! Contexts that are dear to make (zstd's take hundreds of KiB) are kept per thread.

use std::cell::RefCell;
use std::io::{self, BufRead, Read, Write};

use bytes::Bytes;
use flate2::bufread::MultiGzDecoder;
use flate2::write::GzEncoder;
use lz4_flex::frame::{BlockMode, BlockSize, FrameDecoder, FrameEncoder, FrameInfo};
use zstd::zstd_safe::{self, CCtx, CParameter, DCtx, DParameter, InBuffer, OutBuffer, ResetDirective};

use super::framing::{Framing, LZ4_MAGIC, XERIAL_HEADER, zstd_single_frame};
use super::{BatchError, Compression};

/// Snappy-java's block.
const XERIAL_BLOCK_BYTES: usize = 32 << 10;
/// No element of a snappy block has more bytes than this for each of its own: a copy of 64 bytes takes 3.
const SNAPPY_RATIO_MOST: usize = 22;
/// Smallest window that is accepted whatever the limit is: what zstd's level 19 uses.
const ZSTD_WINDOW_LOG_LEAST: u32 = 23;
/// Largest window that is ever accepted: what zstd itself accepts by default.
const ZSTD_WINDOW_LOG_MOST: u32 = 27;
/// First guess of an unknown size, in multiples of the compressed bytes.
const EXPANSION_GUESS: usize = 4;

thread_local! {
    static ZSTD_IN: RefCell<Option<DCtx<'static>>> = const { RefCell::new(None) };
    static ZSTD_OUT: RefCell<Option<CCtx<'static>>> = const { RefCell::new(None) };
    static SNAPPY_OUT: RefCell<Option<snap::raw::Encoder>> = const { RefCell::new(None) };
}

/// The records section of a batch as it was before compression. Never holds more than `limit` bytes; a section that says that it has
/// more is not begun with.
pub(super) fn decompress(compression: Compression, data: &Bytes, limit: usize) -> Result<Bytes, BatchError> {
    let framing = Framing::of(compression, data);
    if framing.declared.is_some_and(|declared| declared > limit as u64) {
        return Err(BatchError::DecompressedTooLarge { limit });
    }
    let at_most = framing.at_most.and_then(|most| usize::try_from(most).ok()).unwrap_or(limit).min(limit);
    let mut out = Bounded { bytes: Vec::new(), limit, at_most };
    let done = match compression {
        Compression::None => return Ok(data.clone()),
        Compression::Gzip => ungzip(data, &mut out),
        Compression::Snappy => unsnappy(data, &mut out),
        Compression::Lz4 => unlz4(data, &mut out),
        Compression::Zstd => unzstd(data, &mut out),
    };
    debug_assert!(out.bytes.capacity() <= limit, "more was reserved than may be");
    match done {
        Ok(()) => Ok(out.bytes.into()),
        Err(Failure::TooLarge) => Err(BatchError::DecompressedTooLarge { limit }),
        Err(Failure::Broken(reason)) => Err(BatchError::Decompress { compression, reason }),
    }
}

enum Failure {
    TooLarge,
    Broken(String),
}

impl Failure {
    fn broken(reason: impl ToString) -> Self {
        Self::Broken(reason.to_string())
    }

    fn zstd(code: zstd_safe::ErrorCode) -> Self {
        Self::broken(zstd_safe::get_error_name(code))
    }
}

/// Output that neither holds nor reserves more than its limit.
struct Bounded {
    bytes: Vec<u8>,
    limit: usize,
    /// As the framing says; not beyond the limit.
    at_most: usize,
}

impl Bounded {
    /// Makes room for `additional` more bytes, and for some more where the limit has it.
    fn reserve(&mut self, additional: usize) -> Result<(), Failure> {
        let needed = self.bytes.len().saturating_add(additional);
        if needed > self.limit {
            return Err(Failure::TooLarge);
        }
        if needed > self.bytes.capacity() {
            let target = self.bytes.capacity().saturating_mul(2).min(self.at_most).max(needed);
            self.bytes.reserve_exact(target - self.bytes.len());
        }
        Ok(())
    }

    fn guess(&mut self, compressed: usize) -> Result<(), Failure> {
        self.reserve(compressed.saturating_mul(EXPANSION_GUESS).min(self.at_most))
    }

    fn extend(&mut self, piece: &[u8]) -> Result<(), Failure> {
        self.reserve(piece.len())?;
        self.bytes.extend_from_slice(piece);
        Ok(())
    }
}

fn ungzip(data: &[u8], out: &mut Bounded) -> Result<(), Failure> {
    out.guess(data.len())?;
    let mut decoder = MultiGzDecoder::new(data);
    let mut piece = [0; 8 << 10];
    loop {
        let count = decoder.read(&mut piece).map_err(Failure::broken)?;
        if count == 0 {
            return Ok(());
        }
        out.extend(piece.get(..count).unwrap_or_default())?;
    }
}

fn unsnappy(data: &[u8], out: &mut Bounded) -> Result<(), Failure> {
    out.guess(data.len())?;
    let Some(mut rest) = data.strip_prefix(XERIAL_HEADER) else {
        return unsnappy_block(data, out);
    };
    while !rest.is_empty() {
        let Some((length, behind)) = rest.split_first_chunk() else {
            return Err(Failure::broken("a block's length is cut off"));
        };
        let Some((block, behind)) = behind.split_at_checked(u32::from_be_bytes(*length) as usize) else {
            return Err(Failure::broken("a block is cut off"));
        };
        unsnappy_block(block, out)?;
        rest = behind;
    }
    Ok(())
}

fn unsnappy_block(block: &[u8], out: &mut Bounded) -> Result<(), Failure> {
    let length = snap::raw::decompress_len(block).map_err(Failure::broken)?;
    if length > block.len().saturating_mul(SNAPPY_RATIO_MOST) {
        // Not worth clearing memory for.
        return Err(Failure::broken("a block claims more than its bytes can say"));
    }
    out.reserve(length)?;
    let start = out.bytes.len();
    out.bytes.resize(start + length, 0);
    let to = out.bytes.get_mut(start..).unwrap_or_default();
    let written = snap::raw::Decoder::new().decompress(block, to).map_err(Failure::broken)?;
    out.bytes.truncate(start + written);
    Ok(())
}

fn unlz4(data: &[u8], out: &mut Bounded) -> Result<(), Failure> {
    if !data.starts_with(&LZ4_MAGIC) {
        return Err(Failure::broken("no LZ4 frame"));
    }
    out.guess(data.len())?;
    let mut decoder = FrameDecoder::new(data);
    loop {
        let piece = decoder.fill_buf().map_err(Failure::broken)?;
        let count = piece.len();
        if count > 0 {
            out.extend(piece)?;
            decoder.consume(count);
            continue;
        }
        // The end of a frame; concatenated frames are allowed.
        let rest = decoder.get_ref();
        if rest.is_empty() {
            return Ok(());
        }
        if !rest.starts_with(&LZ4_MAGIC) {
            return Err(Failure::broken("bytes follow the LZ4 frame"));
        }
    }
}

fn unzstd(data: &[u8], out: &mut Bounded) -> Result<(), Failure> {
    ZSTD_IN.with_borrow_mut(|context| {
        if context.is_none() {
            *context = DCtx::try_create();
        }
        let context = context.as_mut().ok_or_else(|| Failure::broken("out of memory"))?;
        if let Some(size) = zstd_single_frame(data) {
            out.reserve(usize::try_from(size).map_err(|_| Failure::TooLarge)?)?;
            // Straight into the output, without a window of its own.
            context.decompress(&mut out.bytes, data).map_err(Failure::zstd)?;
            return Ok(());
        }
        unzstd_stream(context, data, out)
    })
}

fn unzstd_stream(context: &mut DCtx<'static>, data: &[u8], out: &mut Bounded) -> Result<(), Failure> {
    context.reset(ResetDirective::SessionAndParameters).map_err(Failure::zstd)?;
    let window_log = out.limit.max(1).ilog2().clamp(ZSTD_WINDOW_LOG_LEAST, ZSTD_WINDOW_LOG_MOST);
    context.set_parameter(DParameter::WindowLogMax(window_log)).map_err(Failure::zstd)?;
    out.guess(data.len())?;
    let mut input = InBuffer::around(data);
    loop {
        let (read, written) = (input.pos(), out.bytes.len());
        let expected = {
            let mut output = OutBuffer::around_pos(&mut out.bytes, written);
            context.decompress_stream(&mut output, &mut input).map_err(Failure::zstd)?
        };
        if expected == 0 && input.pos() == data.len() {
            return Ok(());
        }
        let full = out.bytes.len() == out.bytes.capacity();
        if full {
            out.reserve(out.bytes.len().clamp(1, 1 << 20).min((out.limit - out.bytes.len()).max(1)))?;
        } else if input.pos() == read && out.bytes.len() == written {
            return Err(Failure::broken("the frame is cut off"));
        }
    }
}

/// Appends the compressed form of `raw` to `out`.
pub(super) fn compress(
    compression: Compression,
    level: Option<i32>,
    raw: &[u8],
    out: &mut Vec<u8>,
) -> io::Result<()> {
    match compression {
        Compression::None => out.extend_from_slice(raw),
        Compression::Gzip => {
            let level = level.map_or_else(flate2::Compression::default, |level| {
                flate2::Compression::new(level.clamp(0, 9).unsigned_abs())
            });
            let mut encoder = GzEncoder::new(out, level);
            encoder.write_all(raw)?;
            encoder.finish()?;
        }
        Compression::Snappy => snappy(raw, out)?,
        Compression::Lz4 => {
            // Kafka's Java client reads independent blocks only.
            let info = FrameInfo::new().block_size(BlockSize::Max64KB).block_mode(BlockMode::Independent);
            let mut encoder = FrameEncoder::with_frame_info(info, out);
            encoder.write_all(raw)?;
            encoder.finish()?;
        }
        Compression::Zstd => into_zstd(level, raw, out)?,
    }
    Ok(())
}

fn snappy(raw: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
    out.extend_from_slice(XERIAL_HEADER);
    SNAPPY_OUT.with_borrow_mut(|encoder| {
        let encoder = encoder.get_or_insert_with(snap::raw::Encoder::new);
        for block in raw.chunks(XERIAL_BLOCK_BYTES) {
            let start = out.len() + 4;
            out.resize(start + snap::raw::max_compress_len(block.len()), 0);
            let written = encoder.compress(block, out.get_mut(start..).unwrap_or_default())?;
            out.truncate(start + written);
            if let Some(length) = out.get_mut(start - 4..).and_then(|rest| rest.first_chunk_mut()) {
                // At most 32 KiB and a little.
                *length = (written as u32).to_be_bytes();
            }
        }
        Ok(())
    })
}

fn into_zstd(level: Option<i32>, raw: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
    let failed = |code| io::Error::other(zstd_safe::get_error_name(code));
    ZSTD_OUT.with_borrow_mut(|context| {
        if context.is_none() {
            *context = CCtx::try_create();
        }
        let context = context.as_mut().ok_or(io::ErrorKind::OutOfMemory)?;
        context.reset(ResetDirective::SessionOnly).map_err(failed)?;
        let level = level.unwrap_or(zstd::DEFAULT_COMPRESSION_LEVEL);
        context.set_parameter(CParameter::CompressionLevel(level)).map_err(failed)?;
        // With all input and room for all output in one call the frame says its content's size.
        let start = out.len();
        out.reserve(zstd_safe::compress_bound(raw.len()));
        let mut output = OutBuffer::around_pos(out, start);
        let mut input = InBuffer::around(raw);
        let end = zstd_safe::zstd_sys::ZSTD_EndDirective::ZSTD_e_end;
        let left = context.compress_stream2(&mut output, &mut input, end).map_err(failed)?;
        if left == 0 { Ok(()) } else { Err(io::Error::other("the compressed records outgrew their bound")) }
    })
}
