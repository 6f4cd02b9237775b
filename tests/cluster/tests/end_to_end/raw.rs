//! A peer that is no client of ours: plain QUIC, and whatever bytes it likes.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{Connection, ConnectionError, Endpoint, ReadExactError, RecvStream, SendStream};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tidemill_client::messages::{
    ClientControl, ClientHello, InitProducerRequest, Interest, Metadata, Position, ProduceAck, ProduceAcks,
    ProduceBatch, ProduceOpen, ProduceOpened, Reply, Request, RoutedAck, RoutedAcks, RoutedBatch, RoutedOpen,
    RoutedOpened, ServerControl, ServerHello, StreamOpen, SubscribeAdd, SubscribeControl, SubscribeEvent,
    SubscribeOpen, SubscribeOpened, client_control, position, reply, request, server_control, stream_open,
    subscribe_control, subscribe_event,
};
use tidemill_client::{ErrorCode, TopicId, TopicPartition};
use tidemill_cluster_tests::{Outcome, TestBroker};
use tidemill_protocol::frame::{FrameDecoder, FrameLimits, encode_head};
use tokio::time::timeout;

pub(crate) const ALPN: &[u8] = b"tidemill/1";
const PATIENCE: Duration = Duration::from_secs(20);

/// A QUIC connection, and nothing said on it yet.
pub(crate) struct RawPeer {
    // Closed with the peer.
    _endpoint: Endpoint,
    pub(crate) connection: Connection,
}

/// Both halves of a stream.
pub(crate) struct RawStream {
    pub(crate) send: SendStream,
    pub(crate) receive: RecvStream,
}

impl RawPeer {
    /// Shakes hands, no more.
    pub(crate) async fn connect(broker: &TestBroker, alpn: &[u8]) -> Outcome<Self> {
        Self::connect_by_name(broker, alpn, "localhost").await
    }

