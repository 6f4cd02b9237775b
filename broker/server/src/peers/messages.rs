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
//!     disk        answered by DiskReports: one at once, and one whenever it is another
//!     attempt     what the broker's replica of a shard remembers of a routed batch; answered by AttemptReply
//!     held        which of what was deleted the broker's replica of a shard still holds; answered by HeldReply
//!     segment     answered by SegmentReply, then frames whose payload is the segment's file, to the stream's end
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
    #[prost(oneof = "Purpose", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12")]
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
    #[prost(message, tag = "9")]
    Attempt(AttemptOpen),
    #[prost(message, tag = "10")]
    Held(HeldOpen),
    #[prost(message, tag = "11")]
    Disk(DiskOpen),
    #[prost(message, tag = "12")]
    Segment(SegmentOpen),
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
    /// The largest unit that its log takes. A broker that says nothing takes as much as any.
    #[prost(uint64, tag = "7")]
    pub(crate) unit_bytes_max: u64,
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
    /// Of the controller's state, as the broker that brings the stream knows it: whoever serves it knows as much first.
    #[prost(uint64, tag = "3")]
    pub(crate) view_version: u64,
    /// A request: the shards whose part of the answer is wanted; none: of whatever is here.
    #[prost(uint32, repeated, tag = "4")]
    pub(crate) shards: Vec<u32>,
    /// Tells the client's connection from others of the broker that brings the stream: what one connection may have at once, all its
    /// streams have together.
    #[prost(uint64, tag = "5")]
    pub(crate) connection: u64,
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

/// A sealed segment is asked for, by a broker whose own copy does not read: what it recorded when it wrote it.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct SegmentOpen {
    #[prost(uint32, tag = "1")]
    pub(crate) shard: u32,
    /// The topic's id, 16 bytes.
    #[prost(bytes = "bytes", tag = "2")]
    pub(crate) topic: Bytes,
    #[prost(uint32, tag = "3")]
    pub(crate) partition: u32,
    #[prost(int64, tag = "4")]
    pub(crate) base_offset: i64,
    #[prost(int64, tag = "5")]
    pub(crate) next_offset: i64,
    /// Length of the log file.
    #[prost(uint64, tag = "6")]
    pub(crate) bytes: u64,
    #[prost(uint64, tag = "7")]
    pub(crate) batches: u64,
    #[prost(int64, tag = "8")]
    pub(crate) max_timestamp: i64,
    /// The running digest of its frames' checksums.
    #[prost(fixed64, tag = "9")]
    pub(crate) digest: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct SegmentReply {
    #[prost(message, optional, tag = "1")]
    pub(crate) error: Option<Error>,
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

/// A routed batch that may have been sent before.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct AttemptOpen {
    #[prost(uint32, tag = "1")]
    pub(crate) shard: u32,
    /// 16 bytes.
    #[prost(bytes = "bytes", tag = "2")]
    pub(crate) topic_id: Bytes,
    #[prost(int64, tag = "3")]
    pub(crate) producer_id: i64,
    #[prost(int32, tag = "4")]
    pub(crate) producer_epoch: i32,
    #[prost(uint64, tag = "5")]
    pub(crate) topic_sequence: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct AttemptReply {
    #[prost(message, optional, tag = "1")]
    pub(crate) error: Option<Error>,
    /// Whether the shard has anything of the batch.
    #[prost(bool, tag = "2")]
    pub(crate) is_known: bool,
    /// The produce filter that it passed then, and the time that the filter was told; none: it passed no filter.
    #[prost(message, optional, tag = "3")]
    pub(crate) passed: Option<AttemptPass>,
}

#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub(crate) struct AttemptPass {
    /// The filter's deployment.
    #[prost(uint64, tag = "1")]
    pub(crate) deployment: u64,
    /// Milliseconds.
    #[prost(int64, tag = "2")]
    pub(crate) now: i64,
}

/// Topics and deployments that were deleted: which of them does a shard still hold?
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct HeldOpen {
    #[prost(uint32, tag = "1")]
    pub(crate) shard: u32,
    #[prost(message, repeated, tag = "2")]
    pub(crate) topics: Vec<DeletedTopic>,
    #[prost(message, repeated, tag = "3")]
    pub(crate) deployments: Vec<DeletedDeployment>,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct DeletedTopic {
    /// 16 bytes.
    #[prost(bytes = "bytes", tag = "1")]
    pub(crate) topic_id: Bytes,
    /// Of the deletion.
    #[prost(uint64, tag = "2")]
    pub(crate) version: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub(crate) struct DeletedDeployment {
    #[prost(uint64, tag = "1")]
    pub(crate) deployment_id: u64,
    /// Of the deletion.
    #[prost(uint64, tag = "2")]
    pub(crate) version: u64,
}

/// The shard has not adopted the deletion of these yet, or has something of them that it was not told of.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct HeldReply {
    #[prost(message, optional, tag = "1")]
    pub(crate) error: Option<Error>,
    /// Ids of 16 bytes.
    #[prost(bytes = "bytes", repeated, tag = "2")]
    pub(crate) topics: Vec<Bytes>,
    #[prost(uint64, repeated, tag = "3")]
    pub(crate) deployments: Vec<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub(crate) struct StatusOpen {}

#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub(crate) struct DiskOpen {}

/// How a broker's disk is.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub(crate) struct DiskReport {
    /// It takes no more records: none may be written to the shards that it keeps.
    #[prost(bool, tag = "1")]
    pub(crate) nearly_full: bool,
    /// A shard has stopped there: others should lead.
    #[prost(bool, tag = "2")]
    pub(crate) failed: bool,
    /// It is about to stop: the leads that it has handed over are not to come back.
    #[prost(bool, tag = "3")]
    pub(crate) stopping: bool,
}

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
