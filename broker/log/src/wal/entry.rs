//! What the log holds: entries and their identities.

use bytes::{Bytes, BytesMut};
use tidemill_protocol::{LogIndex, Term};

/// Names an entry of a shard for ever: who proposed it, when, and where it stands (openraft's log id).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryId {
    /// The leader's term.
    pub term: Term,
    /// The Raft node id of the leader.
    pub leader_node: u64,
    /// Position in the shard's log.
    pub index: LogIndex,
}

/// An entry of a shard's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WalEntry {
    /// Its identity.
    pub id: EntryId,
    /// Its bytes, opaque here.
    pub payload: EntryBytes,
}

/// An entry's bytes as the list of pieces they arrived in: a head and the bodies of batches, say.
///
/// The pieces are written gathered and cached as they are; nothing joins them on the way to the disk. Equality is
/// that of the joined bytes. Cheap to clone.
#[derive(Clone)]
pub struct EntryBytes(Pieces);

#[derive(Clone)]
enum Pieces {
    One(Bytes),
    Many { pieces: std::sync::Arc<[Bytes]>, len: usize },
}

impl EntryBytes {
    /// From pieces, in order.
    #[must_use]
    pub fn from_pieces(pieces: Vec<Bytes>) -> Self {
        let len = pieces.iter().map(Bytes::len).sum();
        let mut pieces = pieces;
        match (pieces.len(), pieces.pop()) {
            (1, Some(one)) => Self(Pieces::One(one)),
            (_, last) => {
                pieces.extend(last);
                Self(Pieces::Many { pieces: pieces.into(), len })
            }
        }
    }

    /// The pieces, in order.
    #[must_use]
    pub fn pieces(&self) -> &[Bytes] {
        match &self.0 {
            Pieces::One(one) => std::slice::from_ref(one),
            Pieces::Many { pieces, .. } => pieces,
        }
    }

    /// Length of all pieces together, in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        match &self.0 {
            Pieces::One(one) => one.len(),
            Pieces::Many { len, .. } => *len,
        }
    }

    /// Whether there is nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes in one piece: free where they are in one already, else a copy.
    #[must_use]
    pub fn to_bytes(&self) -> Bytes {
        match &self.0 {
            Pieces::One(one) => one.clone(),
            Pieces::Many { pieces, len } => {
                let mut joined = BytesMut::with_capacity(*len);
                for piece in pieces.iter() {
                    joined.extend_from_slice(piece);
                }
                joined.freeze()
            }
        }
    }
}

impl From<Bytes> for EntryBytes {
    fn from(bytes: Bytes) -> Self {
        Self(Pieces::One(bytes))
    }
}

impl Default for EntryBytes {
    fn default() -> Self {
        Bytes::new().into()
    }
}

impl PartialEq for EntryBytes {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len() && self.to_bytes() == other.to_bytes()
    }
}

impl Eq for EntryBytes {}

impl std::fmt::Debug for EntryBytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "EntryBytes({} bytes in {})", self.len(), self.pieces().len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_kept_and_compare_as_one() {
        let pieces = EntryBytes::from_pieces(vec![Bytes::from("he"), Bytes::new(), Bytes::from("ad")]);
        assert_eq!((pieces.len(), pieces.pieces().len()), (4, 3));
        assert_eq!(pieces, Bytes::from("head").into());
        assert_ne!(pieces, Bytes::from("heap").into());
        assert_eq!(EntryBytes::from_pieces(vec![Bytes::from("x")]).pieces().len(), 1);
        assert!(EntryBytes::from_pieces(Vec::new()).is_empty());
    }
}
