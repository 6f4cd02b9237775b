//! Counts datagrams that cannot be ours, before quinn drops them without a word.
//!
//! What is looked for is cheap and certain. Noise that looks like a packet of a connection (a short header) is not among it: only
//! the endpoint knows its connections, and such packets come from honest clients too, when a broker was started again.

use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};

use crate::LogBudget;

/// A connection begins with at least so much (RFC 9000, section 14.1).
const INITIAL_BYTES_MIN: usize = 1_200;
/// No packet is shorter: a byte, and what its protection takes a sample of.
const PACKET_BYTES_MIN: usize = 21;

const LONG_HEADER: u8 = 0x80;
const LONG_TYPE: u8 = 0x30;
const LONG_TYPE_INITIAL: u8 = 0;

/// Whether a datagram cannot be the beginning or a part of a connection.
fn is_garbage(datagram: &[u8]) -> bool {
    let Some(first) = datagram.first().filter(|_| datagram.len() >= PACKET_BYTES_MIN) else { return true };
    if first & LONG_HEADER == 0 {
        return false;
    }
    let version = datagram.get(1..5).and_then(|bytes| bytes.try_into().ok()).map(u32::from_be_bytes);
    let Some(version) = version else { return true };
    if !is_spoken(version) {
        return true;
    }
    first & LONG_TYPE == LONG_TYPE_INITIAL && datagram.len() < INITIAL_BYTES_MIN
}

/// QUIC 1, and the last drafts of it that quinn answers too.
fn is_spoken(version: u32) -> bool {
    version == 1 || (0xff00_001d..=0xff00_0022).contains(&version)
}

/// A socket whose garbage is counted. Everything reaches quinn as it came.
pub(crate) struct CountingSocket {
    inner: Arc<dyn AsyncUdpSocket>,
}

impl CountingSocket {
    pub(crate) fn new(inner: Arc<dyn AsyncUdpSocket>) -> Arc<Self> {
        Arc::new(Self { inner })
    }
}

impl fmt::Debug for CountingSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("CountingSocket").field(&self.inner).finish()
    }
}

impl AsyncUdpSocket for CountingSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.inner).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.inner.try_send(transmit)
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let received = ready!(self.inner.poll_recv(context, buffers, meta))?;
        for (buffer, meta) in buffers.iter().zip(meta.iter()).take(received) {
            let bytes = buffer.get(..meta.len).unwrap_or_default();
            let count = bytes.chunks(meta.stride.max(1)).filter(|datagram| is_garbage(datagram)).count();
            if count > 0 {
                note(meta.addr, count as u64);
            }
        }
        Poll::Ready(Ok(received))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.inner.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.inner.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}

#[cold]
fn note(peer: SocketAddr, count: u64) {
    static LINES: LogBudget = LogBudget::new();
    metrics::counter!("tidemill_net_garbage_datagrams_total").increment(count);
    if let Some(left_out) = LINES.take() {
        tracing::info!(%peer, left_out, "datagrams that are not QUIC were dropped");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn datagram(first: u8, version: u32, bytes: usize) -> Vec<u8> {
        let mut datagram = vec![7; bytes];
        datagram[0] = first;
        datagram[1..5].copy_from_slice(&version.to_be_bytes());
        datagram
    }

    #[test]
    fn only_what_is_certain_counts() {
        for (what, datagram, expected) in [
            ("nothing", Vec::new(), true),
            ("a few bytes", b"GET / HTTP/1.1\r\n".to_vec(), true),
            ("a client's first packet", datagram(0xc3, 1, 1_200), false),
            ("one that is too short to be it", datagram(0xc3, 1, 1_199), true),
            ("a later packet of a handshake", datagram(0xe3, 1, 60), false),
            ("a version that nobody speaks", datagram(0xc3, 0x0a0a_0a0a, 1_200), true),
            ("an answer to a version", datagram(0xc3, 0, 60), true),
            ("a packet of a connection, perhaps", datagram(0x43, 9, 40), false),
        ] {
            assert_eq!(is_garbage(&datagram), expected, "{what}");
        }
    }
}
