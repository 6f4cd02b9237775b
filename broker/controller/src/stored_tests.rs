//! The stored form of brokers and commands, byte for byte.

use std::collections::BTreeMap;

use bytes::Bytes;
use tidemill_protocol::Timestamp;

use crate::brokers::{BrokerRecord, BrokerState};
use crate::changes::{RestoreError, decode_broker, encode_broker};
use crate::cluster::BrokerRegistration;
use crate::command::ControllerCommand as Command;
use crate::settings::{ClusterSettings, SettingsChange};
use crate::state::Controller;
use crate::testing::*;

/// Broker 1 as the first release stores it: format 1, id, starts, one address, software.
const FORMAT_1: &[u8] = b"\x01\x01\x02\x01\x0e127.0.0.1:4000\x0etidemill/0.1.0";

/// Broker 2 in format 2: id, incarnation, directory, starts, addresses, peer addresses, rack, software, features, alive,
/// since when (zigzag), epoch, state, next incarnation.
const FORMAT_2: &[u8] =
    b"\x02\x02\x03\x01\x10\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x00\x14\x05\x01\x03a:1\x01\x03b:2\x01r\x01s\x01\x01\x0e\x09\x01\x04";

fn record_of_format_2() -> BrokerRecord {
    BrokerRecord {
        broker: id(2),
        incarnation: 3,
        directory: Some(directory(20)),
        starts: 5,
        addresses: vec!["a:1".into()],
        peer_addresses: vec!["b:2".into()],
        rack: "r".into(),
        software: "s".into(),
        features: 1,
        alive: true,
        alive_changed_at: Timestamp::new(7),
        epoch: 9,
        state: BrokerState::Draining,
        next_incarnation: 4,
    }
}

fn registration(starts: u64) -> BrokerRegistration {
    BrokerRegistration {
        broker: id(1),
        incarnation: starts,
        addresses: vec!["127.0.0.1:4000".into()],
        software: "tidemill/0.1.0".into(),
    }
}

#[test]
fn a_broker_of_format_1_is_read_and_stored_as_it_was() {
    let record = decode_broker(FORMAT_1).expect("format 1");
    assert_eq!((record.starts, record.incarnation, record.directory), (2, 1, None));
    assert!(record.alive && record.state == BrokerState::Active && record.next_incarnation == 2);
    assert_eq!(record.addresses, ["127.0.0.1:4000"]);
    assert_eq!(encode_broker(&record), FORMAT_1);
}

#[test]
fn entries_of_the_first_release_lead_to_its_bytes() {
    let mut controller = Controller::default();
    apply(&mut controller, Command::InitCluster(identity(2)));
    for starts in 1..=2 {
        apply(&mut controller, Command::RegisterBroker(registration(starts)));
    }
    let before = controller.version();
    apply(&mut controller, Command::RegisterBroker(registration(1)));
    assert_eq!(controller.version(), before, "a late one undoes nothing");
    let changes = controller.take_changes();
    let keys: Vec<&[u8]> = changes.iter().map(|(key, _)| &key[..]).collect();
    assert_eq!(keys, [&[0][..], &[1, 0, 0, 0, 1]], "and to no object that it did not know");
    assert_eq!(changes[1].1.as_deref(), Some(FORMAT_1));
}

#[test]
fn a_broker_of_the_first_release_goes_on_under_this_one() {
    let mut controller = Controller::default();
    apply(&mut controller, Command::InitCluster(identity(2)));
    apply(&mut controller, Command::RegisterBroker(registration(2)));
    twice(&mut controller, Command::Register(start(1, 3)));
    let record = controller.broker(id(1)).expect("registered").clone();
    assert_eq!((record.directory, record.epoch), (Some(directory(1)), 3));
    assert!(controller.shards().all(|shard| shard.replicas == [node(1, 1)]));
    assert_eq!(encode_broker(&record)[0], 2);
    apply(&mut controller, Command::RegisterBroker(registration(4)));
    let after = controller.broker(id(1)).expect("registered");
    assert_eq!((after.starts, after.directory), (4, Some(directory(1))), "what it can't say stays");
    assert!(after.epoch > record.epoch);
}

