//! Where the errors of other rooms become wire errors: the one place, so that codes stay stable. And what more than one handler says.
//! What a handler alone finds wrong with a request has its code there.

use std::fmt::Display;

use tidemill_controller::{ControllerError, ControllerReply, MembershipError, NameError};
use tidemill_coordinator::GroupRefusal;
use tidemill_hosting::{CallFailure, CallFailureKind, ComponentError, OpenError, PluginProblem, UploadError};
use tidemill_net::ReadError as StreamError;
use tidemill_protocol::frame::FrameError;
use tidemill_protocol::messages::{Error, Rejection};
use tidemill_protocol::record_batch::{BatchError, ReshapeError};
use tidemill_protocol::{BrokerId, ErrorCode, ShardId};
use tidemill_raft::{ProposeError, ReadError};
use tidemill_shard::{FetchError, StoreError, UnitError, UnitResult};

use crate::admission::NoRoom;

/// So much of a name that a request brought stands in the answer to it: any name that there may be, and no MiB of another.
pub(crate) const ECHOED_CHARACTERS_MAX: usize = 255;

/// An error as it goes to a client.
pub(crate) type WireError = Error;

pub(crate) fn propose(error: &ProposeError) -> Error {
    let code = match error {
        ProposeError::NotLeader { leader: Some(leader) } => return led_last_by(leader.broker()),
        ProposeError::NotLeader { leader: None } => ErrorCode::NotLeader,
        ProposeError::NoQuorum => ErrorCode::NoQuorum,
        ProposeError::Overloaded => ErrorCode::Overloaded,
        ProposeError::DiskFull { broker } => return disk_full_at(*broker),
        ProposeError::TooLarge { .. } => ErrorCode::BatchTooLarge,
        ProposeError::OutcomeUnknown => ErrorCode::OutcomeUnknown,
        ProposeError::Stopped { others_vote: true, .. } => return gone_elsewhere(error),
        ProposeError::Stopped { others_vote: false, .. } => ErrorCode::StorageFailed,
    };
    Error::new(code, error.to_string())
}

/// A replica stopped, and others of its group go on: whoever comes again is led to them.
fn gone_elsewhere(error: &impl Display) -> Error {
    let message = format!("{error}; another replica takes over the lead: refresh the metadata and try again");
    Error::new(ErrorCode::StorageFailed, message).with_retriable(true)
}

/// A replica that stopped, or was replaced, has nothing more for its readers, while others go on.
pub(crate) fn left_behind(partition: &str) -> Error {
    let message = format!(
        "this broker's replica of {partition} has stopped (`tidemill status` says why), or is elsewhere now: read on at another broker"
    );
    Error::new(ErrorCode::StorageFailed, message).with_retriable(true)
}

/// What was to be proposed found no room. `stopped` is a shard that keeps the log from becoming smaller, and whether others can lead what
/// this broker leads.
pub(crate) fn not_admitted(no_room: NoRoom, stopped: Option<(ShardId, bool)>) -> Error {
    match (no_room, stopped) {
        (NoRoom::Disk, _) => disk_full(),
        (NoRoom::Log, Some((shard, others_vote))) => Error::new(
            ErrorCode::StorageFailed,
            format!(
                "shard {shard} has stopped, and what it left in the write-ahead log takes most of its room (wal.bytes_max): \
                 nothing more fits; restart the broker (`tidemill status` says why the shard stopped)"
            ),
        )
        .with_retriable(others_vote),
        (NoRoom::Log, None) => Error::new(
            ErrorCode::Overloaded,
            "the write-ahead log is at its bound (wal.bytes_max) and waits for checkpoints; try again later",
        ),
    }
}

pub(crate) fn disk_full() -> Error {
    Error::new(
        ErrorCode::DiskFull,
        "the broker's disk is nearly full: produce is refused until retention or an operator frees space",
    )
}

/// Of a broker that keeps a replica of the shard.
pub(crate) fn disk_full_at(broker: BrokerId) -> Error {
    Error::new(
        ErrorCode::DiskFull,
        format!(
            "the disk of broker {broker}, which keeps a replica of the shard, is nearly full: produce is refused until retention or an \
             operator frees space there"
        ),
    )
}