    /// Shakes hands with whom the certificate must be for.
    pub(crate) async fn connect_by_name(broker: &TestBroker, alpn: &[u8], name: &str) -> Outcome<Self> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(broker.authority())?)?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots)
            .with_no_client_auth();
        tls.alpn_protocols = vec![alpn.to_vec()];
        let mut endpoint = Endpoint::client(([127, 0, 0, 1], 0).into())?;
        endpoint
            .set_default_client_config(quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?)));
        let connection = timeout(PATIENCE, endpoint.connect(broker.address(), name)?).await??;
        Ok(Self { _endpoint: endpoint, connection })
    }

    /// Shakes hands and says hello as a client does; the control stream stays open with it.
    pub(crate) async fn greeted(broker: &TestBroker) -> Outcome<(Self, RawStream)> {
        let (peer, control) = Self::greeted_without_ids(broker).await?;
        // Ids are given out by blocks: from here on a test may use small ones as it likes.
        peer.producer_id().await?;
        Ok((peer, control))
    }

    /// The same, and no producer id was asked for.
    pub(crate) async fn greeted_without_ids(broker: &TestBroker) -> Outcome<(Self, RawStream)> {
        let peer = Self::connect(broker, ALPN).await?;
        let mut control = peer.open(&frame(&hello(1, 1), &[])).await?;
        let hello: ServerHello = control.message().await?;
        assert!(hello.error.is_none(), "{:?}", hello.error);
        Ok((peer, control))
    }

    /// A producer id that nobody else has.
    pub(crate) async fn producer_id(&self) -> Outcome<i64> {
        match self.ask(request::Body::InitProducer(InitProducerRequest {})).await? {
            Some(reply::Body::InitProducer(init)) => Ok(init.producer_id),
            other => Err(format!("it should be a producer id: {other:?}").into()),
        }
    }

    /// What a request without payload is answered.
    pub(crate) async fn ask(&self, body: request::Body) -> Outcome<Option<reply::Body>> {
        let request = stream_open::Kind::Request(Request { body: Some(body), ..Request::default() });
        let mut stream = self.open(&frame(&opening(request), &[])).await?;
        stream.send.finish()?;
        Ok(stream.message::<Reply>().await?.body)
    }

    /// The reply to a request with this deadline (0: the broker's), whose stream stays open for more that might come.
    pub(crate) async fn answer(&self, deadline_ms: u32, body: request::Body) -> Outcome<Reply> {
        let asking = opening(stream_open::Kind::Request(Request { deadline_ms, body: Some(body) }));
        let mut stream = self.open(&frame(&asking, &[])).await?;
        stream.message().await
    }

    /// A stream that begins with these bytes.
    pub(crate) async fn open(&self, bytes: &[u8]) -> Outcome<RawStream> {
        let (mut send, receive) = self.connection.open_bi().await?;
        send.write_all(bytes).await?;
        Ok(RawStream { send, receive })
    }

    /// A produce stream without a producer id, which the broker has agreed to.
    pub(crate) async fn producing(&self, partition: TopicPartition) -> Outcome<RawStream> {
        self.producing_as(partition, -1).await
    }

    /// A produce stream of a producer of epoch 0, which the broker has agreed to.
    pub(crate) async fn producing_as(&self, partition: TopicPartition, producer: i64) -> Outcome<RawStream> {
        let (stream, opened) = self.try_producing(partition, producer, 0).await?;
        assert!(opened.error.is_none(), "{:?}", opened.error);
        Ok(stream)
    }

    /// A produce stream of this generation, and what the broker says of it.
    pub(crate) async fn try_producing(
        &self,
        partition: TopicPartition,
        producer: i64,
        generation: u64,
    ) -> Outcome<(RawStream, ProduceOpened)> {
        let open = ProduceOpen {
            partition: Some(partition.into()),
            leader_epoch: -1,
            producer_id: producer,
            producer_epoch: if producer < 0 { -1 } else { 0 },
            generation,
            ..ProduceOpen::default()
        };
        self.try_produce(open).await
    }

    /// A produce stream as it is asked for, and what the broker says of it.
    pub(crate) async fn try_produce(&self, open: ProduceOpen) -> Outcome<(RawStream, ProduceOpened)> {
        let mut stream = self.open(&frame(&opening(stream_open::Kind::Produce(open)), &[])).await?;
        let opened = stream.message().await?;
        Ok((stream, opened))
    }

    /// A produce stream without a producer id to a leader of this epoch, and what the broker says of it.
    pub(crate) async fn try_producing_in(
        &self,
        partition: TopicPartition,
        leader_epoch: i32,
    ) -> Outcome<(RawStream, ProduceOpened)> {
        let open = ProduceOpen {
            partition: Some(partition.into()),
            leader_epoch,
            producer_id: -1,
            producer_epoch: -1,
            ..ProduceOpen::default()
        };
        self.try_produce(open).await
    }

    /// A routed stream of a producer of epoch 0, which the broker has agreed to, and what it told.
    pub(crate) async fn routing(&self, topic: TopicId, producer: i64) -> Outcome<(RawStream, RoutedOpened)> {
        let open = RoutedOpen {
            topic_id: topic.bytes().to_vec().into(),
            producer_id: producer,
            producer_epoch: 0,
            ..RoutedOpen::default()
        };
        let (stream, opened) = self.try_route(open).await?;
        assert!(opened.error.is_none(), "{:?}", opened.error);
        Ok((stream, opened))
    }

    /// A routed stream as it is asked for, and what the broker says of it.
    pub(crate) async fn try_route(&self, open: RoutedOpen) -> Outcome<(RawStream, RoutedOpened)> {
        let mut stream = self.open(&frame(&opening(stream_open::Kind::Routed(open)), &[])).await?;
        let opened = stream.message().await?;
        Ok((stream, opened))
    }

    /// A subscription without a filter, which the broker has agreed to.
    pub(crate) async fn subscribing(&self) -> Outcome<RawStream> {
        let open = stream_open::Kind::Subscribe(SubscribeOpen::default());
        let mut stream = self.open(&frame(&opening(open), &[])).await?;
        let opened: SubscribeOpened = stream.message().await?;
        assert!(opened.error.is_none(), "{:?}", opened.error);
        Ok(stream)
    }

    /// With which code the broker closes the connection, which it must.
    pub(crate) async fn close_code(&self) -> Outcome<ErrorCode> {
        match timeout(PATIENCE, self.connection.closed()).await? {
            ConnectionError::ApplicationClosed(close) => code(close.error_code.into_inner()),
            other => Err(format!("the broker should close the connection with a code: {other}").into()),
        }
    }
}

impl RawStream {
    /// The next frame's message.
    pub(crate) async fn message<M: Message + Default>(&mut self) -> Outcome<M> {
        let reading = async {
            let mut length = [0; 4];
            self.receive.read_exact(&mut length).await?;
            let mut rest = vec![0; u32::from_be_bytes(length) as usize];
            self.receive.read_exact(&mut rest).await?;
            Ok::<_, ReadExactError>([&length[..], &rest].concat())
        };
        let mut frames = FrameDecoder::new(FrameLimits::default());
        frames.push(Bytes::from(timeout(PATIENCE, reading).await??));
        Ok(frames.next()?.ok_or("the frame is not whole")?.message()?)
    }

