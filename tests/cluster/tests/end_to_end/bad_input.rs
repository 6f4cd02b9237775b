//! Whatever comes in on the port: whoever caused it hears a stable code, it is counted, and nobody else notices.

use std::net::UdpSocket;

use tidemill_client::messages::{
    Acks, ProduceOpen, ProduceOpened, Reply, Request, RoutedOpen, RoutedOpened, SubscribeOpened, TopicConfig,
    TopicPartitionRef, UploadPluginRequest, request, stream_open,
};
use tidemill_client::{ErrorCode, NewTopic};
use tidemill_cluster_tests::fixtures::Random;
use tidemill_cluster_tests::reading::{count, read_all};
use tidemill_cluster_tests::{BrokerOptions, Outcome};

use crate::bystander::Bystander;
use crate::kit::{batch_of, broker, broker_with, code, create, metric, partition_of};
use crate::raw::{ALPN, RawPeer, frame, frame_of, hello, opening};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_datagrams_are_ignored() -> Outcome<()> {
    let (broker, _client) = broker().await?;
    let mut bystander = Bystander::beside(&broker).await?;
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.connect(broker.address())?;
    let mut random = Random::new(1);
    for number in 0..3_000 {
        let mut bytes = vec![0; 1 + random.below(1_400) as usize];
        random.fill(&mut bytes);
        // A third look like the beginning of a connection, a third like one that goes on.
        match number % 3 {
            0 => bytes[0] = 0xc3,
            1 => bytes[0] = 0x43,
            _ => {}
        }
        let _ = socket.send(&bytes);
        if number % 500 == 0 {
            bystander.goes_on().await?;
        }
    }
    bystander.was_undisturbed().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_begins_wrong_is_closed_with_a_code() -> Outcome<()> {
    let (broker, client) = broker().await?;
    let bystander = Bystander::beside(&broker).await?;
    assert!(RawPeer::connect(&broker, b"h3").await.is_err(), "another protocol is refused in the handshake");
    let mut random = Random::new(2);
    let mut noise = vec![0; 500];
    random.fill(&mut noise);
    let metadata = request::Body::Metadata(Default::default());
    let early = opening(stream_open::Kind::Request(Request { deadline_ms: 0, body: Some(metadata) }));
    for (what, bytes, expected) in [
        ("a length of 4 GiB", vec![0xff; 64], ErrorCode::FrameTooLarge),
        ("a length that is too short", vec![0, 0, 0, 2, 0, 0], ErrorCode::BadFrame),
        (
            "a header beyond its frame",
            [&[0, 0, 0, 8][..], &[0, 0, 0, 5], &[0; 4]].concat(),
            ErrorCode::BadFrame,
        ),
        ("a header that is no message", frame_of(&noise, b""), ErrorCode::BadMessage),
        ("an empty header", frame_of(b"", b""), ErrorCode::BadMessage),
        ("a request before the hello", frame(&early, b""), ErrorCode::UnexpectedStream),
        ("a version to come", frame(&hello(7, 9), b""), ErrorCode::UnsupportedVersion),
    ] {
        let peer = RawPeer::connect(&broker, ALPN).await?;
        let stream = peer.open(&bytes).await?;
        assert_eq!(peer.close_code().await?, expected, "{what}");
        drop(stream);
    }
    let peer = RawPeer::connect(&broker, ALPN).await?;
    let mut cut = peer.open(&frame(&hello(1, 1), b"")[..7]).await?;
    cut.send.finish()?;
    assert_eq!(peer.close_code().await?, ErrorCode::BadFrame, "a hello that is cut off");
    assert!(metric(&client, "tidemill_refused_hellos_total").await? >= 8.0);
    bystander.was_undisturbed().await
}

/// The stream suffers; the connection it came on and others go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_stream_is_reset_and_its_connection_goes_on() -> Outcome<()> {
    let (broker, client) = broker().await?;
    create(&client, "t", 1).await?;
    let partition = partition_of(&client, "t", 0).await?;
    let bystander = Bystander::beside(&broker).await?;
    let (peer, _control) = RawPeer::greeted(&broker).await?;
    let before = metric(&client, "tidemill_bad_frames_total").await?;
    for (what, bytes, expected) in [
        ("a length of 4 GiB", vec![0xff; 16], ErrorCode::FrameTooLarge),
        ("a length that is too short", vec![0, 0, 0, 1, 9], ErrorCode::BadFrame),
        ("a header that is no message", frame_of(&[0xff; 30], b""), ErrorCode::BadMessage),
        ("a kind that does not exist", frame_of(&[0x7a, 0x00], b""), ErrorCode::BadMessage),
        ("a second hello", frame(&hello(1, 1), b""), ErrorCode::UnexpectedStream),
    ] {
        assert_eq!(peer.open(&bytes).await?.reset_code().await?, expected, "{what}");
    }
    let mut cut = peer.open(&frame(&hello(1, 1), b"")[..9]).await?;
    cut.send.finish()?;
    assert_eq!(cut.reset_code().await?, ErrorCode::BadFrame, "a first frame that is cut off");

    // In a stream that began well.
    let batch = batch_of(&["a record"]);
    let mut stream = peer.producing(partition).await?;
    assert_eq!(stream.produce(0, batch.bytes()).await?.base_offset, 0);
    stream.send.write_all(&frame(&produce_batch(1), batch.bytes())[..40]).await?;
    stream.send.finish()?;
    assert_eq!(stream.reset_code().await?, ErrorCode::BadFrame, "a batch that is cut off");
    let mut stream = peer.producing(partition).await?;
    stream.send.write_all(&[0xff; 8]).await?;
    assert_eq!(stream.reset_code().await?, ErrorCode::FrameTooLarge, "a length that lies");
    let mut stream = peer.producing(partition).await?;
    stream.send.write_all(&frame(&produce_batch(5), batch.bytes())).await?;
    assert_eq!(stream.reset_code().await?, ErrorCode::BadMessage, "request ids begin at 0");
    let mut stream = peer.producing(partition).await?;
    stream.send.write_all(&frame_of(&[0xff; 3], batch.bytes())).await?;
    assert_eq!(stream.reset_code().await?, ErrorCode::BadMessage, "a header that is no message");

    let subscribe = opening(stream_open::Kind::Subscribe(Default::default()));
    for (what, bytes, expected) in [
        ("a length that lies", vec![0xff; 8], ErrorCode::FrameTooLarge),
        ("a control that is no message", frame_of(&[0xff; 3], b""), ErrorCode::BadMessage),
    ] {
        let mut stream = peer.open(&frame(&subscribe, b"")).await?;
        let opened: SubscribeOpened = stream.message().await?;
        assert!(opened.error.is_none(), "{opened:?}");
        stream.send.write_all(&bytes).await?;
        assert_eq!(stream.reset_code().await?, expected, "{what}");
    }
    // Where nobody waits for an acknowledgement, a reset is what tells of a refusal.
    let open = ProduceOpen {
        partition: Some(partition.into()),
        leader_epoch: -1,
        producer_id: -1,
        producer_epoch: -1,
        acks: Acks::None.into(),
        ..ProduceOpen::default()
    };
    let mut stream = peer.open(&frame(&opening(stream_open::Kind::Produce(open)), b"")).await?;
    let _: ProduceOpened = stream.message().await?;
    stream.send.write_all(&frame(&produce_batch(0), &batch.bytes()[..70])).await?;
    assert_eq!(stream.reset_code().await?, ErrorCode::CorruptBatch, "a batch that is refused");

    assert!(metric(&client, "tidemill_bad_frames_total").await? >= before + 6.0);
    assert_eq!(
        peer.producing(partition).await?.produce(0, batch.bytes()).await?.base_offset,
        1,
        "the connection goes on"
    );
    assert_eq!(count(&read_all(&client, "t").await?), 2, "nothing of what was cut off is there");
    bystander.was_undisturbed().await
}

