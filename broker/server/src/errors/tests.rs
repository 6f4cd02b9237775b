use tidemill_protocol::{Offset, PartitionId, TopicId, TopicPartition};

use super::*;

#[test]
fn records_that_went_while_they_were_read_are_no_failure_of_the_storage() {
    let partition = TopicPartition::new(TopicId::new(uuid::Uuid::from_u128(7)), PartitionId::new(3));
    let (wanted, log_start) = (Offset::new(5), Offset::new(900));
    let gone = read(&FetchError::Gone { partition, wanted, log_start }, "plays-3");
    assert_eq!(gone.error_code(), Some(ErrorCode::OffsetOutOfRange));
    assert!(gone.message.contains("offset 5 of plays-3") && gone.message.contains("900"), "{gone}");
    let deleted = read(&FetchError::Deleted { partition }, "plays-3");
    assert_eq!(deleted.error_code(), Some(ErrorCode::UnknownTopic));
}

#[test]
fn a_damaged_range_may_be_read_again_later() {
    let damage = tidemill_log::segment::Damage {
        file: "shard-01/plays-3/0.log".into(),
        segment: Offset::new(0),
        position: 48..100,
        fault: tidemill_log::segment::FrameFault::FrameCrc,
    };
    let error = read(&FetchError::Read(damage.into()), "plays-3");
    assert_eq!((error.error_code(), error.retriable), (Some(ErrorCode::StorageFailed), true));
    assert!(error.message.contains("plays-3") && error.message.contains("48"), "{error}");
}

#[test]
fn a_replica_that_stopped_is_final_only_where_there_is_no_other() {
    let stopped = |others_vote| {
        let reason = "the write-ahead log failed".into();
        propose(&ProposeError::Stopped { reason, others_vote })
    };
    for (others_vote, retriable) in [(false, false), (true, true)] {
        let error = stopped(others_vote);
        assert_eq!((error.error_code(), error.retriable), (Some(ErrorCode::StorageFailed), retriable));
        assert!(error.message.contains("the write-ahead log failed"), "{error}");
    }
}

#[test]
fn what_a_stopped_replica_cant_show_others_of_its_group_may() {
    let stopped = ReadError::Stopped { reason: "the write-ahead log failed".into() };
    for others_vote in [false, true] {
        let error = barrier(&stopped, others_vote);
        assert_eq!((error.error_code(), error.retriable), (Some(ErrorCode::StorageFailed), others_vote));
        assert!(error.message.contains("the write-ahead log failed"), "{error}");
        let lacking = barrier(&ReadError::NoQuorum, others_vote);
        assert_eq!(lacking.error_code(), Some(ErrorCode::NoQuorum));
    }
}

#[test]
fn who_led_last_is_named_as_people_know_it() {
    let leader = Some(tidemill_protocol::NodeId::new(BrokerId::new(3), 207));
    let errors =
        [propose(&ProposeError::NotLeader { leader }), barrier(&ReadError::NotLeader { leader }, true)];
    for error in errors {
        assert_eq!(error.error_code(), Some(ErrorCode::NotLeader));
        let said = error.message;
        assert!(said.ends_with("broker 3 was heard to lead it last") && !said.contains("207"), "{said}");
    }
    let unknown = propose(&ProposeError::NotLeader { leader: None });
    assert!(unknown.message.ends_with("its leader is not known yet"), "{unknown}");
}

#[test]
fn a_full_log_names_the_stopped_shard_that_keeps_it() {
    let kept = not_admitted(NoRoom::Log, Some((ShardId::new(3), false)));
    assert_eq!((kept.error_code(), kept.retriable), (Some(ErrorCode::StorageFailed), false));
    assert!(not_admitted(NoRoom::Log, Some((ShardId::new(3), true))).retriable, "others lead soon");
    assert!(kept.message.contains("shard 3") && kept.message.contains("restart"), "{kept}");
    let busy = not_admitted(NoRoom::Log, None);
    assert_eq!((busy.error_code(), busy.retriable), (Some(ErrorCode::Overloaded), true));
}

#[test]
fn names_that_nothing_has_are_not_sent_back_whole() {
    let name = "x".repeat(4 << 20);
    for error in [unknown_topic(&name), unknown_deployment(&name), unknown_group(&name)] {
        assert!(error.message.len() < 2 * ECHOED_CHARACTERS_MAX, "{} bytes", error.message.len());
    }
}

#[test]
fn only_the_plugin_says_whether_its_failure_may_pass() {
    for (kind, code, retriable) in [
        (CallFailureKind::Trapped, ErrorCode::PluginTrapped, false),
        (CallFailureKind::Failed { retry: true }, ErrorCode::PluginFailed, true),
        (CallFailureKind::Failed { retry: false }, ErrorCode::PluginFailed, false),
        (CallFailureKind::Broker, ErrorCode::Overloaded, true),
    ] {
        let error = call(&CallFailure { kind, message: "it failed".to_owned() });
        assert_eq!((error.error_code(), error.retriable), (Some(code), retriable));
    }
}

#[test]
fn what_this_broker_cannot_do_is_not_held_against_the_plugin() {
    assert_eq!(plugin_code(PluginProblem::Compile), ErrorCode::CompileFailed);
    let here = Error::new(plugin_code(PluginProblem::Compiler), "no more processes");
    assert_eq!((here.error_code(), here.retriable), (Some(ErrorCode::NotYetAdopted), true));
}

#[test]
fn what_was_not_asked_after_may_be_known_to_others() {
    let unknown = Error::new(ErrorCode::UnknownPlugin, "there is no filter 'redact'");
    let error = not_heard_of(&unknown);
    assert_eq!((error.error_code(), error.retriable), (Some(ErrorCode::NotYetAdopted), true));
    assert!(error.message.contains("there is no filter 'redact'"), "{error}");
}
