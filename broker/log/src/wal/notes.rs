//! What a new segment repeats, so that older ones can be recycled: each shard's vote, notes, purge point and doubt.
//!
//! The writer keeps this apart from the memory that callers see, because that may be ahead by operations that are
//! still queued: a vote repeated without the `Forget` that is about to follow it, or the other way round, would be a
//! state that never was.

use std::collections::BTreeMap;

use bytes::Bytes;
use tidemill_protocol::ShardId;

use super::block::BLOCK_BYTES;
use super::doubt::Doubt;
use super::entry::{EntryBytes, EntryId};
use super::frame::{FrameHeader, FrameKind, NO_ENTRY};
use super::gather::Gather;
use super::state::State;

/// A frame other than an entry.
#[derive(Debug, Clone)]
pub(super) struct Note {
    pub(super) kind: FrameKind,
    pub(super) shard: ShardId,
    pub(super) id: EntryId,
    pub(super) payload: Bytes,
}

/// All shards' notes as of the last frame written.
#[derive(Debug, Default)]
pub(super) struct Notes {
    shards: BTreeMap<ShardId, ShardNotes>,
}

#[derive(Debug, Default)]
struct ShardNotes {
    vote: Bytes,
    committed: Bytes,
    snapshot_installed: Bytes,
    purged: Option<EntryId>,
    doubt: Option<Doubt>,
}

impl Notes {
    /// The notes that recovery found.
    pub(super) fn of(state: &State) -> Self {
        let notes = state.shards.iter().map(|(shard, log)| {
            let notes = ShardNotes {
                vote: log.vote.clone().unwrap_or_default(),
                committed: log.committed.clone().unwrap_or_default(),
                snapshot_installed: log.snapshot_installed.clone().unwrap_or_default(),
                purged: log.purged,
                doubt: log.doubt.clone(),
            };
            (*shard, notes)
        });
        Self { shards: notes.collect() }
    }

    /// A frame has been written.
    pub(super) fn apply(&mut self, note: Note) {
        let shard = note.shard;
        let notes = self.shards.entry(shard).or_default();
        match note.kind {
            FrameKind::Vote => notes.vote = note.payload,
            FrameKind::Committed => notes.committed = note.payload,
            FrameKind::SnapshotInstalled => notes.snapshot_installed = note.payload,
            FrameKind::Purge if notes.purged.is_none_or(|purged| purged.index < note.id.index) => {
                notes.purged = Some(note.id);
            }
            FrameKind::DoubtAccepted => notes.doubt = None,
            FrameKind::Forget => {
                self.shards.remove(&shard);
            }
            _ => {}
        }
    }

    /// All notes as frames, chained from the salt.
    pub(super) fn preamble(&self, salt: u32) -> Gather {
        let mut gather = Gather::new(BLOCK_BYTES);
        let mut chain = salt;
        let mut repeat = |shard: ShardId, kind, id: EntryId, payload: Bytes| {
            let payload = EntryBytes::from(payload);
            let header = FrameHeader {
                payload_bytes: u32::try_from(payload.len()).unwrap_or(u32::MAX),
                kind,
                shard,
                id,
                previous_crc: chain,
            };
            (_, chain) = gather.frame(&header, payload.pieces().iter().map(|piece| &**piece));
        };
        for (shard, notes) in &self.shards {
            let texts = [
                (FrameKind::Vote, &notes.vote),
                (FrameKind::Committed, &notes.committed),
                (FrameKind::SnapshotInstalled, &notes.snapshot_installed),
            ];
            for (kind, text) in texts.into_iter().filter(|(_, text)| !text.is_empty()) {
                repeat(*shard, kind, NO_ENTRY, text.clone());
            }
            if let Some(purged) = notes.purged {
                repeat(*shard, FrameKind::Purge, purged, Bytes::new());
            }
            if let Some(doubt) = &notes.doubt {
                repeat(*shard, FrameKind::Doubtful, doubt.sure_to.unwrap_or(NO_ENTRY), doubt.encode());
            }
        }
        gather
    }
}
