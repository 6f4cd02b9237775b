use bytes::Bytes;
use prost::Message;
use thiserror::Error;
use tidemill_protocol::ErrorCode;
use tidemill_protocol::frame::{FrameDecoder, FrameEncoder, FrameError, FrameLimits, FrameTooLong, RawFrame};

/// Chunks taken from quinn under one lock.
const CHUNKS_PER_READ: usize = 32;
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

/// Reads whole frames.
#[derive(Debug)]
pub(crate) struct FrameReader {
    stream: quinn::RecvStream,
    frames: FrameDecoder,
}

impl FrameReader {
    const fn new(stream: quinn::RecvStream) -> Self {
        Self { stream, frames: FrameDecoder::trusting(LIMITS) }
    }

    /// The next frame; `None` where the stream ended between two frames. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Result<Option<RawFrame>, ReadError> {
        loop {
            if let Some(frame) = self.take_buffered()? {
                return Ok(Some(frame));
            }
            let mut chunks: [Bytes; CHUNKS_PER_READ] = std::array::from_fn(|_| Bytes::new());
            let Some(count) = self.stream.read_chunks(&mut chunks).await? else {
                self.frames.finish()?;
                return Ok(None);
            };
            chunks.into_iter().take(count).for_each(|chunk| self.frames.push(chunk));
        }
    }

    /// The next frame's message, where an end of the stream is an error too.
    pub(crate) async fn message<M: Message + Default>(&mut self) -> Result<(M, Bytes), ReadError> {
        let frame = self.next().await?.ok_or(ReadError::Ended)?;
        Ok((decode(&frame)?, frame.payload))
    }

    /// A frame that is already here in full, without waiting.
    pub(crate) fn take_buffered(&mut self) -> Result<Option<RawFrame>, ReadError> {
        Ok(self.frames.next()?)
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
    frames: FrameEncoder,
}

impl FrameWriter {
    fn new(stream: quinn::SendStream) -> Self {
        Self { stream, frames: FrameEncoder::new() }
    }

    /// Writes one frame. Cancel-safe: what was not written is written by the next call.
    pub(crate) async fn send(&mut self, header: &impl Message, payload: &[Bytes]) -> Result<(), WriteError> {
        self.feed(header, payload)?;
        self.flush().await
    }

    /// Queues one frame without writing.
    pub(crate) fn feed(&mut self, header: &impl Message, payload: &[Bytes]) -> Result<(), WriteError> {
        self.frames.feed(header, payload).map_err(|FrameTooLong { length }| WriteError::TooLarge(length))
    }

    /// Whether [`Self::flush`] has something to do.
    pub(crate) const fn has_queued(&self) -> bool {
        self.frames.queued_bytes() > 0
    }

    /// Bytes that [`Self::flush`] has not handed over yet.
    pub(crate) const fn queued_bytes(&self) -> usize {
        self.frames.queued_bytes()
    }

    /// Hands everything queued to quinn. Cancel-safe.
    pub(crate) async fn flush(&mut self) -> Result<(), WriteError> {
        loop {
            let chunks = self.frames.chunks();
            if chunks.is_empty() {
                return Ok(());
            }
            let done = self.stream.write_chunks(chunks).await?;
            self.frames.wrote(done.chunks, done.bytes);
        }
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
}
