//! A broker for tests: honest by default, and as bad as a test tells it to be. Written with plain quinn, so that the
//! client is not tested against its own framing.

#![allow(dead_code, unreachable_pub, unused_imports, reason = "each test program uses its part")]

mod model;
mod streams;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use rustls_pki_types::PrivateKeyDer;
use tidemill_client::{Client, ClientConfig};
use tidemill_protocol::frame::{FrameDecoder, FrameLimits, RawFrame, encode_head};
use tidemill_protocol::messages::{self, Limits, ServerHello, StreamOpen, stream_open};

pub use model::{Fault, Model, TOPIC, topic_id};

pub struct FakeBroker {
    pub address: SocketAddr,
    pub model: Arc<Model>,
    endpoint: quinn::Endpoint,
}

impl FakeBroker {
    /// A broker with one topic of so many partitions.
    pub fn start(partitions: u32) -> Self {
        let model = Arc::new(Model::new(partitions));
        let certified =
            rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("a certificate");
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
        let address = endpoint.local_addr().expect("bound");
        tokio::spawn(accept(endpoint.clone(), Arc::clone(&model)));
        Self { address, model, endpoint }
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

async fn accept(endpoint: quinn::Endpoint, model: Arc<Model>) {
    while let Some(incoming) = endpoint.accept().await {
        let model = Arc::clone(&model);
        tokio::spawn(async move {
            let Ok(connection) = incoming.await else { return };
            while let Ok((send, receive)) = connection.accept_bi().await {
                let pipe = Pipe { connection: connection.clone(), send, receive, decoder: decoder() };
                tokio::spawn(serve(pipe, Arc::clone(&model)));
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

async fn serve(mut pipe: Pipe, model: Arc<Model>) -> Option<()> {
    let open: StreamOpen = pipe.next().await?.message().expect("a stream opening");
    match open.kind.expect("of some kind") {
        stream_open::Kind::Hello(_) => control(pipe, &model).await,
        stream_open::Kind::Produce(open) => streams::produce(pipe, &model, open).await,
        stream_open::Kind::Routed(open) => streams::routed(pipe, &model, open).await,
        stream_open::Kind::Subscribe(_) => streams::subscribe(pipe, &model).await,
        stream_open::Kind::Request(request) => streams::request(pipe, &model, request).await,
    }
}

async fn control(mut pipe: Pipe, model: &Model) -> Option<()> {
    let hello = ServerHello {
        protocol: 1,
        cluster_id: Bytes::from_static(&[1; 16]),
        broker_id: 1,
        software: "fake".to_owned(),
        limits: Some(Limits {
            batch_bytes_max: 1 << 20,
            produce_in_flight_max: 5,
            produce_window_bytes: 4 << 20,
            ..Limits::default()
        }),
        metadata: Some(messages::Metadata { version: 1, ..model.metadata() }),
        error: None,
    };
    pipe.say(&hello, &[]).await?;
    // Interest and pings are read and left alone.
    while pipe.next().await.is_some() {}
    None
}
