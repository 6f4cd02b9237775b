use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tidemill_protocol::frame::FrameLimits;

use crate::places::Place;
use crate::receiving::ReceiveBudget;
use crate::{ConnectionLost, FrameReader, FrameWriter, NetLimits, PeerIdentity};

/// Who is on the other side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerInfo {
    /// Where its packets came from when the handshake ended.
    pub address: SocketAddr,
    /// Subject of the certificate that it showed and that one of our authorities signed; `None` without one.
    pub identity: Option<String>,
    /// Which broker it is; `None` on the clients' port, and for one that shows no certificate because it is about to join.
    pub peer: Option<PeerIdentity>,
}

/// A peer whose handshake is done. Cheap to clone; the connection closes when the last clone and stream is gone.
#[derive(Debug, Clone)]
pub struct Connection {
    quinn: quinn::Connection,
    peer: Arc<PeerInfo>,
    frames: FrameLimits,
    receiving: ReceiveBudget,
    frame_deadline: Duration,
    /// Where the peer may open so many streams in all, and no more.
    quota: Option<Arc<StreamQuota>>,
    /// Counts against the endpoint's limits for as long as any clone lives. Nothing that was dialled here has one.
    _place: Option<Arc<Place>>,
}

/// Streams that a peer may open over a connection's whole life.
#[derive(Debug)]
pub(crate) struct StreamQuota {
    left: AtomicU32,
    /// Closes the connection of who wants more.
    refuse: fn(&quinn::Connection),
}

impl StreamQuota {
    pub(crate) fn new(streams: u32, refuse: fn(&quinn::Connection)) -> Arc<Self> {
        Arc::new(Self { left: AtomicU32::new(streams), refuse })
    }

    fn take(&self) -> bool {
        self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
    }
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
        peer: PeerInfo,
        limits: &NetLimits,
        receiving: ReceiveBudget,
        place: Option<Place>,
    ) -> Self {
        let (frames, frame_deadline) = (limits.frames, limits.frame_deadline);
        let (peer, place) = (Arc::new(peer), place.map(Arc::new));
        Self { quinn, peer, frames, receiving, frame_deadline, quota: None, _place: place }
    }

    /// The same, with an end to the streams that the peer may open.
    pub(crate) fn with_quota(self, quota: Arc<StreamQuota>) -> Self {
        Self { quota: Some(quota), ..self }
    }

    /// The next stream that the peer opens; `None` where either side closed the connection on purpose.
    ///
    /// # Errors
    /// The connection is gone otherwise.
    pub async fn accept_stream(&self) -> Result<Option<Stream>, ConnectionLost> {
        match self.quinn.accept_bi().await {
            Ok((send, receive)) => {
                if let Some(quota) = self.quota.as_ref().filter(|quota| !quota.take()) {
                    (quota.refuse)(&self.quinn);
                    return Ok(None);
                }
                Ok(Some(self.stream(send, receive)))
            }
            Err(error) => {
                let lost = ConnectionLost::from(error);
                if lost.is_clean() { Ok(None) } else { Err(lost) }
            }
        }
    }

    /// Opens a stream to the other side, on whichever side this is. It hears of it with the first byte that is written. Waits
    /// while the other side allows no more streams.
    ///
    /// # Errors
    /// The connection is gone.
    pub async fn open_stream(&self) -> Result<Stream, ConnectionLost> {
        let (send, receive) = self.quinn.open_bi().await?;
        Ok(self.stream(send, receive))
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
}