/// A frame that does not read.
pub(crate) fn stream(error: &StreamError) -> Error {
    let code = match error {
        StreamError::Frame(FrameError::TooLarge { .. }) => ErrorCode::FrameTooLarge,
        StreamError::Overloaded => ErrorCode::Overloaded,
        StreamError::TooSlow { .. } => ErrorCode::Deadline,
        _ => ErrorCode::BadFrame,
    };
    Error::new(code, error.to_string())
}

/// This broker does not lead the shard. Whether the one that did still does, or lives, it can't say.
fn led_last_by(broker: BrokerId) -> Error {
    let message = format!("this broker does not lead the shard; broker {broker} was heard to lead it last");
    Error::new(ErrorCode::NotLeader, message)
}

/// This broker does not lead the shard, and can't send on what it was asked for.
pub(crate) fn led_elsewhere(shard: ShardId) -> Error {
    Error::new(ErrorCode::NotLeader, format!("this broker does not lead shard {shard}; refresh the metadata"))
}

/// This broker has no replica of the shard, and may not send on what it was asked for.
pub(crate) fn not_on_this_broker(shard: ShardId) -> Error {
    Error::new(ErrorCode::NotLeader, format!("shard {shard} is not on this broker; refresh the metadata"))
}

/// A replica can't be sure that it shows all. `others_vote`: others of its group can show it where this one has stopped.
pub(crate) fn barrier(error: &ReadError, others_vote: bool) -> Error {
    let code = match error {
        ReadError::NotLeader { leader: Some(leader) } => return led_last_by(leader.broker()),
        ReadError::NotLeader { leader: None } => ErrorCode::NotLeader,
        ReadError::NoQuorum => ErrorCode::NoQuorum,
        ReadError::Stopped { .. } if others_vote => return gone_elsewhere(error),
        ReadError::Stopped { .. } => ErrorCode::StorageFailed,
    };
    Error::new(code, error.to_string())
}

pub(crate) fn batch(error: &BatchError) -> Error {
    Error::new(error.error_code(), error.to_string())
}

pub(crate) fn reshape(error: &ReshapeError) -> Error {
    match error {
        ReshapeError::Batch(error) => batch(error),
        other => Error::new(ErrorCode::Internal, other.to_string()),
    }
}

pub(crate) fn controller(error: &ControllerError) -> Error {
    let code = match error {
        ControllerError::NotInitialised => ErrorCode::NotYetAdopted,
        ControllerError::AlreadyInitialised(_) => ErrorCode::Internal,
        ControllerError::UnknownTopic(_) => ErrorCode::UnknownTopic,
        ControllerError::TopicExists(_) => ErrorCode::TopicExists,
        ControllerError::InvalidTopic { .. } => ErrorCode::InvalidTopic,
        ControllerError::TopicInUse { .. } => ErrorCode::TopicInUse,
        ControllerError::PluginInUse { .. } => ErrorCode::PluginInUse,
        ControllerError::UnknownPlugin(_) => ErrorCode::UnknownPlugin,
        ControllerError::PluginExists { .. } => ErrorCode::PluginExists,
        ControllerError::UnknownDeployment(_) => ErrorCode::UnknownDeployment,
        ControllerError::DeploymentExists { .. } => ErrorCode::DeploymentExists,
        ControllerError::InvalidDeployment { .. } => ErrorCode::InvalidDeployment,
        ControllerError::TooMany { .. } => ErrorCode::Overloaded,
        ControllerError::Membership(error) => membership(error),
    };
    // Both pass by themselves, or when brokers come back.
    let passes = matches!(
        error,
        ControllerError::Membership(MembershipError::StillAlive(_) | MembershipError::JoinLosesQuorum { .. })
    );
    let error = Error::new(code, error.to_string());
    Error { retriable: error.retriable || passes, ..error }
}

