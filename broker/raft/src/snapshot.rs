//! A checkpoint as a Raft snapshot.

use std::fmt;
use std::io;
use std::sync::Arc;

use tidemill_log::segment::SegmentFiles;
use tidemill_shard::{Shard, ShardConfig, SnapshotInstall};

use crate::types::{LogId, log_id};

/// How much of a segment is copied at once.
const COPY_BYTES: usize = 1 << 20;

/// Where a shard lives on this broker: what it takes to open it again on an installed snapshot.
#[derive(Clone)]
pub struct ShardHome {
    /// How the shard was opened.
    pub config: ShardConfig,
    /// On which files.
    pub files: Arc<SegmentFiles>,
}

impl fmt::Debug for ShardHome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShardHome").field("config", &self.config).finish_non_exhaustive()
    }
}

/// What openraft hands around as a snapshot: the source's latest checkpoint, pinned only when somebody fetches it.
///
/// openraft asks for the current snapshot at every start and after every checkpoint, only to read its position; to pin
/// it each time would read all of the state.
pub(crate) struct Snapshot {
    source: Shard,
    last: Option<LogId>,
}

impl Snapshot {
    pub(crate) fn new(source: Shard, last: Option<LogId>) -> Self {
        Self { source, last }
    }

    /// Fetches the parts that are missing at `home` and puts the snapshot in the place of its shard, which must be
    /// closed; blocks.
    pub(crate) fn install(&self, home: &ShardHome) -> io::Result<()> {
        let pinned = self.source.snapshot().map_err(io::Error::other)?;
        if Some(log_id(&pinned.manifest().applied())) != self.last {
            return Err(io::Error::other(
                "the source made a newer checkpoint meanwhile; ask for the snapshot again",
            ));
        }
        let manifest = pinned.manifest().clone();
        let segments = manifest.segments.clone();
        let mut install =
            SnapshotInstall::begin(&home.files, &home.config, manifest).map_err(io::Error::other)?;
        for number in install.missing_chunks().collect::<Vec<_>>() {
            let chunk = pinned.chunk(number).map_err(io::Error::other)?;
            install.put_chunk(number, chunk).map_err(io::Error::other)?;
        }
        let mut buffer = vec![0; COPY_BYTES];
        for number in install.missing_segments().collect::<Vec<_>>() {
            let segment =
                segments.get(number).ok_or_else(|| io::Error::other("the manifest lacks a segment"))?;
            let mut position = install.received(number).map_err(io::Error::other)?;
            loop {
                let read = pinned
                    .read_segment(segment.partition, segment.end.base_offset, position, &mut buffer)
                    .map_err(io::Error::other)?;
                if read == 0 {
                    break;
                }
                install.put_segment(number, position, &buffer[..read]).map_err(io::Error::other)?;
                position += read as u64;
            }
            install.finish_segment(number).map_err(io::Error::other)?;
        }
        install.finish().map_err(io::Error::other)
    }
}