fn produce_batch(request_id: u64) -> tidemill_client::messages::ProduceBatch {
    tidemill_client::messages::ProduceBatch { request_id }
}

/// Each bad batch is answered with its code, and the good one behind it on the same stream is stored.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_batch_is_refused_and_the_next_is_stored() -> Outcome<()> {
    let options = BrokerOptions::default().set("limits.record_bytes_max", 50_000);
    let (broker, client) = broker_with(options).await?;
    let config = TopicConfig { batch_bytes_max: Some(100_000), ..TopicConfig::default() };
    client.topics().create(NewTopic::new("t", 1).config(config)).await?;
    let partition = partition_of(&client, "t", 0).await?;
    let bystander = Bystander::beside(&broker).await?;
    let (peer, _control) = RawPeer::greeted(&broker).await?;
    let mut stream = peer.producing(partition).await?;
    let good = batch_of(&["one", "two"]);
    let changed = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = good.bytes().to_vec();
        change(&mut bytes);
        bytes
    };
    // Behind the checksum, so that it fits again.
    let resealed = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = changed(change);
        let checksum = crc32c(&bytes[21..]);
        bytes[17..21].copy_from_slice(&checksum.to_be_bytes());
        bytes
    };
    let large = batch_of(&[&"x".repeat(60_000)]);
    let larger = batch_of(&[&"x".repeat(40_000), &"y".repeat(40_000), &"z".repeat(40_000)]);
    let cases: Vec<(&str, Vec<u8>, ErrorCode)> = vec![
        ("nothing", Vec::new(), ErrorCode::CorruptBatch),
        ("garbage", vec![0x5a; 300], ErrorCode::InvalidBatch),
        ("a flipped bit", changed(&|bytes| bytes[70] ^= 4), ErrorCode::CorruptBatch),
        ("a wrong checksum", changed(&|bytes| bytes[18] ^= 1), ErrorCode::CorruptBatch),
        ("a length that promises more", changed(&|bytes| bytes[11] += 1), ErrorCode::CorruptBatch),
        ("a length that promises less", changed(&|bytes| bytes[11] -= 1), ErrorCode::CorruptBatch),
        ("a length below zero", changed(&|bytes| bytes[8] = 0x80), ErrorCode::CorruptBatch),
        ("a length of 2 GiB", changed(&|bytes| bytes[8] = 0x7f), ErrorCode::BatchTooLarge),
        ("two batches", [&good.bytes()[..], &good.bytes()[..]].concat(), ErrorCode::CorruptBatch),
        ("half a batch", good.bytes()[..good.bytes().len() / 2].to_vec(), ErrorCode::CorruptBatch),
        ("an old format", changed(&|bytes| bytes[16] = 1), ErrorCode::InvalidBatch),
        ("a count that lies", resealed(&|bytes| bytes[60] = 200), ErrorCode::InvalidBatch),
        (
            "a compression that does not exist",
            resealed(&|bytes| bytes[22] = 5),
            ErrorCode::UnsupportedCompression,
        ),
        ("no zstd in what says zstd", resealed(&|bytes| bytes[22] = 4), ErrorCode::InvalidBatch),
        ("a broker's marker", resealed(&|bytes| bytes[22] = 0x20), ErrorCode::InvalidBatch),
        (
            "another's producer id",
            resealed(&|bytes| bytes[43..51].copy_from_slice(&7i64.to_be_bytes())),
            ErrorCode::InvalidBatch,
        ),
        ("a record over the limit", large.bytes().to_vec(), ErrorCode::RecordTooLarge),
        ("a batch over the limit", larger.bytes().to_vec(), ErrorCode::BatchTooLarge),
    ];
    let mut request_id = 0;
    for (number, (what, bytes, expected)) in cases.iter().enumerate() {
        let ack = stream.produce(request_id, bytes).await?;
        let error = ack.error.ok_or_else(|| format!("{what} was stored"))?;
        assert_eq!(ErrorCode::from_code(error.code), Some(*expected), "{what}: {}", error.message);
        assert!(!error.message.is_empty() && !error.retriable, "{what}");
        let ack = stream.produce(request_id + 1, good.bytes()).await?;
        assert_eq!((ack.error, ack.base_offset), (None, number as i64 * 2), "after {what}");
        request_id += 2;
    }
    assert_eq!(count(&read_all(&client, "t").await?), cases.len() * 2);
    assert!(metric(&client, "tidemill_produce_refused_total").await? >= cases.len() as f64);
    bystander.was_undisturbed().await
}