const fn membership(error: &MembershipError) -> ErrorCode {
    match error {
        MembershipError::UnknownBroker(_) | MembershipError::RemovedAlready(_) => ErrorCode::UnknownBroker,
        MembershipError::UnknownToken
        | MembershipError::TokenExpired
        | MembershipError::TokenUsed(_)
        | MembershipError::TokenOfAnother { .. }
        | MembershipError::IdInUse(_)
        | MembershipError::StillAlive(_)
        | MembershipError::JoinLosesQuorum { .. } => ErrorCode::JoinRefused,
        MembershipError::NotInvited(_)
        | MembershipError::Removed(_)
        | MembershipError::OldIncarnation { .. }
        | MembershipError::UnknownIncarnation { .. }
        | MembershipError::OtherDirectory(_)
        | MembershipError::FeaturesTooOld { .. }
        | MembershipError::InvalidBroker { .. } => ErrorCode::PeerRefused,
        MembershipError::TokenExists
        | MembershipError::NowhereToGo { .. }
        | MembershipError::QuorumLost { .. }
        | MembershipError::StillServes { .. }
        | MembershipError::LastBroker(_)
        | MembershipError::UnknownShard(_)
        | MembershipError::StaleVersion { .. }
        | MembershipError::InvalidReplicas { .. }
        | MembershipError::UnknownReplica { .. }
        | MembershipError::InvalidSettings(_)
        | MembershipError::InvalidCluster(_)
        | MembershipError::LevelFalls { .. }
        | MembershipError::LevelUnknown { .. } => ErrorCode::ClusterChangeRefused,
    }
}

/// An answer of the controller to another command.
pub(crate) fn another_reply(reply: &ControllerReply) -> Error {
    Error::new(ErrorCode::Internal, format!("the controller answered {reply:?}"))
}

pub(crate) fn group(refusal: &GroupRefusal) -> Error {
    let code = match refusal {
        GroupRefusal::UnknownGroup(_) => ErrorCode::UnknownGroup,
        GroupRefusal::Invalid { .. } => ErrorCode::InvalidGroup,
    };
    Error::new(code, refusal.to_string())
}

/// What a shard refused.
pub(crate) fn unit(result: &UnitResult) -> Error {
    let UnitResult::Refused(error) = result else { return unexpected(result) };
    let code = match error {
        UnitError::NotAdopted(_) => ErrorCode::NotYetAdopted,
        UnitError::TopicDeleted(_) => ErrorCode::UnknownTopic,
        UnitError::UnknownPartition(_) => ErrorCode::UnknownPartition,
        UnitError::WrongLeaderEpoch { .. } => ErrorCode::NotLeader,
        UnitError::OutOfOrderSequence { .. } | UnitError::OutOfOrderTopicSequence { .. } => {
            ErrorCode::OutOfOrderSequence
        }
        UnitError::UnknownProducer(_) => ErrorCode::UnknownProducer,
        UnitError::TooManyProducers { .. } => ErrorCode::Overloaded,
        UnitError::ProducerFenced { .. } => ErrorCode::ProducerFenced,
        UnitError::InvalidBatch(_) => ErrorCode::InvalidBatch,
        UnitError::OtherFilterPass => ErrorCode::PartlyStored,
        UnitError::OffsetOutOfRange { .. } => ErrorCode::OffsetOutOfRange,
        UnitError::OffsetsExhausted(_)
        | UnitError::NotController
        | UnitError::UnknownTask
        | UnitError::WrongDeploymentEpoch { .. }
        | UnitError::UnknownOutboxItem { .. }
        | UnitError::Invalid(_) => ErrorCode::Internal,
    };
    // What comes before it has not come to this shard yet, or never will: whoever sent it knows.
    let is_early = matches!(error, UnitError::OutOfOrderTopicSequence { expected, got } if got > expected);
    Error::new(code, error.to_string()).with_retriable(code.retriable() || is_early)
}

pub(crate) fn unexpected(result: &UnitResult) -> Error {
    Error::new(ErrorCode::Internal, format!("the shard answered something else than was asked: {result:?}"))
}

pub(crate) fn deleted(partition: &str) -> Error {
    Error::new(ErrorCode::UnknownTopic, format!("{partition} is gone: its topic was deleted"))
}

