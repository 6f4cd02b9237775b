//! Each kind of bad input, by each way in: whoever caused it hears a stable code, a counter has one more, and a line of the broker's log
//! at its default level says so.
//!
//! Lines of one kind are rationed, so a broker here sees no more of each than come at once.

use std::net::UdpSocket;

use tidemill_client::messages::{
    Acks, ProduceAck, ProduceOpen, ProduceOpened, RoutedAck, RoutedOpen, RoutedOpened, TopicConfig,
    stream_open,
};
use tidemill_client::{Client, ErrorCode, NewDeployment, NewTopic, PartitionId, Start, TopicPartition};
use tidemill_cluster_tests::reading::{count, read_all};
use tidemill_cluster_tests::waiting::eventually;
use tidemill_cluster_tests::{BrokerOptions, Outcome, TestBroker};
use tidemill_hostile as hostile;
use tidemill_hostile::World;
use tidemill_protocol::record_batch::ProducerFields;
use tidemill_protocol::{ProducerEpoch, ProducerId, Sequence};

use crate::bystander::Bystander;
use crate::kit::{
    PATIENCE, batch_of, broker_with, code, create, metric, not_stored, numbered_in, partition_of, refused,
};
use crate::raw::{ALPN, RawPeer, RawStream, frame, frame_of, hello, opening};

/// A broker whose counters and log are looked at.
struct Watched {
    broker: TestBroker,
    client: Client,
}

impl Watched {
    async fn start() -> Outcome<Self> {
        let options = BrokerOptions::default()
            .set("limits.record_bytes_max", 50_000)
            .set("limits.plugin_bytes_max", 100_000)
            .set("plugins.call_ms_max", 100);
        let (broker, client) = broker_with(options).await?;
        Ok(Self { broker, client })
    }

    /// What `cause` does is answered with `code`, counted by `series`, and a new line of the log has all `words`.
    async fn sees(
        &self,
        what: &str,
        cause: impl Future<Output = Outcome<ErrorCode>>,
        code: ErrorCode,
        series: &str,
        words: &[&str],
    ) -> Outcome<()> {
        let counted = self.sample(series).await?;
        let log_bytes = self.broker.log_text()?.len();
        assert_eq!(cause.await?, code, "{what}");
        eventually(&format!("{what} in {series}"), PATIENCE, async || {
            self.sample(series).await.ok().filter(|now| *now > counted)
        })
        .await?;
        eventually(&format!("{what} in the log, with {words:?}"), PATIENCE, async || {
            let text = self.broker.log_text().ok()?;
            let new = text.get(log_bytes..)?;
            new.lines().any(|line| words.iter().all(|word| line.contains(word))).then_some(())
        })
        .await
    }

    /// The value of one series; 0 where it was never counted.
    async fn sample(&self, series: &str) -> Outcome<f64> {
        metric(&self.client, series).await
    }
}