    /// On a control stream: names the topics whose metadata are to be pushed.
    pub(crate) async fn listen_for(&mut self, topics: &[&str]) -> Outcome<()> {
        let topics = topics.iter().map(|topic| (*topic).to_owned()).collect();
        let control = ClientControl { kind: Some(client_control::Kind::Interest(Interest { topics })) };
        self.send.write_all(&frame(&control, &[])).await?;
        Ok(())
    }

    /// On a control stream: the first metadata from here on that say what is waited for. Each that is pushed is of a later version than the
    /// one before.
    pub(crate) async fn pushed(&mut self, is_so: impl Fn(&Metadata) -> bool) -> Outcome<Metadata> {
        let mut last = 0;
        loop {
            let metadata = match self.message::<ServerControl>().await?.kind {
                Some(server_control::Kind::Metadata(metadata)) => metadata,
                other => return Err(format!("metadata should be pushed: {other:?}").into()),
            };
            assert!(metadata.version > last, "version {} came behind {last}", metadata.version);
            if is_so(&metadata) {
                return Ok(metadata);
            }
            last = metadata.version;
        }
    }

    /// Sends a batch and answers its acknowledgement.
    pub(crate) async fn produce(&mut self, request_id: u64, batch: &[u8]) -> Outcome<ProduceAck> {
        self.send.write_all(&frame(&ProduceBatch { request_id }, batch)).await?;
        let acks: ProduceAcks = self.message().await?;
        Ok(acks.acks.into_iter().next().ok_or("an empty frame of acknowledgements")?)
    }

    /// Sends a batch to be routed as it was told at its first attempt.
    pub(crate) async fn route(
        &mut self,
        request_id: u64,
        topic_sequence: u64,
        first: &RoutedOpened,
        batch: &[u8],
    ) -> Outcome<()> {
        let header = RoutedBatch {
            request_id,
            topic_sequence,
            partitioner_epoch: first.partitioner_epoch,
            partition_count: first.partition_count,
        };
        self.send.write_all(&frame(&header, batch)).await?;
        Ok(())
    }

    /// The next acknowledgements of a routed stream.
    pub(crate) async fn routed_acks(&mut self) -> Outcome<Vec<RoutedAck>> {
        Ok(self.message::<RoutedAcks>().await?.acks)
    }

    /// Adds a partition to a subscription, from its start, and answers what the broker says first.
    pub(crate) async fn subscribe_to(&mut self, add: SubscribeAdd) -> Outcome<subscribe_event::Kind> {
        let start = Some(Position { at: Some(position::At::Earliest(Default::default())) });
        let control =
            SubscribeControl { kind: Some(subscribe_control::Kind::Add(SubscribeAdd { start, ..add })) };
        self.send.write_all(&frame(&control, &[])).await?;
        let event: SubscribeEvent = self.message().await?;
        Ok(event.kind.ok_or("an event")?)
    }

    /// With which code the broker gives the stream up, in either direction, which it must.
    pub(crate) async fn reset_code(mut self) -> Outcome<ErrorCode> {
        let reading = async {
            loop {
                match self.receive.read_chunk(1 << 16, true).await {
                    Ok(Some(_)) => {}
                    Ok(None) => return None,
                    Err(quinn::ReadError::Reset(code)) => return Some(code.into_inner()),
                    Err(_) => return None,
                }
            }
        };
        let stopping = async { self.send.stopped().await.ok().flatten().map(|code| code.into_inner()) };
        let (reset, stopped) = timeout(PATIENCE, async { tokio::join!(reading, stopping) }).await?;
        code(reset.or(stopped).ok_or("the broker ended the stream without a code")?)
    }
}

fn code(number: u64) -> Outcome<ErrorCode> {
    let known = u32::try_from(number).ok().and_then(ErrorCode::from_code);
    Ok(known.ok_or_else(|| format!("{number} is no code of ours"))?)
}

pub(crate) fn opening(kind: stream_open::Kind) -> StreamOpen {
    StreamOpen { kind: Some(kind) }
}

pub(crate) fn hello(protocol_min: u32, protocol_max: u32) -> StreamOpen {
    let hello =
        ClientHello { protocol_min, protocol_max, client_id: "raw".to_owned(), ..ClientHello::default() };
    opening(stream_open::Kind::Hello(hello))
}

/// A frame as it should be.
pub(crate) fn frame(header: &impl Message, payload: &[u8]) -> Vec<u8> {
    [&encode_head(header, payload.len())[..], payload].concat()
}

/// A frame's bytes with a header that is no message.
pub(crate) fn frame_of(header: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&((4 + header.len() + payload.len()) as u32).to_be_bytes());
    bytes.extend_from_slice(&(header.len() as u32).to_be_bytes());
    bytes.extend_from_slice(header);
    bytes.extend_from_slice(payload);
    bytes
}