fn crc32c(bytes: &[u8]) -> u32 {
    // Bit by bit: the test must not borrow the code that it tests.
    let mut crc = !0u32;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
        }
    }
    !crc
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_make_no_sense_are_answered() -> Outcome<()> {
    let (broker, client) = broker().await?;
    create(&client, "t", 1).await?;
    let bystander = Bystander::beside(&broker).await?;
    let (peer, _control) = RawPeer::greeted(&broker).await?;
    let asked = async |body: Option<request::Body>, payload: &[u8]| -> Outcome<ErrorCode> {
        let request = opening(stream_open::Kind::Request(Request { deadline_ms: 0, body }));
        let mut stream = peer.open(&frame(&request, payload)).await?;
        stream.send.finish()?;
        let reply: Reply = stream.message().await?;
        let error = reply.error.ok_or("it was answered as if it made sense")?;
        Ok(ErrorCode::from_code(error.code).ok_or("an unknown code")?)
    };
    assert_eq!(asked(None, b"").await?, ErrorCode::BadMessage);
    let short_id = TopicPartitionRef { topic_id: vec![1, 2, 3].into(), partition: 0 };
    let delete = tidemill_client::messages::DeleteRecordsRequest {
        partition: Some(short_id.clone()),
        before_offset: 0,
    };
    assert_eq!(asked(Some(request::Body::DeleteRecords(delete)), b"").await?, ErrorCode::BadMessage);

    let component = tidemill_hostile::keep_all();
    let upload = |size: u64, digest: &[u8]| {
        Some(request::Body::UploadPlugin(UploadPluginRequest {
            name: "p".to_owned(),
            version: "1".to_owned(),
            size,
            blake3: digest.to_vec().into(),
        }))
    };
    let size = component.len() as u64;
    let digest = blake3::hash(&component);
    assert_eq!(asked(upload(size, &[0; 32]), &component).await?, ErrorCode::DigestMismatch);
    assert_eq!(asked(upload(size, b"short"), &component).await?, ErrorCode::DigestMismatch);
    assert_eq!(asked(upload(size - 1, digest.as_bytes()), &component).await?, ErrorCode::BadMessage);
    assert_eq!(asked(upload(size + 1, digest.as_bytes()), &component).await?, ErrorCode::BadMessage);
    assert_eq!(asked(upload(u64::MAX, digest.as_bytes()), b"").await?, ErrorCode::PluginTooLarge);
    assert!(client.plugins().list().await?.is_empty(), "none of them left anything behind");

    let open = ProduceOpen { partition: Some(short_id), ..ProduceOpen::default() };
    let mut stream = peer.open(&frame(&opening(stream_open::Kind::Produce(open)), b"")).await?;
    let opened: ProduceOpened = stream.message().await?;
    assert_eq!(opened.error.map(|error| error.code), Some(ErrorCode::BadMessage.code()));
    let open = RoutedOpen { topic_id: vec![9; 16].into(), ..RoutedOpen::default() };
    let mut stream = peer.open(&frame(&opening(stream_open::Kind::Routed(open)), b"")).await?;
    let opened: RoutedOpened = stream.message().await?;
    assert_eq!(opened.error.map(|error| error.code), Some(ErrorCode::UnknownTopic.code()));
    // Of a producer there is all or nothing.
    let partition = partition_of(&client, "t", 0).await?;
    for (producer_id, producer_epoch) in [(0, -1), (-2, 0), (0, 40_000)] {
        let plain = ProduceOpen {
            partition: Some(partition.into()),
            leader_epoch: -1,
            producer_id,
            producer_epoch,
            ..ProduceOpen::default()
        };
        let routed = RoutedOpen {
            topic_id: partition.topic.bytes().to_vec().into(),
            producer_id,
            producer_epoch,
            ..RoutedOpen::default()
        };
        let said = [peer.try_produce(plain).await?.1.error, peer.try_route(routed).await?.1.error];
        let codes = said.map(code);
        assert_eq!(codes, [Some(ErrorCode::BadMessage); 2], "id {producer_id}, epoch {producer_epoch}");
    }
    bystander.was_undisturbed().await
}