pub(crate) fn read(error: &FetchError, partition: &str) -> Error {
    match error {
        FetchError::Gone { wanted, log_start, .. } => Error::new(
            ErrorCode::OffsetOutOfRange,
            format!(
                "offset {wanted} of {partition} was deleted while it was read: the log starts at {log_start} now; seek there"
            ),
        ),
        FetchError::Deleted { .. } => deleted(partition),
        // The segment is fetched from another replica: the same range may read later, and reads there now.
        FetchError::Read(_) | FetchError::Open(_) => {
            Error::new(ErrorCode::StorageFailed, format!("reading {partition} failed: {error}"))
                .with_retriable(true)
        }
    }
}

pub(crate) fn state(error: &StoreError) -> Error {
    Error::new(ErrorCode::StorageFailed, error.to_string())
}

/// A partitioner's or filter's call that gave no answer.
pub(crate) fn call(failure: &CallFailure) -> Error {
    let retriable = match failure.kind {
        CallFailureKind::Failed { retry } => retry,
        kind => call_code(kind).retriable(),
    };
    Error::new(call_code(failure.kind), failure.message.clone()).with_retriable(retriable)
}

const fn call_code(kind: CallFailureKind) -> ErrorCode {
    match kind {
        CallFailureKind::Trapped => ErrorCode::PluginTrapped,
        CallFailureKind::TimedOut => ErrorCode::PluginTimedOut,
        CallFailureKind::OutOfMemory => ErrorCode::PluginOutOfMemory,
        CallFailureKind::BadAnswer => ErrorCode::PluginBadAnswer,
        CallFailureKind::Failed { .. } => ErrorCode::PluginFailed,
        CallFailureKind::BadBatch => ErrorCode::CorruptBatch,
        CallFailureKind::Broker => ErrorCode::Overloaded,
    }
}

const fn plugin_code(problem: PluginProblem) -> ErrorCode {
    match problem {
        PluginProblem::Missing => ErrorCode::UnknownPlugin,
        PluginProblem::NotAComponent => ErrorCode::InvalidComponent,
        PluginProblem::WrongWorld => ErrorCode::WrongWorld,
        PluginProblem::ForbiddenImport => ErrorCode::ForbiddenImport,
        PluginProblem::TooLarge => ErrorCode::PluginTooLarge,
        PluginProblem::Compile => ErrorCode::CompileFailed,
        // Retriable, and said of this broker.
        PluginProblem::Compiler => ErrorCode::NotYetAdopted,
        PluginProblem::Config => ErrorCode::BadPluginConfig,
        PluginProblem::Call(kind) => call_code(kind),
        PluginProblem::Store => ErrorCode::StorageFailed,
    }
}

/// Records that a plugin refused: the whole batch was refused with them.
pub(crate) fn rejected(rejections: Vec<Rejection>) -> Error {
    let first = rejections.first().cloned().unwrap_or_default();
    let message = format!(
        "a plugin refused {} of the batch's records, and so the batch; the first is record {} of it (counted from 0): {}",
        rejections.len(),
        first.ordinal,
        first.reason
    );
    Error::new(ErrorCode::RecordsRejected, message).with_rejections(rejections)
}

/// A batch whose first attempt the produce filter of that time refused or left out, while today's would pass it.
pub(crate) fn refused_before() -> Error {
    Error::new(
        ErrorCode::RecordsRejected,
        "an earlier attempt of this batch was refused or left out by the topic's produce filter as it was then: nothing \
         of it is stored, and its place among the producer's batches is used; send it as a new batch",
    )
}

/// A routed batch of which some shards have their part, while another refused its own for this reason.
pub(crate) fn partly_stored(error: &Error) -> Error {
    Error::new(
        ErrorCode::PartlyStored,
        format!(
            "some of the batch's records are stored, as the placements say, and the others are not: {}",
            error.message
        ),
    )
    .with_retriable(error.retriable)
}

/// Of a batch that the topic's filter passed once and drops now.
pub(crate) fn left_out_now() -> Error {
    Error::new(ErrorCode::RecordsRejected, "the topic's filter drops the batch by now")
}

