//! What a history consists of.
//!
//! A history is a file of lines of JSON: a [`Header`] first, then an [`Event`] per line, in the order in which they were recorded.
//! What somebody is about to do is recorded before it is done, what came of it after; so of two things of which one was over before
//! the other began, the first stands first.
//!
//! ```json
//! {"tidemill_history":1,"name":"chaos","seed":7}
//! {"producer":{"producer":0,"process":"p0","topic":"direct","idempotent":true}}
//! {"send":{"records":[0,17,2],"partition":3}}
//! {"sent":{"records":[0,17,2],"partition":3,"offset":90}}
//! {"poll":{"process":"c1","partition":"direct-3","runs":[[90,0,17,2]]}}
//! ```

use serde::{Deserialize, Serialize};

use crate::ids::{Run, Span, TopicPartition};

/// Version of the format.
pub const HISTORY_VERSION: u32 = 1;

/// A history's first line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// [`HISTORY_VERSION`].
    pub tidemill_history: u32,
    /// What was run.
    pub name: String,
    /// Its seed.
    #[serde(default)]
    pub seed: u64,
}

impl Header {
    /// A header of the present version.
    #[must_use]
    pub fn new(name: &str, seed: u64) -> Self {
        Self { tidemill_history: HISTORY_VERSION, name: name.to_owned(), seed }
    }
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// Something worth knowing, such as a fault that begins. Not checked.
    Note { text: String },
    /// A topic and what holds of it.
    Topic {
        topic: String,
        partitions: u32,
        /// Offsets have no gaps: there are neither transactions, nor filters that drop records.
        #[serde(default, skip_serializing_if = "is_false")]
        dense: bool,
        /// Records may vanish for later ones with the same key.
        #[serde(default, skip_serializing_if = "is_false")]
        compacted: bool,
    },

    /// A producer, before it sends. One that begins anew gets another number.
    Producer {
        producer: u32,
        process: String,
        topic: String,
        /// Its records are stored once, and in each partition in the order in which they were sent.
        idempotent: bool,
    },
    /// Records are about to be sent, for the first time or again.
    Send {
        records: Span,
        /// Where to; none where the broker chooses.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        partition: Option<u32>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        transaction: Option<u64>,
    },
    /// They were acknowledged.
    Sent {
        records: Span,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        partition: Option<u32>,
        /// Where the first lies, and the others behind it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        offset: Option<u64>,
        /// The broker said that it had them already.
        #[serde(default, skip_serializing_if = "is_false")]
        duplicate: bool,
    },
    /// They surely were not stored, nor will be; a filter that left them out counts as that.
    Failed { records: Span },
    /// They may or may not be stored, now or later.
    Unknown { records: Span },

    /// A consumer begins, or begins anew: nothing is expected of where it reads first.
    Consumer {
        process: String,
        /// Records may be left out for it, as a filter does.
        #[serde(default, skip_serializing_if = "is_false")]
        gaps: bool,
        /// It reads committed transactions only.
        #[serde(default, skip_serializing_if = "is_false")]
        committed: bool,
    },
    /// It reads these partitions from now on, where it kept one from where it was.
    Assign { process: String, partitions: Vec<TopicPartition> },
    /// Its group gives it partitions from now on, from where the group is.
    Subscribe { process: String },
    /// It goes on elsewhere: at `next`, or wherever the broker says.
    Seek {
        process: String,
        partition: TopicPartition,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        next: Option<u64>,
    },
    /// It was given records.
    Poll {
        process: String,
        partition: TopicPartition,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        runs: Vec<Run>,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        damaged: Vec<Damaged>,
        /// Where it is now, if that is not behind the last record.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        next: Option<u64>,
    },
    /// It has read to the end: of what was acknowledged up to now, nothing is to come. For a reader of committed records, once no
    /// transaction is open.
    Drained { process: String, partition: TopicPartition },

    /// Where a process was told that a partition's log starts.
    LogStart { process: String, partition: TopicPartition, offset: u64 },

    /// A group's position is about to be committed.
    Commit { group: String, partition: TopicPartition, offset: u64 },
    /// It was.
    Committed { group: String, partition: TopicPartition, offset: u64 },
    /// A group's position as it was read, while nobody's commit began and ended.
    Position { group: String, partition: TopicPartition, offset: Option<u64> },

    /// A transaction, by a number of its own in the history.
    Begin { transaction: u64, producer: u32 },
    /// It is about to be committed, or aborted. Where nobody hears what became of it, nothing follows.
    End { transaction: u64, commit: bool },
    /// It was.
    Ended { transaction: u64, committed: bool },

    /// What a broker's replica is like after things settled; the records follow.
    Replica {
        broker: u32,
        partition: TopicPartition,
        log_start: u64,
        /// Behind its last record.
        end: u64,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        segments: Vec<SealedSegment>,
    },
    /// Records of that replica, in the order of their offsets, in as many events as one likes.
    Stored {
        broker: u32,
        partition: TopicPartition,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        runs: Vec<Run>,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        damaged: Vec<Damaged>,
    },

    /// What a task sent on, in the order of the partition that it lies in. Topics that tasks write to are told of like this, not as
    /// polled or stored: no producer of the history sent there.
    Output { task: String, partition: TopicPartition, offset: u64, value: String },
    /// An entry of a task's state, at the end.
    State { task: String, key: String, value: String },
    /// Where a task stands at the end.
    Task {
        task: String,
        inputs: Vec<TaskInput>,
        /// It has read to the end.
        #[serde(default, skip_serializing_if = "is_false")]
        drained: bool,
    },
}

/// A record that is none of those sent, as far as whoever read it can tell.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Damaged {
    /// Where.
    pub offset: u64,
    /// Which it says it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claims: Option<crate::ids::RecordId>,
    /// What is wrong with it.
    pub what: String,
}

/// A segment that is written to no more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedSegment {
    /// Its first offset.
    pub base: u64,
    /// Behind its last offset.
    pub end: u64,
    /// Of its bytes.
    pub digest: String,
}

/// What a task read of a partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskInput {
    /// The partition.
    pub partition: TopicPartition,
    /// Where it began.
    pub from: u64,
    /// What it reads next.
    pub next: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
const fn is_false(value: &bool) -> bool {
    !*value
}
