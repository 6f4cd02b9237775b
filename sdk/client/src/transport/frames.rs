use std::collections::VecDeque;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;
use thiserror::Error;
use tidemill_protocol::ErrorCode;
use tidemill_protocol::frame::{
    FRAME_LENGTH_BYTES, FRAME_PREFIX_BYTES, FrameError, FrameLimits, RawFrame, rest_length,
};

/// Bytes of the header's length field, which the frame's length counts.
const HEADER_LENGTH_BYTES: usize = FRAME_PREFIX_BYTES - FRAME_LENGTH_BYTES;
/// Chunks taken from quinn under one lock.
const CHUNKS_PER_READ: usize = 32;
/// Payload parts up to this size are copied beside the header; a write of its own costs more.
const JOINED_PART_BYTES_MAX: usize = 512;
/// What the buffer for headers starts with.
const HEADERS_BUFFER_BYTES: usize = 4 << 10;
/// What a broker may send in one frame.
const LIMITS: FrameLimits = FrameLimits { frame_bytes_max: 64 << 20, header_bytes_max: 16 << 20 };

/// Why a stream gives no further frame.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(crate) enum ReadError {
    #[error("the broker reset the stream ({})", code_name(*.0))]
    Reset(u64),
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("a message could not be decoded: {0}")]
    Message(String),
    #[error("the stream ended before the answer")]
    Ended,
    #[error("{0}")]
    Connection(String),
}

/// A QUIC application error code, as docs/errors.md names it.
fn code_name(code: u64) -> String {
    let known = u32::try_from(code).ok().and_then(ErrorCode::from_code);
    known.map_or_else(|| format!("code {code}"), |code| code.name().to_owned())
}

impl ReadError {
    /// Whether what came is not what the protocol says, as opposed to nothing coming any more.
    pub(crate) const fn is_nonsense(&self) -> bool {
        matches!(self, Self::Frame(_) | Self::Message(_))
    }

    /// The code that the broker reset the stream with.
    pub(crate) const fn reset_code(&self) -> Option<u64> {
        match self {
            Self::Reset(code) => Some(*code),
            _ => None,
        }
    }
}

impl From<quinn::ReadError> for ReadError {
    fn from(error: quinn::ReadError) -> Self {
        match error {
            quinn::ReadError::Reset(code) => Self::Reset(code.into_inner()),
            other => Self::Connection(other.to_string()),
        }
    }
}

/// Why a stream takes no further frame.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(crate) enum WriteError {
    #[error("the broker stopped the stream ({})", code_name(*.0))]
    Stopped(u64),
    #[error("a frame of {0} bytes is beyond what the format can say")]
    TooLarge(usize),
    #[error("{0}")]
    Connection(String),
}

impl WriteError {
    /// The code that the broker stopped the stream with.
    pub(crate) const fn reset_code(&self) -> Option<u64> {
        match self {
            Self::Stopped(code) => Some(*code),
            _ => None,
        }
    }
}

impl From<quinn::WriteError> for WriteError {
    fn from(error: quinn::WriteError) -> Self {
        match error {
            quinn::WriteError::Stopped(code) => Self::Stopped(code.into_inner()),
            other => Self::Connection(other.to_string()),
        }
    }
}

/// Both directions of a stream that this client opened.
#[derive(Debug)]
pub(crate) struct Wire {
    pub(crate) reader: FrameReader,
    pub(crate) writer: FrameWriter,
}

impl Wire {
    pub(crate) async fn open(connection: &quinn::Connection) -> Result<Self, WriteError> {
        let (send, receive) =
            connection.open_bi().await.map_err(|error| WriteError::Connection(error.to_string()))?;
        Ok(Self { reader: FrameReader::new(receive), writer: FrameWriter::new(send) })
    }
}

/// Reads whole frames. A payload is copied once, into a buffer of its own size: a slice of a packet would keep the
/// packet, and those that came with it, alive for as long as the payload lives.
#[derive(Debug)]
pub(crate) struct FrameReader {
    stream: quinn::RecvStream,
    /// Received and not used yet, in order; none empty.
    chunks: VecDeque<Bytes>,
    chunks_bytes: usize,
    partial: Option<Partial>,
}

