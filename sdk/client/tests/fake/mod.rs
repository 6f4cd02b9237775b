//! A broker for tests: honest by default, and as bad as a test tells it to be. Written with plain quinn, so that the
//! client is not tested against its own framing.

#![allow(dead_code, unreachable_pub, unused_imports, reason = "each test program uses its part")]

mod cluster;
mod model;
mod produce;
mod streams;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use rustls_pki_types::PrivateKeyDer;
use tidemill_client::{Client, ClientConfig};
use tidemill_protocol::frame::{FrameDecoder, FrameLimits, RawFrame, encode_head};
use tidemill_protocol::messages::{
    ClientControl, GoingAway, Limits, ServerControl, ServerHello, StreamOpen, client_control, server_control,
    stream_open,
};

pub use cluster::{FakeCluster, Node};
pub use model::{Fault, Model, TOPIC, topic_id, unknown_topic};

/// For what happens in a moment, on a machine that may be busy with other things.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("it happens in time")
}

pub fn value(number: usize) -> String {
    format!("value {number}")
}

pub struct FakeBroker {
    pub address: SocketAddr,
    pub model: Arc<Model>,
    endpoint: quinn::Endpoint,
}

impl FakeBroker {
    /// A broker with one topic of so many partitions.
    pub fn start(partitions: u32) -> Self {
        let model = Arc::new(Model::new(partitions));
        let endpoint = listen(Arc::new(Node::new(1, Arc::clone(&model))));
        Self { address: endpoint.local_addr().expect("bound"), model, endpoint }
    }

    pub fn config(&self) -> ClientConfig {
        ClientConfig::new([format!("127.0.0.1:{}", self.address.port())]).insecure()
    }

    pub async fn client(&self) -> Client {
        Client::connect(self.config()).await.expect("a connection")
    }
}

impl Drop for FakeBroker {
    fn drop(&mut self) {
        self.endpoint.close(0u32.into(), b"test over");
    }
}

/// Begins to serve as this broker.
fn listen(node: Arc<Node>) -> quinn::Endpoint {
    let certified = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("a certificate");
    let key = PrivateKeyDer::try_from(certified.signing_key.serialize_der()).expect("a key");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_no_client_auth()
        .with_single_cert(vec![certified.cert.der().clone()], key)
        .expect("a server");
    tls.alpn_protocols = vec![b"tidemill/1".to_vec()];
    let tls = quinn::crypto::rustls::QuicServerConfig::try_from(tls).expect("QUIC over TLS");
    let config = quinn::ServerConfig::with_crypto(Arc::new(tls));
    let endpoint = quinn::Endpoint::server(config, (Ipv4Addr::LOCALHOST, 0).into()).expect("a socket");
    tokio::spawn(accept(endpoint.clone(), node));
    endpoint
}

async fn accept(endpoint: quinn::Endpoint, node: Arc<Node>) {
    while let Some(incoming) = endpoint.accept().await {
        let node = Arc::clone(&node);
        tokio::spawn(async move {
            let Ok(connection) = incoming.await else { return };
            while let Ok((send, receive)) = connection.accept_bi().await {
                let pipe = Pipe { connection: connection.clone(), send, receive, decoder: decoder() };
                tokio::spawn(serve(pipe, Arc::clone(&node)));
            }
        });
    }
}

fn decoder() -> FrameDecoder {
    FrameDecoder::new(FrameLimits::default())
}

/// Both directions of a stream. An error ends it: the broker is not what is tested.
pub struct Pipe {
    pub connection: quinn::Connection,
    pub send: quinn::SendStream,
    receive: quinn::RecvStream,
    decoder: FrameDecoder,
}

impl Pipe {
    pub async fn next(&mut self) -> Option<RawFrame> {
        loop {
            if let Some(frame) = self.decoder.next().expect("the client speaks the protocol") {
                return Some(frame);
            }
            let chunk = self.receive.read_chunk(1 << 20, true).await.ok()??;
            self.decoder.push(chunk.bytes);
        }
    }

    pub async fn say(&mut self, message: &impl Message, payload: &[u8]) -> Option<()> {
        self.send.write_all(&encode_head(message, payload.len())).await.ok()?;
        self.send.write_all(payload).await.ok()
    }

    pub fn reset(&mut self) {
        let _ = self.send.reset(690u32.into());
        let _ = self.receive.stop(690u32.into());
    }
}

async fn serve(mut pipe: Pipe, node: Arc<Node>) -> Option<()> {
    let open: StreamOpen = pipe.next().await?.message().expect("a stream opening");
    match open.kind.expect("of some kind") {
        stream_open::Kind::Hello(_) => control(pipe, &node).await,
        stream_open::Kind::Produce(open) => produce::produce(pipe, &node, open).await,
        stream_open::Kind::Routed(open) => produce::routed(pipe, &node, open).await,
        stream_open::Kind::Subscribe(_) => streams::subscribe(pipe, &node).await,
        stream_open::Kind::Request(request) => streams::request(pipe, &node, request).await,
    }
}

async fn control(mut pipe: Pipe, node: &Node) -> Option<()> {
    let hello = ServerHello {
        protocol: 1,
        cluster_id: Bytes::from_static(&[1; 16]),
        broker_id: node.id,
        software: "fake".to_owned(),
        limits: Some(Limits {
            batch_bytes_max: 1 << 20,
            produce_in_flight_max: 5,
            produce_window_bytes: 4 << 20,
            ..Limits::default()
        }),
        metadata: Some(node.metadata()),
        error: None,
    };
    pipe.say(&hello, &[]).await?;
    let mut news = node.model.version.subscribe();
    let mut leaving = node.leaving.subscribe();
    let mut is_interested = false;
    loop {
        let said = tokio::select! {
            frame = pipe.next() => {
                let control: ClientControl = frame?.message().expect("a control message");
                match control.kind.expect("of some kind") {
                    client_control::Kind::Interest(interest) => {
                        is_interested = !interest.topics.is_empty();
                        *node.listed.lock().expect("no panic") = interest.topics;
                        is_interested.then(|| server_control::Kind::Metadata(node.metadata()))
                    }
                    client_control::Kind::Ping(ping) => Some(server_control::Kind::Pong(ping)),
                }
            }
            _ = news.changed() => {
                let pushes = is_interested && node.pushes.load(Ordering::Relaxed);
                pushes.then(|| server_control::Kind::Metadata(node.metadata()))
            }
            _ = leaving.changed() => {
                let reason = "as the test has it".to_owned();
                Some(server_control::Kind::GoingAway(GoingAway { reason, grace_ms: 1_000 }))
            }
        };
        if said.is_some() {
            pipe.say(&ServerControl { kind: said }, &[]).await?;
        }
    }
}
