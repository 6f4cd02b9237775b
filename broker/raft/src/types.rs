//! How openraft's type parameters are filled in.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use openraft::impls::{BoxedErrorSource, InlineBatch, leader_id_adv};
use openraft::{EmptyNode, OptionalSend, RaftTypeConfig};
use tidemill_log::wal::EntryId;
use tidemill_protocol::{LogIndex, NodeId, Term};
use tidemill_shard::{Entry, UnitResult};

use crate::codec;
use crate::responder::CallbackResponder;
use crate::runtime::Runtime;

/// Several leaders may share a term (a vote is compared by term, then node), which spares a split vote its second
/// round; the node is therefore part of every entry's id.
pub(crate) type LeaderId = leader_id_adv::LeaderId<u64, NodeId>;
pub(crate) type LogId = openraft::LogId<LeaderId>;
pub(crate) type Vote = openraft::Vote<LeaderId>;
/// Addresses of peers are the controller's business, so a member carries nothing but its id.
pub(crate) type Membership = openraft::Membership<NodeId, EmptyNode>;
pub(crate) type StoredMembership = openraft::StoredMembership<LeaderId, NodeId, EmptyNode>;
pub(crate) type Payload = openraft::EntryPayload<Command, NodeId, EmptyNode>;
pub(crate) type RaftLogEntry = openraft::Entry<LeaderId, Payload>;
pub(crate) type SnapshotMeta = openraft::SnapshotMeta<LeaderId, NodeId, EmptyNode>;
pub(crate) type RaftSnapshot = openraft::Snapshot<LeaderId, NodeId, EmptyNode, crate::snapshot::Snapshot>;
pub(crate) type IoFlushed = openraft::storage::IOFlushed<TypeConfig>;

/// The type parameters of every Raft group of a broker.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TypeConfig;

impl RaftTypeConfig for TypeConfig {
    type D = Command;
    type R = Vec<UnitResult>;
    type NodeId = NodeId;
    type Node = EmptyNode;
    type Term = u64;
    type LeaderId = LeaderId;
    type Vote = Vote;
    type Payload = Payload;
    type Entry = RaftLogEntry;
    type AsyncRuntime = Runtime;
    type Responder<T>
        = CallbackResponder<T>
    where
        T: OptionalSend + 'static;
    type Batch<T>
        = InlineBatch<T>
    where
        T: OptionalSend + 'static;
    type ErrorSource = BoxedErrorSource;
}

/// An entry of units together with its encoded form: made once, then shared by the log, its cache and apply.
#[derive(Clone)]
pub(crate) struct Command(Arc<CommandParts>);

struct CommandParts {
    entry: Entry,
    /// The kind byte, then what [`Entry::encode`] gave: written one after the other, never joined.
    encoded: Vec<Bytes>,
    bytes: usize,
}

impl Command {
    /// Encodes an entry that is about to be proposed.
    pub(crate) fn new(entry: Entry) -> Self {
        let encoded = codec::normal_parts(entry.encode());
        Self::with_encoded(entry, encoded)
    }

    /// An entry that was read, with the bytes it was read from.
    pub(crate) fn with_encoded(entry: Entry, encoded: Vec<Bytes>) -> Self {
        let bytes = encoded.iter().map(Bytes::len).sum();
        Self(Arc::new(CommandParts { entry, encoded, bytes }))
    }

    pub(crate) fn entry(&self) -> &Entry {
        &self.0.entry
    }

    pub(crate) fn encoded(&self) -> &[Bytes] {
        &self.0.encoded
    }

    /// Length of the encoded form.
    pub(crate) fn bytes(&self) -> usize {
        self.0.bytes
    }
}

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Record bodies may be megabytes of a user's data: a log line gets their size.
        write!(f, "{} units, {} bytes", self.0.entry.units.len(), self.0.bytes)
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// The log's name for openraft's log id.
pub(crate) fn entry_id(id: &LogId) -> EntryId {
    EntryId {
        index: LogIndex::new(id.index),
        term: Term::new(id.leader_id.term),
        leader_node: id.leader_id.node_id.get(),
    }
}

/// openraft's name for the log's entry id.
pub(crate) fn log_id(id: &EntryId) -> LogId {
    LogId::new(LeaderId { term: id.term.get(), node_id: NodeId::from_raw(id.leader_node) }, id.index.get())
}