fn labelled(metric: &str, code: ErrorCode) -> String {
    format!("{metric}{{code=\"{code}\"}}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_the_port() -> Outcome<()> {
    let watched = Watched::start().await?;
    let bystander = Bystander::beside(&watched.broker).await?;
    let garbage = async {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        for _ in 0..50 {
            socket.send_to(b"GET / HTTP/1.1\r\n\r\n", watched.broker.address())?;
        }
        // Nobody who speaks no QUIC could read a code.
        Ok(ErrorCode::BadFrame)
    };
    let series = "tidemill_net_garbage_datagrams_total";
    watched.sees("garbage", garbage, ErrorCode::BadFrame, series, &["datagrams that are not QUIC"]).await?;
    let protocol = async {
        assert!(RawPeer::connect(&watched.broker, b"h3").await.is_err());
        Ok(ErrorCode::BadFrame)
    };
    let series = "tidemill_net_failed_handshakes_total";
    watched.sees("a protocol", protocol, ErrorCode::BadFrame, series, &["a handshake failed"]).await?;
    for (what, bytes, code) in [
        ("a hello with a length that lies", vec![0xff; 64], ErrorCode::FrameTooLarge),
        ("a hello that is none", frame_of(&[0x7a; 40], b""), ErrorCode::BadMessage),
        ("a hello of a version to come", frame(&hello(7, 9), b""), ErrorCode::UnsupportedVersion),
    ] {
        let cause = async {
            let peer = RawPeer::connect(&watched.broker, ALPN).await?;
            let _stream = peer.open(&bytes).await?;
            peer.close_code().await
        };
        let words = ["refused", "connection", code.name()];
        watched.sees(what, cause, code, "tidemill_refused_hellos_total", &words).await?;
    }
    let control = async {
        let (peer, mut control) = RawPeer::greeted(&watched.broker).await?;
        control.send.write_all(&frame_of(&[0xff; 3], b"")).await?;
        peer.close_code().await
    };
    let words = ["refused", "stream", "control message"];
    let series = "tidemill_bad_streams_total";
    watched.sees("a control message", control, ErrorCode::BadMessage, series, &words).await?;
    bystander.was_undisturbed().await
}

/// How a stream comes to be open, and frames to go wrong on it.
#[derive(Debug, Clone, Copy)]
enum Way {
    Plain,
    Routed,
    Subscription,
}

async fn open(peer: &RawPeer, way: Way, partition: TopicPartition) -> Outcome<RawStream> {
    match way {
        Way::Plain => peer.producing(partition).await,
        Way::Routed => Ok(peer.routing(partition.topic, 0).await?.0),
        Way::Subscription => peer.subscribing().await,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_the_frames_of_a_stream() -> Outcome<()> {
    let watched = Watched::start().await?;
    create(&watched.client, "t", 1).await?;
    let partition = partition_of(&watched.client, "t", 0).await?;
    let bystander = Bystander::beside(&watched.broker).await?;
    let (peer, _control) = RawPeer::greeted(&watched.broker).await?;
    for way in [Way::Plain, Way::Routed, Way::Subscription] {
        for (what, bytes, code, series) in [
            ("a cut off frame", &[0, 0, 0, 90, 0, 0][..], ErrorCode::BadFrame, "tidemill_bad_frames_total"),
            ("a length that lies", &[0xff; 8], ErrorCode::FrameTooLarge, "tidemill_bad_frames_total"),
            (
                "no message",
                &[0, 0, 0, 7, 0, 0, 0, 3, 0xff, 0xff, 0xff],
                ErrorCode::BadMessage,
                "tidemill_bad_streams_total",
            ),
        ] {
            let cause = async {
                let mut stream = open(&peer, way, partition).await?;
                stream.send.write_all(bytes).await?;
                stream.send.finish()?;
                stream.reset_code().await
            };
            let words = ["refused", "\"stream\"", code.name()];
            watched.sees(&format!("{what}: {way:?}"), cause, code, series, &words).await?;
        }
    }
    // A stream that is for what is not there.
    let nowhere = TopicPartition::new(partition.topic, PartitionId::new(7));
    let plain = async {
        let opened = peer.try_producing(nowhere, -1, 0).await?.1;
        Ok(opened.error.and_then(|error| ErrorCode::from_code(error.code)).ok_or("it is opened")?)
    };
    let code = ErrorCode::UnknownPartition;
    let (series, words) =
        (labelled("tidemill_refused_openings_total", code), ["refused", "opening", code.name()]);
    watched.sees("a partition that is not there", plain, code, &series, &words).await?;
    bystander.was_undisturbed().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_batches_plain_and_routed() -> Outcome<()> {
    let watched = Watched::start().await?;
    let config = TopicConfig { batch_bytes_max: Some(100_000), ..TopicConfig::default() };
    for topic in ["plain", "routed"] {
        watched.client.topics().create(NewTopic::new(topic, 1).config(config)).await?;
    }
    let bystander = Bystander::beside(&watched.broker).await?;
    let (peer, _control) = RawPeer::greeted(&watched.broker).await?;
    let good = batch_of(&["one", "two"]).bytes().to_vec();
    let changed = |at: usize, flip: u8| {
        let mut bytes = good.clone();
        bytes[at] ^= flip;
        bytes
    };
    let record = batch_of(&[&"x".repeat(60_000)]).bytes().to_vec();
    let cases = [
        ("a wrong CRC", changed(18, 1), ErrorCode::CorruptBatch),
        ("a length that lies", changed(8, 0x7f), ErrorCode::BatchTooLarge),
        ("half a batch", good[..good.len() / 2].to_vec(), ErrorCode::CorruptBatch),
        ("an old format", changed(16, 3), ErrorCode::InvalidBatch),
        ("a record over the limit", record, ErrorCode::RecordTooLarge),
    ];
    for topic in ["plain", "routed"] {
        let partition = partition_of(&watched.client, topic, 0).await?;
        for (what, bytes, code) in &cases {
            let cause = async {
                let error = if topic == "plain" {
                    peer.producing(partition).await?.produce(0, bytes).await?.error
                } else {
                    let (mut stream, told) = peer.routing(partition.topic, -1).await?;
                    stream.route(0, 0, &told, bytes).await?;
                    stream.routed_acks().await?.remove(0).error
                };
                Ok(error.and_then(|error| ErrorCode::from_code(error.code)).ok_or("it is stored")?)
            };
            let series = labelled("tidemill_produce_refused_total", *code);
            let words = ["refused", "\"batch\"", code.name(), topic];
            watched.sees(&format!("{what}: {topic}"), cause, *code, &series, &words).await?;
        }
    }
    bystander.was_undisturbed().await
}

/// Where nothing is acknowledged, a reset tells of what was refused: by the broker, and by the shard, which alone knows a producer's sequences.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_nothing_is_acknowledged() -> Outcome<()> {
    let watched = Watched::start().await?;
    create(&watched.client, "t", 1).await?;
    let partition = partition_of(&watched.client, "t", 0).await?;
    let (peer, _control) = RawPeer::greeted(&watched.broker).await?;
    let producer = peer.producer_id().await?;
    let good = batch_of(&["one", "two"]);
    let ahead = good.clone().with_producer(ProducerFields {
        id: ProducerId::new(producer),
        epoch: ProducerEpoch::new(0),
        base_sequence: Sequence::new(40),
    });
    let silent = async |producer: i64| -> Outcome<RawStream> {
        let open = ProduceOpen {
            partition: Some(partition.into()),
            leader_epoch: -1,
            producer_id: producer,
            producer_epoch: if producer < 0 { -1 } else { 0 },
            acks: Acks::None.into(),
            ..ProduceOpen::default()
        };
        let mut stream = peer.open(&frame(&opening(stream_open::Kind::Produce(open)), b"")).await?;
        let opened: ProduceOpened = stream.message().await?;
        assert!(opened.error.is_none(), "{opened:?}");
        Ok(stream)
    };
    let batch = |request_id| tidemill_client::messages::ProduceBatch { request_id };
    let broker = async {
        let mut stream = silent(-1).await?;
        stream.send.write_all(&frame(&batch(0), &good.bytes()[..70])).await?;
        stream.reset_code().await
    };
    let code = ErrorCode::CorruptBatch;
    let (series, words) =
        (labelled("tidemill_produce_refused_total", code), ["refused", "\"batch\"", code.name()]);
    watched.sees("a batch that the broker refuses", broker, code, &series, &words).await?;

    let shard = async {
        let mut stream = silent(producer).await?;
        // More of them behind it do not hide it.
        let both = [frame(&batch(0), ahead.bytes()), frame(&batch(1), ahead.bytes())].concat();
        stream.send.write_all(&both).await?;
        stream.reset_code().await
    };
    let code = ErrorCode::UnknownProducer;
    let (series, words) =
        (labelled("tidemill_produce_refused_total", code), ["refused", "\"batch\"", code.name()]);
    watched.sees("a batch that the shard refuses", shard, code, &series, &words).await?;

    let routed = async {
        let open = RoutedOpen {
            topic_id: partition.topic.bytes().to_vec().into(),
            producer_id: producer,
            producer_epoch: 0,
            acks: Acks::None.into(),
            ..RoutedOpen::default()
        };
        let mut stream = peer.open(&frame(&opening(stream_open::Kind::Routed(open)), b"")).await?;
        let told: RoutedOpened = stream.message().await?;
        stream.route(0, 40, &told, good.bytes()).await?;
        // Nor does the end of the client's side.
        stream.send.finish()?;
        stream.reset_code().await
    };
    watched.sees("a routed batch that the shard refuses", routed, code, &series, &words).await?;

    // What is not refused ends as it should.
    let mut stream = silent(-1).await?;
    stream.send.write_all(&frame(&batch(0), good.bytes())).await?;
    stream.send.finish()?;
    assert_eq!(stream.receive.read_to_end(100).await?, b"", "no acknowledgement, and no reset");
    assert_eq!(count(&read_all(&watched.client, "t").await?), 2, "only what nobody refused");
    Ok(())
}

/// One instance of a producer goes on after a newer one has begun: it hears so from the shards, however it produces.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_a_producer_that_a_newer_instance_replaced() -> Outcome<()> {
    let watched = Watched::start().await?;
    create(&watched.client, "plain", 1).await?;
    create(&watched.client, "routed", 3).await?;
    let bystander = Bystander::beside(&watched.broker).await?;
    let (peer, _control) = RawPeer::greeted(&watched.broker).await?;
    let producer = peer.producer_id().await?;
    let fenced = ErrorCode::ProducerFenced;
    let series = labelled("tidemill_produce_refused_total", fenced);

    let partition = partition_of(&watched.client, "plain", 0).await?;
    let plain = async |epoch: i16, sequence: i32| -> Outcome<ProduceAck> {
        let open = ProduceOpen {
            partition: Some(partition.into()),
            leader_epoch: -1,
            producer_id: producer,
            producer_epoch: epoch.into(),
            ..ProduceOpen::default()
        };
        // Once the broker has seen that the others' are over.
        let mut stream = eventually("a produce stream", PATIENCE, async || {
            let (stream, opened) = peer.try_produce(open.clone()).await.ok()?;
            opened.error.is_none().then_some(stream)
        })
        .await?;
        let ack = stream.produce(0, numbered_in(epoch, producer, sequence).bytes()).await?;
        stream.send.finish()?;
        Ok(ack)
    };
    assert_eq!(plain(0, 0).await?.base_offset, 0);
    assert_eq!(plain(1, 0).await?.base_offset, 1, "a newer instance begins anew");
    let older = async { Ok(code(plain(0, 1).await?.error).ok_or("it is stored")?) };
    let words = ["refused", "\"batch\"", fenced.name(), "plain"];
    watched.sees("an older instance: plain", older, fenced, &series, &words).await?;
    assert_eq!(plain(1, 1).await?.base_offset, 2, "the newer one goes on");

    let topic = watched.client.topic_metadata("routed").await?.id;
    let batch = batch_of(&["a record"]);
    let routed = async |epoch: i32, sequence: u64| -> Outcome<RoutedAck> {
        let open = RoutedOpen {
            topic_id: topic.bytes().to_vec().into(),
            producer_id: producer,
            producer_epoch: epoch,
            ..RoutedOpen::default()
        };
        let (mut stream, told) = eventually("a routed stream", PATIENCE, async || {
            let (stream, opened) = peer.try_route(open.clone()).await.ok()?;
            opened.error.is_none().then_some((stream, opened))
        })
        .await?;
        stream.route(0, sequence, &told, batch.bytes()).await?;
        stream.send.finish()?;
        Ok(stream.routed_acks().await?.remove(0))
    };
    assert_eq!(routed(0, 0).await?.error, None);
    assert_eq!(routed(1, 0).await?.error, None, "a newer instance begins anew");
    let older = async { Ok(code(routed(0, 1).await?.error).ok_or("it is stored")?) };
    let words = ["refused", "\"batch\"", fenced.name(), "routed"];
    watched.sees("an older instance: routed", older, fenced, &series, &words).await?;
    assert_eq!(routed(1, 1).await?.error, None, "the newer one goes on");
    for topic in ["plain", "routed"] {
        assert_eq!(count(&read_all(&watched.client, topic).await?), 3, "{topic}");
    }
    bystander.was_undisturbed().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_components_that_are_uploaded() -> Outcome<()> {
    let watched = Watched::start().await?;
    let bystander = Bystander::beside(&watched.broker).await?;
    for (what, component, code) in [
        ("no component", hostile::core_module_only(), ErrorCode::InvalidComponent),
        ("the wrong world", hostile::wrong_world(), ErrorCode::WrongWorld),
        ("an import", hostile::forbidden_import(World::Filter), ErrorCode::ForbiddenImport),
        ("invalid code", hostile::does_not_validate(), ErrorCode::CompileFailed),
        ("a start that traps", hostile::traps_in_start(World::Filter), ErrorCode::PluginTrapped),
        ("too large", vec![0; 100_001], ErrorCode::PluginTooLarge),
    ] {
        let cause = async { Ok(refused(watched.client.plugins().upload("p", "1", component).await)) };
        let series = labelled("tidemill_requests_failed_total", code);
        watched.sees(what, cause, code, &series, &["refused", "\"request\"", code.name()]).await?;
    }
    bystander.was_undisturbed().await
}

/// Filters that misbehave, what their callers hear, and how the plugins' own counter calls it.
fn filters() -> [(&'static str, Vec<u8>, ErrorCode, &'static str); 5] {
    [
        ("traps", hostile::traps(World::Filter), ErrorCode::PluginTrapped, "trapped"),
        ("loops", hostile::loops(World::Filter), ErrorCode::PluginTimedOut, "timed-out"),
        ("grows", hostile::grows(World::Filter), ErrorCode::PluginOutOfMemory, "out-of-memory"),
        ("bitmap", hostile::bitmap_of(9), ErrorCode::PluginBadAnswer, "bad-answer"),
        ("index", hostile::replaces_outside_data(), ErrorCode::PluginBadAnswer, "bad-answer"),
    ]
}

fn failures(kind: &str) -> String {
    format!("tidemill_plugin_failures_total{{kind=\"{kind}\"}}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_filters_of_plain_produce_and_of_subscriptions() -> Outcome<()> {
    let watched = Watched::start().await?;
    let client = &watched.client;
    create(client, "read", 1).await?;
    let producer = client.producer("read").build().await?;
    producer.send_batch(PartitionId::new(0), batch_of(&["a", "b", "c"])).await?.await?;
    let bystander = Bystander::beside(&watched.broker).await?;
    for (name, component, code, kind) in filters() {
        create(client, name, 1).await?;
        client.plugins().upload(name, "1", component).await?;
        let deployment = format!("{name}-for-produce");
        client.deployments().create(NewDeployment::produce_filter(deployment, name, name)).await?;
        let producer = client.producer(name).build().await?;
        let produced = async {
            let batch = batch_of(&["a", "b", "c"]);
            Ok(not_stored(producer.send_batch(PartitionId::new(0), batch).await?.await))
        };
        let failed = watched.sample(&failures(kind)).await?;
        let series = labelled("tidemill_produce_refused_total", code);
        let words = ["refused", "\"batch\"", code.name(), name];
        watched.sees(&format!("{name}: produce"), produced, code, &series, &words).await?;
        assert!(watched.sample(&failures(kind)).await? > failed, "{name}: produce");

        let read = async {
            let none: [(&str, &str); 0] = [];
            let reader = client.consumer().topic("read").from(Start::Earliest).filter(name, none);
            let mut consumer = reader.build().await?;
            let first = tokio::time::timeout(PATIENCE, consumer.next()).await?;
            let said = first.ok_or("it should fail")?.expect_err("it should fail").to_string();
            Ok(if said.contains(code.name()) { code } else { return Err(said.into()) })
        };
        let failed = watched.sample(&failures(kind)).await?;
        let series = labelled("tidemill_subscribe_failed_total", code);
        let words = ["refused", "\"subscription\"", code.name()];
        watched.sees(&format!("{name}: subscription"), read, code, &series, &words).await?;
        assert!(watched.sample(&failures(kind)).await? > failed, "{name}: subscription");
    }
    bystander.was_undisturbed().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_plugins_of_routed_produce() -> Outcome<()> {
    let watched = Watched::start().await?;
    let client = &watched.client;
    let bystander = Bystander::beside(&watched.broker).await?;
    let as_filter = |(name, component, code, kind)| (name, component, code, kind, true);
    let partitioners = [
        ("p-traps", hostile::traps(World::Partitioner), ErrorCode::PluginTrapped, "trapped", false),
        ("p-loops", hostile::loops(World::Partitioner), ErrorCode::PluginTimedOut, "timed-out", false),
        ("p-grows", hostile::grows(World::Partitioner), ErrorCode::PluginOutOfMemory, "out-of-memory", false),
        ("p-outside", hostile::places_in(3), ErrorCode::PluginBadAnswer, "bad-answer", false),
        ("p-too-few", hostile::places(1), ErrorCode::PluginBadAnswer, "bad-answer", false),
    ];
    for (name, component, code, kind, filter) in filters().map(as_filter).into_iter().chain(partitioners) {
        create(client, name, 3).await?;
        client.plugins().upload(name, "1", component).await?;
        let deployment = match filter {
            true => NewDeployment::produce_filter(name, name, name),
            false => NewDeployment::partitioner(name, name, name),
        };
        client.deployments().create(deployment).await?;
        let producer = client.producer(name).routed().build().await?;
        let produced =
            async { Ok(not_stored(producer.send_batch(None, batch_of(&["a", "b", "c"])).await?.await)) };
        let failed = watched.sample(&failures(kind)).await?;
        let series = labelled("tidemill_produce_refused_total", code);
        let words = ["refused", "\"batch\"", code.name(), name];
        watched.sees(name, produced, code, &series, &words).await?;
        assert!(watched.sample(&failures(kind)).await? > failed, "{name}");
    }
    bystander.was_undisturbed().await
}
