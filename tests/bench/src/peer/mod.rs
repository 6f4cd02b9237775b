//! The bare quinn peer: what the same machine gives over the same QUIC, TLS and framing with no broker behind it.
//!
//! The server is a process of its own, as the broker is. Both sides use the transport settings of the broker and of its client
//! ([`tidemill_net::transport_config`]). A frame is laid out as Tidemill's is:
//!
//! ```text
//! u32 length of the rest | u32 length of the header | header | payload        big-endian
//! ```
//!
//! A stream's first byte says what it is for:
//!
//! ```text
//! P   produce-like: frames of a payload come in, each is read into a buffer of its own, acknowledged by a small frame, and dropped
//! E   echo: each frame goes back as it came
//! C   copy: frames of a file's bytes come in and are written to a file, which is synced at the end; a small frame says how many bytes
//! F   fetch-like: u32 payload bytes of a frame, then u64s of credit in bytes; frames go out as long as there is credit
//! ```

mod client;
mod frames;
mod process;
mod server;
mod tls;

pub(crate) use client::PeerClient;
pub(crate) use process::PeerProcess;
pub(crate) use server::serve;

/// What a produce-like frame's header carries, as long as the header of a produced batch: a number that comes back.
const HEADER_BYTES: usize = 8;
/// An acknowledgement's header: number, offset, log start.
const ACK_BYTES: usize = 24;
/// Lengths beyond this are a defect of the benchmark.
const FRAME_BYTES_MAX: usize = 16 << 20;
/// A copied file goes in frames of this size.
const COPY_CHUNK_BYTES: usize = 1 << 20;
/// So many are read ahead of the network, and wait for the disk on the other side.
const COPY_CHUNKS_AHEAD: usize = 8;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Produce = b'P' as isize,
    Echo = b'E' as isize,
    Fetch = b'F' as isize,
    Copy = b'C' as isize,
}

impl Kind {
    const fn byte(self) -> u8 {
        self as u8
    }

    const fn of(byte: u8) -> Option<Self> {
        match byte {
            b'P' => Some(Self::Produce),
            b'E' => Some(Self::Echo),
            b'F' => Some(Self::Fetch),
            b'C' => Some(Self::Copy),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const LEG: Duration = Duration::from_millis(200);

    /// A peer within this process, and a connection to it.
    async fn connected(dir: &std::path::Path) -> PeerClient {
        let (endpoint, authority) = tls::server(dir).expect("an endpoint");
        let address = endpoint.local_addr().expect("an address");
        tokio::spawn(server::accept(endpoint, dir.into()));
        PeerClient::connect(address, &authority).await.expect("a connection")
    }

    #[tokio::test]
    async fn every_frame_is_acknowledged_echoed_and_pushed() {
        let dir = tempfile::tempdir().expect("a directory");
        let peer = connected(dir.path()).await;
        // Counts acknowledgements itself, and fails where one is missing or out of turn.
        assert!(peer.produce(3, 100_000, LEG).await.expect("acknowledged") > 0.0);
        let latencies = peer.echo(1024, LEG).await.expect("echoed");
        assert!(latencies.count() > 0 && latencies.at(0.5) <= latencies.at(0.99));
        let latencies = peer.echo_at(1024, LEG, LEG / 50).await.expect("echoed");
        assert!((40..=50).contains(&latencies.count()), "{} of 50 came back", latencies.count());
        // More than one window of credit.
        let rate = peer.fetch(1 << 20, LEG * 5).await.expect("pushed");
        assert!(rate > 0.0);
        peer.close().await;
    }

    #[tokio::test]
    async fn a_file_is_copied_to_its_last_byte() {
        let dir = tempfile::tempdir().expect("a directory");
        let peer = connected(dir.path()).await;
        let file = dir.path().join("source");
        std::fs::write(&file, vec![7; 3 * COPY_CHUNK_BYTES + 5]).expect("written");
        // The other side says how many bytes it has, which must be all of them.
        assert!(peer.copy(&file).await.expect("copied") > 0.0);
        peer.copy(&dir.path().join("nothing")).await.expect_err("there is no such file");
        peer.close().await;
    }
}