/// A frame whose header is here and whose payload is not complete.
#[derive(Debug)]
struct Partial {
    header: Bytes,
    payload: BytesMut,
    missing: usize,
}

impl FrameReader {
    const fn new(stream: quinn::RecvStream) -> Self {
        Self { stream, chunks: VecDeque::new(), chunks_bytes: 0, partial: None }
    }

    /// The next frame; `None` where the stream ended between two frames. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Result<Option<RawFrame>, ReadError> {
        loop {
            if let Some(frame) = self.take_buffered()? {
                return Ok(Some(frame));
            }
            let mut chunks: [Bytes; CHUNKS_PER_READ] = std::array::from_fn(|_| Bytes::new());
            let Some(count) = self.stream.read_chunks(&mut chunks).await? else {
                let received = self.chunks_bytes + self.partial.as_ref().map_or(0, |p| 1 + p.payload.len());
                return if received == 0 { Ok(None) } else { Err(FrameError::Truncated { received }.into()) };
            };
            for chunk in chunks.into_iter().take(count).filter(|chunk| !chunk.is_empty()) {
                self.chunks_bytes += chunk.len();
                self.chunks.push_back(chunk);
            }
        }
    }

    /// The next frame's message, where an end of the stream is an error too.
    pub(crate) async fn message<M: Message + Default>(&mut self) -> Result<(M, Bytes), ReadError> {
        let frame = self.next().await?.ok_or(ReadError::Ended)?;
        Ok((decode(&frame)?, frame.payload))
    }

    /// A frame that is already here in full, without waiting.
    pub(crate) fn take_buffered(&mut self) -> Result<Option<RawFrame>, ReadError> {
        if self.partial.is_none() && !self.begin()? {
            return Ok(None);
        }
        let Some(partial) = &mut self.partial else { return Ok(None) };
        while partial.missing > 0 {
            let Some(chunk) = self.chunks.front_mut() else { return Ok(None) };
            let take = partial.missing.min(chunk.len());
            partial.payload.put_slice(&chunk[..take]);
            partial.missing -= take;
            self.chunks_bytes -= take;
            chunk.advance(take);
            if chunk.is_empty() {
                self.chunks.pop_front();
            }
        }
        let done = self.partial.take();
        Ok(done.map(|partial| RawFrame { header: partial.header, payload: partial.payload.freeze() }))
    }

    /// Starts a frame where its header is here in full. Lengths are checked before anything is allocated for them.
    fn begin(&mut self) -> Result<bool, ReadError> {
        let Some(length) = self.peek::<FRAME_LENGTH_BYTES>() else { return Ok(false) };
        let length = rest_length(length, &LIMITS)?;
        let Some(prefix) = self.peek::<FRAME_PREFIX_BYTES>() else { return Ok(false) };
        let [.., a, b, c, d] = prefix;
        let header = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
        if header > LIMITS.header_bytes_max {
            return Err(FrameError::HeaderTooLarge { length: header, limit: LIMITS.header_bytes_max }.into());
        }
        let missing = (length - HEADER_LENGTH_BYTES)
            .checked_sub(header)
            .ok_or(FrameError::HeaderOutside { header, length })?;
        if self.chunks_bytes < FRAME_PREFIX_BYTES + header {
            return Ok(false);
        }
        self.copy_out(FRAME_PREFIX_BYTES);
        let header = self.copy_out(header);
        self.partial = Some(Partial { header, payload: BytesMut::with_capacity(missing), missing });
        Ok(true)
    }

    fn peek<const N: usize>(&self) -> Option<[u8; N]> {
        if self.chunks_bytes < N {
            return None;
        }
        let mut bytes = [0; N];
        for (to, from) in bytes.iter_mut().zip(self.chunks.iter().flatten()) {
            *to = *from;
        }
        Some(bytes)
    }

    /// The next `count` bytes, which are there, in a buffer of their own.
    fn copy_out(&mut self, count: usize) -> Bytes {
        let mut bytes = BytesMut::with_capacity(count);
        while bytes.len() < count
            && let Some(chunk) = self.chunks.front_mut()
        {
            let step = (count - bytes.len()).min(chunk.len());
            bytes.put_slice(&chunk[..step]);
            chunk.advance(step);
            if chunk.is_empty() {
                self.chunks.pop_front();
            }
        }
        self.chunks_bytes -= count;
        bytes.freeze()
    }
}

