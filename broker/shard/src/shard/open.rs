//! Starting from the last checkpoint: the state file is the truth, segments are cut back to it, the log brings the rest.

use std::collections::HashMap;
use std::io;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};

use parking_lot::{Mutex, RwLock};
use tidemill_log::fs::{DirEntry, Storage};
use tidemill_log::segment::{OpenError, PartitionEnds, SegmentFiles};
use tidemill_partition::Partition;
use tidemill_protocol::{LeaderEpoch, ShardId, TopicPartition};

use super::checkpoint::Recorded;
use super::marked::Marked;
use super::poison::Poison;
use super::repair::REPAIR_DIR;
use super::write_behind::{Moving, WriteBehind, Writer};
use super::{Inner, Shard, ShardConfig};
use crate::keys::{key, space};
use crate::partition_log::{LogFiles, PartitionLog, PartitionView, directory_name};
use crate::snapshot::complete_install;
use crate::state::{Object, ReadStateError, SegmentEnds, State, read_all};
use crate::store::{StateFile, StoreError};
use crate::watched::Watched;

/// Name of the state file in the shard's directory.
pub(crate) const STATE_FILE: &str = "state";

/// What is left to do where nobody else has the shard.
const RESTORE: &str = "; restore the data directory from a copy";

/// Why a shard can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum ShardOpenError {
    /// The storage refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// Where, relative to the storage's root.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// The state file can't be read or made.
    #[error("{}: {source}{}", path.display(), advice(source))]
    Store {
        /// The file, relative to the storage's root.
        path: PathBuf,
        /// What is wrong.
        source: StoreError,
    },
    /// What is stored does not decode, or contradicts itself.
    #[error("{}: {reason}{}", path.display(), RESTORE)]
    Damaged {
        /// The file, relative to the storage's root.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The state file is another shard's.
    #[error("{}: it belongs to shard {found}, not to shard {expected}; put each shard's directory in its place", path.display())]
    OtherShard {
        /// The file, relative to the storage's root.
        path: PathBuf,
        /// Whose it is.
        found: ShardId,
        /// Whose it should be.
        expected: ShardId,
    },
    /// A partition's files are not what was recorded.
    #[error(transparent)]
    Segments(#[from] OpenError),
}

fn advice(error: &StoreError) -> &'static str {
    if error.is_damage() { RESTORE } else { "" }
}

impl ShardOpenError {
    /// Whether what is stored is not what was written, so that it will never open again. Otherwise the storage refused, or something lies
    /// in the wrong place, and all of it may be whole.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Io { .. } | Self::OtherShard { .. } => false,
            Self::Store { source, .. } => source.is_damage(),
            Self::Damaged { .. } => true,
            Self::Segments(source) => source.is_damage(),
        }
    }
}

impl Shard {
    /// Opens the shard as its last checkpoint left it, or a new one. Reads the state file, looks at the segment files'
    /// lengths, and reads no records. The caller then applies the entries after [`Self::applied`]. Blocking.
    ///
    /// # Errors
    /// See [`ShardOpenError`]. Nothing is changed but what a crash left half-done.
    pub fn open(config: ShardConfig, files: &Arc<SegmentFiles>) -> Result<Self, ShardOpenError> {
        let storage = files.storage();
        let dir = config.dir.clone();
        let io_error = |source| ShardOpenError::Io { path: dir.clone(), source };
        storage.create_dir_all(&dir).map_err(io_error)?;
        storage.sync_dir(dir.parent().unwrap_or(Path::new(""))).map_err(io_error)?;
        complete_install(&**storage, &dir).map_err(io_error)?;
        let path = dir.join(STATE_FILE);
        let store_error = |source| ShardOpenError::Store { path: path.clone(), source };
        // A new state file says whose it is before anything else.
        let header = crate::state::ShardHeader::new(config.shard);
        let store = StateFile::open_whole(&**storage, &path, config.state_cache_bytes, |put| {
            put(&key(space::SHARD, &()), Some(&header.encode()))
        })
        .map_err(store_error)?;
        let damaged = |reason: String| ShardOpenError::Damaged { path: path.clone(), reason };
        // As when it is opened: what was altered behind its back may make redb panic.
        let read = std::panic::catch_unwind(AssertUnwindSafe(|| read_state(config.shard, &store)));
        let read = read.map_err(|_| damaged("what it holds can't be read".to_owned()))?;
        let (state, ends) = read.map_err(|error| match error {
            ReadStateError::Store(source) => store_error(source),
            ReadStateError::Object(error) => damaged(error.to_string()),
            ReadStateError::OtherShard { found, expected } => {
                ShardOpenError::OtherShard { path: path.clone(), found, expected }
            }
        })?;
        storage.remove_dir_all(&dir.join(REPAIR_DIR)).map_err(io_error)?;
        let log_files = LogFiles {
            files: Arc::clone(files),
            dir: dir.clone(),
            config: config.segment,
            suspects: Arc::default(),
        };
        let logs = open_logs(&state, ends, &log_files).map_err(|error| match error {
            LogsError::Open(error) => error.into(),
            LogsError::Contradiction(reason) => damaged(reason),
        })?;
        remove_strangers(&**storage, &dir, &logs).map_err(io_error)?;
        let recorded = Recorded::new(state.header.applied());
        let inner = Arc::new(Inner {
            files: Arc::clone(files),
            log_files,
            store,
            state: RwLock::new(state),
            logs: RwLock::new(logs),
            deleted_logs: Mutex::default(),
            write_behind: WriteBehind::default(),
            lets_go: AtomicBool::new(false),
            writer: Mutex::new(Writer::default()),
            recorded: Mutex::new(recorded),
            marked: Mutex::new(Marked::default()),
            bytes_since_checkpoint: AtomicU64::new(0),
            changes: Watched::new(0),
            outbox_turn: AtomicU64::new(0),
            poison: Poison::default(),
            config,
        });
        let moving = Moving::start(Arc::clone(&inner)).map_err(io_error)?;
        Ok(Self { inner, moving: Arc::new(moving) })
    }
}