#[test]
fn a_broker_of_format_2_is_read_and_stored_as_it_was() {
    assert_eq!(decode_broker(FORMAT_2), Ok(record_of_format_2()));
    assert_eq!(encode_broker(&record_of_format_2()), FORMAT_2);
    let newer = decode_broker(&[3, 0]);
    assert_eq!(newer, Err(RestoreError::Format { kind: 1, format: 3 }));
    let longer = [FORMAT_2, b"x"].concat();
    assert!(matches!(decode_broker(&longer), Err(RestoreError::Damaged { kind: 1, .. })));
    let other = (Bytes::from_static(&[5, 0, 1]), Bytes::from_static(&[2, 0]));
    assert!(matches!(Controller::restore([other]), Err(RestoreError::Format { kind: 5, format: 2 })));
}

/// The objects that came with replicas, each as its first format has it.
#[test]
fn shards_tokens_and_settings_are_stored_as_ever() {
    let mut controller = cluster(1, 1);
    apply(&mut controller, token(7, Some(2)));
    let settings = ClusterSettings { snapshot_bytes_per_second: Some(1 << 20), ..ClusterSettings::default() };
    apply(&mut controller, Command::SetSettings(settings));
    let stored: BTreeMap<Bytes, Option<Bytes>> = controller.take_changes().into_iter().collect();
    let value = |key: &[u8]| stored[key].clone().expect("is there");
    // Format; shard; replicas; no observer; version; members: voters, no learner, leader, term, index; used.
    let shard = b"\x01\x01\x01\x81\x80\x80\x80\x10\0\x04\x01\x01\x81\x80\x80\x80\x10\0\x01\x81\x80\x80\x80\x10\x01\0\x01\x01\x01";
    assert_eq!(value(&[5, 0, 1]), &shard[..]);
    // Format; hash; for whom; until when (zigzag); not used.
    let token = [&[1][..], &[7; 32], &[1, 2], b"\x80\x90\xde\xd0\xfa\x62", &[0]].concat();
    assert_eq!(value(&[&[6][..], &[7; 32]].concat()), token);
    // Format; rebuild delay; rate; replicas at most; feature level.
    assert_eq!(value(&[7]), &b"\x01\xe0\xa7\x12\x01\x80\x80\x40\x03\x01"[..]);
    let objects = stored.into_iter().filter_map(|(key, value)| Some((key, value?)));
    assert_eq!(Controller::restore(objects).expect("restores").shards, controller.shards);
}

/// Commands stand in logs: their numbers never change.
#[test]
fn commands_keep_their_numbers() {
    let number = |command: &Command| postcard::to_allocvec(command).expect("encodes")[0];
    assert_eq!(number(&Command::InitCluster(identity(1))), 0);
    assert_eq!(number(&Command::RegisterBroker(registration(1))), 1);
    assert_eq!(number(&Command::AllocateProducerIds { count: 1 }), 6);
    assert_eq!(number(&form(1, 1)), 13);
    assert_eq!(number(&Command::Register(start(1, 1))), 14);
    assert_eq!(number(&down(1)), 15);
    assert_eq!(number(&token(1, None)), 16);
    assert_eq!(number(&Command::Join(request(1, 1, 1))), 17);
    assert_eq!(number(&Command::Drain { broker: id(1) }), 18);
    assert_eq!(number(&Command::Undrain { broker: id(1) }), 19);
    assert_eq!(number(&Command::Remove { broker: id(1) }), 20);
    assert_eq!(number(&Command::RaiseFeatureLevel { level: 1 }), 25);
    let lost = Command::AcceptLoss { survivor: id(1), incarnation: 2, shards: vec![] };
    assert_eq!(number(&lost), 26);
    assert_eq!(number(&Command::AlterSettings(SettingsChange::default())), 27);
}