/// Decodes a frame's header.
pub(crate) fn decode<M: Message + Default>(frame: &RawFrame) -> Result<M, ReadError> {
    frame.message().map_err(|error| ReadError::Message(error.to_string()))
}

/// Writes whole frames. Payloads are handed to quinn as they are (small ones excepted).
#[derive(Debug)]
pub(crate) struct FrameWriter {
    stream: quinn::SendStream,
    /// Headers and small payloads since the last large one.
    joined: BytesMut,
    /// To be written, in order, from `written` on.
    queue: Vec<Bytes>,
    written: usize,
    queued_bytes: usize,
}

impl FrameWriter {
    fn new(stream: quinn::SendStream) -> Self {
        Self { stream, joined: BytesMut::new(), queue: Vec::new(), written: 0, queued_bytes: 0 }
    }

    /// Writes one frame. Cancel-safe: what was not written is written by the next call.
    pub(crate) async fn send(&mut self, header: &impl Message, payload: &[Bytes]) -> Result<(), WriteError> {
        self.feed(header, payload)?;
        self.flush().await
    }

    /// Queues one frame without writing.
    pub(crate) fn feed(&mut self, header: &impl Message, payload: &[Bytes]) -> Result<(), WriteError> {
        let header_length = header.encoded_len();
        let length = HEADER_LENGTH_BYTES + header_length + payload.iter().map(Bytes::len).sum::<usize>();
        let frame_length = u32::try_from(length).map_err(|_| WriteError::TooLarge(length))?;
        let header_length = u32::try_from(header_length).map_err(|_| WriteError::TooLarge(length))?;
        if self.joined.capacity() == 0 {
            self.joined.reserve(HEADERS_BUFFER_BYTES);
        }
        self.joined.put_u32(frame_length);
        self.joined.put_u32(header_length);
        header.encode(&mut self.joined).map_err(|_| WriteError::TooLarge(length))?;
        self.queued_bytes += FRAME_LENGTH_BYTES + length;
        for part in payload {
            if part.len() <= JOINED_PART_BYTES_MAX {
                self.joined.put_slice(part);
            } else {
                self.close_joined();
                self.queue.push(part.clone());
            }
        }
        Ok(())
    }

    /// Whether [`Self::flush`] has something to do.
    pub(crate) const fn has_queued(&self) -> bool {
        self.queued_bytes > 0
    }

    /// Bytes that [`Self::flush`] has not handed over yet.
    pub(crate) const fn queued_bytes(&self) -> usize {
        self.queued_bytes
    }

    /// Hands everything queued to quinn. Cancel-safe.
    pub(crate) async fn flush(&mut self) -> Result<(), WriteError> {
        self.close_joined();
        while let Some(rest) = self.queue.get_mut(self.written..)
            && !rest.is_empty()
        {
            let done = self.stream.write_chunks(rest).await?;
            self.written += done.chunks;
            self.queued_bytes = self.queued_bytes.saturating_sub(done.bytes);
        }
        self.queue.clear();
        self.written = 0;
        self.queued_bytes = 0;
        Ok(())
    }

    /// Writes what is queued and ends the stream.
    pub(crate) async fn finish(&mut self) -> Result<(), WriteError> {
        self.flush().await?;
        // An error says that the stream is over already.
        let _ = self.stream.finish();
        Ok(())
    }

    /// Gives the stream up.
    pub(crate) fn reset(&mut self) {
        // An error says that the stream is over already.
        let _ = self.stream.reset(0u32.into());
    }

    /// Streams of higher priority are sent first.
    pub(crate) fn set_priority(&self, priority: i32) {
        // An error says that the stream is over already.
        let _ = self.stream.set_priority(priority);
    }

    fn close_joined(&mut self) {
        if !self.joined.is_empty() {
            self.queue.push(self.joined.split().freeze());
        }
    }
}
