use std::collections::VecDeque;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::FRAME_BYTES_MAX;
use crate::Outcome;

/// Bytes before a frame's header.
const PREFIX_BYTES: usize = 8;
/// Chunks taken from quinn under one lock.
const CHUNKS_PER_READ: usize = 32;

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) header: Bytes,
    pub(super) payload: Bytes,
}

/// Prefix and header of a frame with a payload of `payload_bytes`.
pub(super) fn head(header: &[u8], payload_bytes: usize) -> Outcome<Bytes> {
    let mut head = BytesMut::with_capacity(PREFIX_BYTES + header.len());
    head.put_u32(u32::try_from(4 + header.len() + payload_bytes)?);
    head.put_u32(u32::try_from(header.len())?);
    head.put_slice(header);
    Ok(head.freeze())
}

/// Writes one frame; the payload is handed over, not copied.
pub(super) async fn send(stream: &mut quinn::SendStream, header: &[u8], payload: Bytes) -> Outcome<()> {
    let mut parts = [head(header, payload.len())?, payload];
    stream.write_all_chunks(&mut parts).await?;
    Ok(())
}

/// Reads frames. Each payload is copied once, into a buffer of its own size, as a broker must that keeps it.
pub(super) struct Reader {
    stream: quinn::RecvStream,
    chunks: VecDeque<Bytes>,
    buffered: usize,
}

impl Reader {
    pub(super) const fn new(stream: quinn::RecvStream) -> Self {
        Self { stream, chunks: VecDeque::new(), buffered: 0 }
    }

    /// The next frame; `None` at the end of the stream.
    pub(super) async fn next(&mut self) -> Outcome<Option<Frame>> {
        let mut prefix = [0; PREFIX_BYTES];
        if !self.fill(PREFIX_BYTES).await? {
            return if self.buffered == 0 { Ok(None) } else { Err("the stream ended inside a frame".into()) };
        }
        self.take_into(&mut prefix.as_mut_slice(), PREFIX_BYTES);
        let mut prefix = prefix.as_slice();
        let (length, header) = (usize::try_from(prefix.get_u32())?, usize::try_from(prefix.get_u32())?);
        let payload = length.checked_sub(4 + header).ok_or("a frame's lengths contradict each other")?;
        if length > FRAME_BYTES_MAX {
            return Err(format!("a frame of {length} bytes").into());
        }
        let header = self.copy(header).await?;
        let payload = self.copy(payload).await?;
        Ok(Some(Frame { header, payload }))
    }

    /// A number that is no frame; `None` at the end of the stream.
    pub(super) async fn number<const N: usize>(&mut self) -> Outcome<Option<[u8; N]>> {
        let mut bytes = [0; N];
        if !self.fill(N).await? {
            return Ok(None);
        }
        self.take_into(&mut bytes.as_mut_slice(), N);
        Ok(Some(bytes))
    }

    /// The next `count` bytes in a buffer of their own. Takes from the packets as they come: they are not kept.
    async fn copy(&mut self, count: usize) -> Outcome<Bytes> {
        let mut buffer = BytesMut::with_capacity(count);
        while buffer.len() < count {
            if self.buffered == 0 && !self.fill(1).await? {
                return Err("the stream ended inside a frame".into());
            }
            let step = self.buffered.min(count - buffer.len());
            self.take_into(&mut buffer, step);
        }
        Ok(buffer.freeze())
    }

    fn take_into(&mut self, into: &mut impl BufMut, mut count: usize) {
        self.buffered -= count;
        while count > 0
            && let Some(chunk) = self.chunks.front_mut()
        {
            let step = count.min(chunk.len());
            into.put_slice(&chunk[..step]);
            chunk.advance(step);
            count -= step;
            if chunk.is_empty() {
                self.chunks.pop_front();
            }
        }
    }

    /// Waits until `count` bytes are here; `false` where the stream ends before.
    async fn fill(&mut self, count: usize) -> Outcome<bool> {
        while self.buffered < count {
            let mut chunks: [Bytes; CHUNKS_PER_READ] = std::array::from_fn(|_| Bytes::new());
            let Some(read) = self.stream.read_chunks(&mut chunks).await? else { return Ok(false) };
            for chunk in chunks.into_iter().take(read).filter(|chunk| !chunk.is_empty()) {
                self.buffered += chunk.len();
                self.chunks.push_back(chunk);
            }
        }
        Ok(true)
    }
}