/// A message that does not decode, or says what it may not in its place.
pub(crate) fn bad_message(what: &str) -> Error {
    Error::new(ErrorCode::BadMessage, what.to_owned())
}

/// Bytes that should name a topic or a partition of one.
pub(crate) fn not_an_id() -> Error {
    bad_message("a topic id has 16 bytes")
}

/// What can't be the name of a plugin, of a version of it, or of a deployment.
pub(crate) fn invalid_name(error: &NameError) -> Error {
    Error::new(ErrorCode::InvalidName, error.to_string())
}

/// What can't be the name of a topic.
pub(crate) fn invalid_topic_name(error: &NameError) -> Error {
    Error::new(ErrorCode::InvalidTopic, error.to_string())
}

pub(crate) fn unknown_topic(name: &str) -> Error {
    Error::new(
        ErrorCode::UnknownTopic,
        format!("there is no topic '{name:.ECHOED_CHARACTERS_MAX$}'; `tidemill topic list` shows the topics"),
    )
}

pub(crate) fn topic_deleted(name: &str) -> Error {
    Error::new(ErrorCode::UnknownTopic, format!("topic '{name}' was deleted"))
}

pub(crate) fn unknown_deployment(name: &str) -> Error {
    Error::new(
        ErrorCode::UnknownDeployment,
        format!(
            "there is no deployment '{name:.ECHOED_CHARACTERS_MAX$}'; `tidemill deployment list` shows the deployments"
        ),
    )
}

/// Something is not known here, and nobody could be asked whether the controller knows it.
pub(crate) fn not_heard_of(error: &Error) -> Error {
    let message = format!(
        "as far as this broker has heard, {} (the controller can't be asked just now; try again)",
        error.message
    );
    Error::new(ErrorCode::NotYetAdopted, message)
}

pub(crate) fn unknown_group(name: &str) -> Error {
    Error::new(
        ErrorCode::UnknownGroup,
        format!("there is no group '{name:.ECHOED_CHARACTERS_MAX$}'; `tidemill group list` shows the groups"),
    )
}

/// A partition that its shard has not heard of yet.
pub(crate) fn not_ready(partition: impl Display) -> Error {
    Error::new(ErrorCode::NotYetAdopted, format!("partition {partition} is not ready yet; try again"))
}

/// A read whose thread ended before it did.
pub(crate) fn interrupted(what: &str) -> Error {
    Error::new(ErrorCode::Internal, format!("{what} failed; try again"))
}

/// Of whatever comes while the broker stops.
pub(crate) fn stopping() -> Error {
    Error::new(ErrorCode::ShuttingDown, "the broker is shutting down; try another")
}

/// A component is not here, and a broker that may have it could not be asked, or has not sent all of it.
pub(crate) fn component_to_come(error: &OpenError, reason: &str) -> Error {
    let message =
        format!("{error}, unless another broker has it, which is not known yet ({reason}); try again");
    Error::new(ErrorCode::NotYetAdopted, message)
}

pub(crate) fn open_plugin(error: &OpenError) -> Error {
    Error::new(plugin_code(error.problem()), error.to_string())
}

/// A component is not to be had here, where another broker asks for it.
pub(crate) fn component(error: &ComponentError) -> Error {
    let code = match error {
        ComponentError::Absent(_) => ErrorCode::UnknownPlugin,
        ComponentError::Storage(_) => ErrorCode::StorageFailed,
    };
    Error::new(code, format!("the component is not to be had here: {error}"))
}

pub(crate) fn upload(error: &UploadError) -> Error {
    Error::new(plugin_code(error.problem()), error.to_string())
}

/// A registered component came from another broker, and can't be used or kept here.
pub(crate) fn brought(error: &UploadError) -> Error {
    Error::new(plugin_code(error.problem_of_known()), error.to_string())
}

/// A registered component is larger than this broker takes.
pub(crate) fn too_large_here(size: u64, limit: u64) -> Error {
    Error::new(
        ErrorCode::PluginTooLarge,
        format!(
            "the plugin's component has {size} bytes, this broker takes up to {limit} (limits.plugin_bytes_max)"
        ),
    )
}

#[cfg(test)]
mod tests;
