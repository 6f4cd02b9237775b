use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tidemill_protocol::frame::FrameLimits;

use crate::listener::ConnectionSlot;
use crate::receiving::ReceiveBudget;
use crate::{ConnectionLost, FrameReader, FrameWriter, NetLimits};

/// Who is on the other side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerInfo {
    /// Where its packets came from when the handshake ended.
    pub address: SocketAddr,
    /// Subject of the certificate that it showed and that one of our authorities signed; `None` without one.
    pub identity: Option<String>,
}

/// What happened on a connection so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionStats {
    /// Smoothed round-trip time.
    pub rtt: Duration,
    /// UDP payload sent.
    pub sent_bytes: u64,
    /// UDP payload received.
    pub received_bytes: u64,
    /// Packets that had to be sent again.
    pub lost_packets: u64,
    /// Current packet size.
    pub mtu_bytes: u16,
    /// Bytes that may be in flight.
    pub congestion_window_bytes: u64,
}

/// A peer whose handshake is done. Cheap to clone; the connection closes when the last clone and stream is gone.
#[derive(Debug, Clone)]
pub struct Connection {
    quinn: quinn::Connection,
    peer: Arc<PeerInfo>,
    frames: FrameLimits,
    receiving: ReceiveBudget,
    frame_deadline: Duration,
    /// Counts against the listener's limits for as long as any clone lives.
    _slot: Arc<ConnectionSlot>,
}

/// Both directions of one stream.
#[derive(Debug)]
pub struct Stream {
    /// What the peer sends.
    pub reader: FrameReader,
    /// What goes to the peer.
    pub writer: FrameWriter,
    /// QUIC's number of the stream, for logs.
    pub id: u64,
}

impl Connection {
    pub(crate) fn new(
        quinn: quinn::Connection,
        identity: Option<String>,
        limits: &NetLimits,
        receiving: ReceiveBudget,
        slot: ConnectionSlot,
    ) -> Self {
        let peer = Arc::new(PeerInfo { address: quinn.remote_address(), identity });
        let (frames, frame_deadline) = (limits.frames, limits.frame_deadline);
        Self { quinn, peer, frames, receiving, frame_deadline, _slot: Arc::new(slot) }
    }

    /// The next stream that the peer opens; `None` where either side closed the connection on purpose.
    ///
    /// # Errors
    /// The connection is gone otherwise.
    pub async fn accept_stream(&self) -> Result<Option<Stream>, ConnectionLost> {
        match self.quinn.accept_bi().await {
            Ok((send, receive)) => Ok(Some(self.stream(send, receive))),
            Err(error) => {
                let lost = ConnectionLost::from(error);
                if lost.is_clean() { Ok(None) } else { Err(lost) }
            }
        }
    }

    fn stream(&self, send: quinn::SendStream, receive: quinn::RecvStream) -> Stream {
        let id = quinn::VarInt::from(send.id()).into_inner();
        let reader = FrameReader::new(receive, self.frames, &self.receiving, self.frame_deadline);
        Stream { reader, writer: FrameWriter::new(send), id }
    }

    /// Who is on the other side.
    #[must_use]
    pub fn peer(&self) -> &PeerInfo {
        &self.peer
    }

    /// Closes at once: streams under way break off. `code` 0 says that nothing is wrong, others are docs/errors.md's.
    pub fn close(&self, code: u32, reason: &str) {
        self.quinn.close(code.into(), reason.as_bytes());
    }

    /// Waits until the connection is gone and says why.
    pub async fn closed(&self) -> ConnectionLost {
        self.quinn.closed().await.into()
    }

    /// Distinguishes connections of one process, for logs and maps.
    #[must_use]
    pub fn stable_id(&self) -> usize {
        self.quinn.stable_id()
    }

    /// What happened so far.
    #[must_use]
    pub fn stats(&self) -> ConnectionStats {
        let stats = self.quinn.stats();
        ConnectionStats {
            rtt: stats.path.rtt,
            sent_bytes: stats.udp_tx.bytes,
            received_bytes: stats.udp_rx.bytes,
            lost_packets: stats.path.lost_packets,
            mtu_bytes: stats.path.current_mtu,
            congestion_window_bytes: stats.path.cwnd,
        }
    }
}
