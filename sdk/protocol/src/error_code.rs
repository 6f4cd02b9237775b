//! The stable codes that say what went wrong, and what the sender of a request may do about it.

use std::fmt;

macro_rules! error_codes {
    ($($(#[doc = $doc:literal])+ $name:ident = $code:literal, $wire:literal, $retry:ident;)+) => {
        /// What went wrong, as a number that never changes its meaning.
        ///
        /// The hundreds say where: 1 the protocol, 2 batches, 3 topics and offsets, 4 groups, 5 plugins and
        /// deployments, 6 the broker, 7 rights. `docs/errors.md` says for each what to do.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u32)]
        #[non_exhaustive]
        pub enum ErrorCode {
            $($(#[doc = $doc])+ $name = $code,)+
        }

        impl ErrorCode {
            /// Every code, in rising order.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// The code with this number; `None` for one that this release does not know.
            #[must_use]
            pub const fn from_code(code: u32) -> Option<Self> {
                match code {
                    $($code => Some(Self::$name),)+
                    _ => None,
                }
            }

            /// The name as documentation, logs and `--json` write it, such as `NOT_LEADER`.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $wire,)+
                }
            }

            /// What the code means, in a sentence.
            #[must_use]
            pub const fn doc(self) -> &'static str {
                match self {
                    $(Self::$name => concat!($($doc, " "),+).trim_ascii(),)+
                }
            }

            /// Whether the same request may succeed later without anybody changing it.
            #[must_use]
            pub const fn retriable(self) -> bool {
                match self {
                    $(Self::$name => error_codes!(@$retry),)+
                }
            }
        }
    };
    (@retry) => { true };
    (@fatal) => { false };
}

error_codes! {
    /// A frame is malformed: a length that lies, or the stream ended inside it.
    BadFrame = 100, "BAD_FRAME", fatal;
    /// A message could not be decoded, or a field of it is missing or out of range.
    BadMessage = 101, "BAD_MESSAGE", fatal;
    /// Client and broker share no protocol version.
    UnsupportedVersion = 102, "UNSUPPORTED_VERSION", fatal;
    /// A frame is longer than the broker's limit.
    FrameTooLarge = 103, "FRAME_TOO_LARGE", fatal;
    /// A stream was opened out of turn, or of a kind that does not exist.
    UnexpectedStream = 104, "UNEXPECTED_STREAM", fatal;
    /// The connection has as many streams open as it may.
    TooManyStreams = 105, "TOO_MANY_STREAMS", retry;

    /// The checksum or a length of a record batch is wrong.
    CorruptBatch = 200, "CORRUPT_BATCH", fatal;
    /// A record batch is larger than the topic allows.
    BatchTooLarge = 201, "BATCH_TOO_LARGE", fatal;
    /// A single record is larger than the broker allows.
    RecordTooLarge = 202, "RECORD_TOO_LARGE", fatal;
    /// A record batch is intact but says what it may not: counts, offsets, timestamps or attributes.
    InvalidBatch = 203, "INVALID_BATCH", fatal;
    /// A record batch is compressed in a way that the broker does not know.
    UnsupportedCompression = 204, "UNSUPPORTED_COMPRESSION", fatal;
    /// A producer's sequence leaves a gap, or is older than what is remembered of it.
    OutOfOrderSequence = 210, "OUT_OF_ORDER_SEQUENCE", fatal;
    /// The partition remembers nothing of this producer: it must begin anew with sequence 0.
    UnknownProducer = 211, "UNKNOWN_PRODUCER", fatal;
    /// A newer instance of the same producer has taken over.
    ProducerFenced = 212, "PRODUCER_FENCED", fatal;
    /// A newer stream of the same producer to the same place has taken over from this one.
    StaleGeneration = 213, "STALE_GENERATION", fatal;
    /// A plugin refused records of the batch; nothing of it was appended.
    RecordsRejected = 220, "RECORDS_REJECTED", fatal;
    /// The partitioner, produce filter or partition count of the first attempt is gone: it can no longer be repeated.
    PartitionerChanged = 221, "PARTITIONER_CHANGED", fatal;
    /// A routed batch is stored in some of the topic's shards, and another has refused its part.
    PartlyStored = 222, "PARTLY_STORED", fatal;

    /// No topic has this name or id.
    UnknownTopic = 300, "UNKNOWN_TOPIC", fatal;
    /// The topic has no partition of this number.
    UnknownPartition = 301, "UNKNOWN_PARTITION", fatal;
    /// A topic of this name exists already.
    TopicExists = 302, "TOPIC_EXISTS", fatal;
    /// The topic's name, partition count or configuration is not allowed.
    InvalidTopic = 303, "INVALID_TOPIC", fatal;
    /// A deployment uses the topic.
    TopicInUse = 304, "TOPIC_IN_USE", fatal;
    /// This broker does not lead the partition (any more): refresh the metadata.
    NotLeader = 310, "NOT_LEADER", retry;
    /// The offset lies before the log's start or after its end.
    OffsetOutOfRange = 320, "OFFSET_OUT_OF_RANGE", fatal;
    /// The partition's shard has not yet heard of what the controller decided.
    NotYetAdopted = 330, "NOT_YET_ADOPTED", retry;

    /// No consumer group has this name.
    UnknownGroup = 400, "UNKNOWN_GROUP", fatal;
    /// The consumer group's name or what is committed for it is not allowed.
    InvalidGroup = 401, "INVALID_GROUP", fatal;

    /// No plugin has this name and version.
    UnknownPlugin = 500, "UNKNOWN_PLUGIN", fatal;
    /// The uploaded bytes are no valid WebAssembly component.
    InvalidComponent = 501, "INVALID_COMPONENT", fatal;
    /// The component implements another world than the one asked for, or none of Tidemill's.
    WrongWorld = 502, "WRONG_WORLD", fatal;
    /// The component imports something that plugins may not have.
    ForbiddenImport = 503, "FORBIDDEN_IMPORT", fatal;
    /// The component could not be compiled within its limits.
    CompileFailed = 504, "COMPILE_FAILED", fatal;
    /// The component is larger than the broker allows.
    PluginTooLarge = 505, "PLUGIN_TOO_LARGE", fatal;
    /// This version of the plugin exists already with other bytes.
    PluginExists = 506, "PLUGIN_EXISTS", fatal;
    /// A deployment uses this version of the plugin.
    PluginInUse = 507, "PLUGIN_IN_USE", fatal;
    /// The plugin refused its configuration.
    BadPluginConfig = 508, "BAD_PLUGIN_CONFIG", fatal;
    /// The uploaded bytes have another digest than was announced.
    DigestMismatch = 509, "DIGEST_MISMATCH", fatal;
    /// The name of a plugin, of its version or of a deployment is not allowed.
    InvalidName = 510, "INVALID_NAME", fatal;
    /// No deployment has this name.
    UnknownDeployment = 520, "UNKNOWN_DEPLOYMENT", fatal;
    /// Another deployment of this name exists already.
    DeploymentExists = 521, "DEPLOYMENT_EXISTS", fatal;
    /// The deployment's settings contradict each other or its plugin.
    InvalidDeployment = 522, "INVALID_DEPLOYMENT", fatal;
    /// The plugin trapped.
    PluginTrapped = 530, "PLUGIN_TRAPPED", fatal;
    /// The plugin used up its time.
    PluginTimedOut = 531, "PLUGIN_TIMED_OUT", fatal;
    /// The plugin wanted more memory than its deployment may have.
    PluginOutOfMemory = 532, "PLUGIN_OUT_OF_MEMORY", fatal;
    /// The plugin's answer breaks its contract.
    PluginBadAnswer = 533, "PLUGIN_BAD_ANSWER", fatal;
    /// The plugin answered that the call failed.
    PluginFailed = 534, "PLUGIN_FAILED", fatal;

    /// The request's deadline passed.
    Deadline = 600, "DEADLINE", retry;
    /// The broker has more work than it can take on now.
    Overloaded = 601, "OVERLOADED", retry;
    /// The broker is stopping.
    ShuttingDown = 602, "SHUTTING_DOWN", retry;
    /// The broker's storage failed: the shard has stopped and an operator must look at it.
    StorageFailed = 610, "STORAGE_FAILED", fatal;
    /// The broker's disk is nearly full.
    DiskFull = 611, "DISK_FULL", retry;
    /// The request may or may not have taken effect; an idempotent one can be repeated.
    OutcomeUnknown = 620, "OUTCOME_UNKNOWN", retry;
    /// A majority of the shard's replicas can't be reached: nothing can be written or confirmed until enough are back.
    NoQuorum = 630, "NO_QUORUM", retry;
    /// The cluster has no broker of this number.
    UnknownBroker = 640, "UNKNOWN_BROKER", fatal;
    /// A change of the cluster's brokers or settings that would lose data, a quorum, or makes no sense.
    ClusterChangeRefused = 641, "CLUSTER_CHANGE_REFUSED", fatal;
    /// A broker may not join: its token is unknown, expired, used, or another broker's.
    JoinRefused = 642, "JOIN_REFUSED", fatal;
    /// Between brokers: the other side is of another cluster, of an older life, removed, or speaks another version.
    PeerRefused = 650, "PEER_REFUSED", fatal;
    /// The broker is at fault: a defect.
    Internal = 690, "INTERNAL", fatal;

    // 701 is kept for what somebody may not do: there are no rules for that yet.
    /// The broker does not know who this is.
    Unauthenticated = 700, "UNAUTHENTICATED", fatal;
}

impl ErrorCode {
    /// The number on the wire.
    #[must_use]
    pub const fn code(self) -> u32 {
        self as u32
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_found_by_its_number() {
        for code in ErrorCode::ALL {
            assert_eq!(ErrorCode::from_code(code.code()), Some(*code));
            assert!(!code.doc().is_empty());
        }
        assert_eq!(ErrorCode::from_code(0), None);
        assert_eq!(ErrorCode::from_code(u32::MAX), None);
    }

    #[test]
    fn numbers_and_names_are_distinct_and_rise() {
        assert!(ErrorCode::ALL.is_sorted_by(|a, b| a.code() < b.code()));
        let mut names: Vec<_> = ErrorCode::ALL.iter().map(|code| code.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ErrorCode::ALL.len());
    }

    /// A change here is a change of the protocol.
    #[test]
    fn numbers_stay_what_they_are() {
        for (code, number) in [
            (ErrorCode::BadFrame, 100),
            (ErrorCode::CorruptBatch, 200),
            (ErrorCode::PartitionerChanged, 221),
            (ErrorCode::NotLeader, 310),
            (ErrorCode::UnknownGroup, 400),
            (ErrorCode::PluginFailed, 534),
            (ErrorCode::OutcomeUnknown, 620),
            (ErrorCode::Unauthenticated, 700),
        ] {
            assert_eq!(code.code(), number, "{code}");
        }
    }
}