fn read_state(shard: ShardId, store: &StateFile) -> Result<(State, SegmentEnds), ReadStateError> {
    let base = store.rows()?.ok_or_else(StoreError::no_table)?;
    read_all(shard, &base)
}

enum LogsError {
    Open(OpenError),
    Contradiction(String),
}

fn open_logs(
    state: &State,
    mut ends: SegmentEnds,
    files: &LogFiles,
) -> Result<HashMap<TopicPartition, Arc<PartitionLog>>, LogsError> {
    let mut logs = HashMap::new();
    for (id, partition) in state.partitions.iter() {
        let ends = ends.remove(id).unwrap_or_default();
        check_agreement(*id, partition, &ends).map_err(LogsError::Contradiction)?;
        let Some(topic) = state.topics.get(&id.topic) else {
            return Err(LogsError::Contradiction(format!("partition {id} has no topic")));
        };
        let header = partition.header();
        let view = PartitionView {
            log_start: header.log_start,
            last_stable: header.log_end,
            high_watermark: header.log_end,
            leader_epoch: header.epochs.last().map_or(LeaderEpoch::new(-1), |last| last.epoch),
            bytes: partition.bytes(),
            segments: header.segments.len(),
            config: topic.config,
        };
        let log = PartitionLog::new(*id, files.clone(), view, ends);
        log.store().map_err(LogsError::Open)?;
        logs.insert(*id, log);
    }
    match ends.into_keys().next() {
        Some(id) => Err(LogsError::Contradiction(format!(
            "segments of partition {id} are recorded, the partition is not"
        ))),
        None => Ok(logs),
    }
}

/// The replicated state and the recorded files were written by one commit: they must tell the same.
fn check_agreement(id: TopicPartition, partition: &Partition, ends: &PartitionEnds) -> Result<(), String> {
    let header = partition.header();
    let same_bases =
        header.segments.iter().map(|s| s.base).eq(ends.segments.iter().map(|end| end.base_offset));
    let same_end = ends.next_offset().is_none_or(|next| next == header.log_end);
    if same_bases && same_end {
        Ok(())
    } else {
        Err(format!("partition {id} and its recorded segments do not agree"))
    }
}

/// Removes partition directories that the checkpoint does not name: of partitions that were made after it, which the
/// log will make again, or whose deletion was cut short.
fn remove_strangers(
    storage: &dyn Storage,
    dir: &Path,
    logs: &HashMap<TopicPartition, Arc<PartitionLog>>,
) -> io::Result<()> {
    let known: std::collections::HashSet<String> = logs.keys().map(|id| directory_name(*id)).collect();
    let stranger = |entry: &DirEntry| {
        entry.is_dir && !known.contains(&entry.name) && is_partition_directory(&entry.name)
    };
    let strangers: Vec<_> = storage.list(dir)?.into_iter().filter(stranger).collect();
    for entry in &strangers {
        tracing::info!(
            directory = entry.name,
            "removing files of a partition that the checkpoint does not name"
        );
        storage.remove_dir_all(&dir.join(&entry.name))?;
    }
    // The log may make the directory again: its removal must not be what a crash remembers last.
    if strangers.is_empty() { Ok(()) } else { storage.sync_dir(dir) }
}

fn is_partition_directory(name: &str) -> bool {
    let Some((topic, partition)) = name.rsplit_once('-') else { return false };
    uuid::Uuid::try_parse(topic).is_ok() && partition.parse::<u32>().is_ok()
}
