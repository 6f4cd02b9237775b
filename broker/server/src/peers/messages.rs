//! What brokers say to each other, outside of Raft's own messages.
//!
//! ```text
//! connection   the dialer's first stream carries PeerOpen{hello}, answered by PeerWelcome; then it stays open and silent
//! other streams  PeerOpen says what the stream is for:
//!     raft        messages of the raft room, both ways: header = its head (as a Protobuf BytesValue), payload = its body
//!     forward     a client's stream: from the next frame on exactly what the client and the broker say to each other
//!     component   answered by ComponentReply, then frames whose payload is the component, to the stream's end
//!     keep        answered by ComponentReply when the component is kept here too: it is fetched from who asks
//!     replace     a replica of the asking broker is lost; answered by ReplaceReply: under which id it comes back
//!     status      answered by a ClusterStatus of the broker alone
//!     join        by who has no certificate yet; answered by JoinReply
//! ```

use bytes::Bytes;
use tidemill_protocol::messages::Error;

/// Versions of this protocol that this release speaks.
pub(crate) const PEER_PROTOCOL_MIN: u32 = 1;
pub(crate) const PEER_PROTOCOL_MAX: u32 = 1;

/// The first frame of every stream.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct PeerOpen {
    #[prost(oneof = "Purpose", tags = "1, 2, 3, 4, 5, 6, 7, 8")]
    pub(crate) purpose: Option<Purpose>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub(crate) enum Purpose {
    #[prost(message, tag = "1")]
    Hello(PeerHello),
    #[prost(message, tag = "2")]
    Raft(RaftOpen),
    #[prost(message, tag = "3")]
    Forward(ForwardOpen),
    #[prost(message, tag = "4")]
    Component(ComponentOpen),
    #[prost(message, tag = "5")]
    Status(StatusOpen),
    #[prost(message, tag = "6")]
    Join(JoinRequest),
    #[prost(message, tag = "7")]
    Keep(ComponentOpen),
    #[prost(message, tag = "8")]
    Replace(ReplaceOpen),
}

impl From<Purpose> for PeerOpen {
    fn from(purpose: Purpose) -> Self {
        Self { purpose: Some(purpose) }
    }
}

/// Who a broker is, and whom it knows.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct PeerHello {
    #[prost(uint32, tag = "1")]
    pub(crate) protocol_min: u32,
    #[prost(uint32, tag = "2")]
    pub(crate) protocol_max: u32,
    /// 16 bytes.
    #[prost(bytes = "bytes", tag = "3")]
    pub(crate) cluster_id: Bytes,
    #[prost(message, optional, tag = "4")]
    pub(crate) broker: Option<KnownBroker>,
    #[prost(message, repeated, tag = "5")]
    pub(crate) known: Vec<KnownBroker>,
    #[prost(string, tag = "6")]
    pub(crate) software: String,
}

/// The answer to a hello.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct PeerWelcome {
    #[prost(message, optional, tag = "1")]
    pub(crate) error: Option<Error>,
    /// The version that is spoken from here on.
    #[prost(uint32, tag = "2")]
    pub(crate) protocol: u32,
    #[prost(message, optional, tag = "3")]
    pub(crate) hello: Option<PeerHello>,
    /// Beside an error: by what a formed cluster knows, who said hello is over for good, and no other broker of it will say otherwise.
    #[prost(bool, tag = "4")]
    pub(crate) is_over: bool,
}

/// A broker as somebody has heard of it.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct KnownBroker {
    #[prost(uint32, tag = "1")]
    pub(crate) broker_id: u32,
    #[prost(uint32, tag = "2")]
    pub(crate) incarnation: u32,
    /// The directory's id, 16 bytes.
    #[prost(bytes = "bytes", tag = "3")]
    pub(crate) directory: Bytes,
    /// Of the directory: of two that differ in their addresses the one with more starts is newer.
    #[prost(uint64, tag = "4")]
    pub(crate) starts: u64,
    /// `host:port` of its peer port.
    #[prost(string, repeated, tag = "5")]
    pub(crate) peer_addresses: Vec<String>,
}

/// A stream between two replicas of a shard.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct RaftOpen {
    #[prost(uint32, tag = "1")]
    pub(crate) shard: u32,
    /// Node ids.
    #[prost(uint64, tag = "2")]
    pub(crate) from: u64,
    #[prost(uint64, tag = "3")]
    pub(crate) to: u64,
}

/// A client's stream, brought by the broker that the client is connected to.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct ForwardOpen {
    /// What the client calls itself, for logs.
    #[prost(string, tag = "1")]
    pub(crate) client: String,
    /// Subject of the client's verified certificate; empty: it showed none.
    #[prost(string, tag = "2")]
    pub(crate) identity: String,
}

/// A plugin's component is asked for.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct ComponentOpen {
    /// blake3, 32 bytes.
    #[prost(bytes = "bytes", tag = "1")]
    pub(crate) digest: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ComponentReply {
    #[prost(message, optional, tag = "1")]
    pub(crate) error: Option<Error>,
    #[prost(uint64, tag = "2")]
    pub(crate) size: u64,
}

/// A replica can't go on as what it was.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub(crate) struct ReplaceOpen {
    #[prost(uint32, tag = "1")]
    pub(crate) shard: u32,
    /// The node id that is given up; the asking broker's own.
    #[prost(uint64, tag = "2")]
    pub(crate) node: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ReplaceReply {
    #[prost(message, optional, tag = "1")]
    pub(crate) error: Option<Error>,
    #[prost(uint64, tag = "2")]
    pub(crate) node: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub(crate) struct StatusOpen {}

/// Somebody wants to become a broker of the cluster.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct JoinRequest {
    #[prost(uint32, tag = "1")]
    pub(crate) protocol_min: u32,
    #[prost(uint32, tag = "2")]
    pub(crate) protocol_max: u32,
    #[prost(bytes = "bytes", tag = "3")]
    pub(crate) secret: Bytes,
    #[prost(uint32, tag = "4")]
    pub(crate) broker_id: u32,
    /// The new directory's id, 16 bytes: who asks again with the same one gets the same answer.
    #[prost(bytes = "bytes", tag = "5")]
    pub(crate) directory: Bytes,
    #[prost(string, tag = "6")]
    pub(crate) rack: String,
    #[prost(string, tag = "7")]
    pub(crate) software: String,
}

/// What a new broker needs to be one.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct JoinReply {
    #[prost(message, optional, tag = "1")]
    pub(crate) error: Option<Error>,
    /// Of the one that answers, with those it knows: the new one finds them from here.
    #[prost(message, optional, tag = "2")]
    pub(crate) hello: Option<PeerHello>,
    #[prost(uint32, tag = "3")]
    pub(crate) incarnation: u32,
    #[prost(uint32, tag = "4")]
    pub(crate) shards: u32,
    /// `fsync` or `replicated`.
    #[prost(string, tag = "5")]
    pub(crate) durability: String,
    /// PEM.
    #[prost(string, tag = "6")]
    pub(crate) authority: String,
    /// PEM: its key, for brokers alone. They can take in others with it.
    #[prost(string, tag = "7")]
    pub(crate) authority_key: String,
}
