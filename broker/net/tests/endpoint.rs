//! The listener against clients written with plain quinn: good ones, clumsy ones and hostile ones.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tidemill_net::{
    ALPN, ClientAuthentication, Connection, DevCa, FrameError, FrameLimits, IssuedFiles, Listener, NetConfig,
    NetLimits, ReadError, transport_config,
};

const PATIENCE: Duration = Duration::from_secs(10);

struct World {
    _dir: tempfile::TempDir,
    ca: DevCa,
    listener: Listener,
}

fn loopback() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}

fn world(limits: NetLimits, clients: fn(&DevCa) -> ClientAuthentication) -> World {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let ca = DevCa::open_or_create(dir.path()).expect("an authority");
    let mut tls = ca.server(&[]).expect("a server certificate");
    tls.clients = clients(&ca);
    let listener = Listener::bind(NetConfig { listen: loopback(), tls, limits }).expect("a listener");
    World { _dir: dir, ca, listener }
}

fn open_world() -> World {
    world(NetLimits::default(), |_| ClientAuthentication::None)
}

fn client(authority: &Path, identity: Option<&IssuedFiles>, alpn: &[u8]) -> quinn::Endpoint {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(authority).expect("ca.pem")).expect("an authority");
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_root_certificates(roots);
    let mut tls = match identity {
        None => builder.with_no_client_auth(),
        Some(files) => builder
            .with_client_auth_cert(
                vec![CertificateDer::from_pem_file(&files.certificate).expect("certificate")],
                PrivateKeyDer::from_pem_file(&files.key).expect("key"),
            )
            .expect("an identity"),
    };
    tls.alpn_protocols = vec![alpn.to_vec()];
    let tls = quinn::crypto::rustls::QuicClientConfig::try_from(tls).expect("QUIC over TLS");
    let mut config = quinn::ClientConfig::new(Arc::new(tls));
    config.transport_config(Arc::new(transport_config(&NetLimits::default()).expect("limits")));
    let mut endpoint = quinn::Endpoint::client(loopback()).expect("a client endpoint");
    endpoint.set_default_client_config(config);
    endpoint
}

async fn connected(world: &World) -> (quinn::Connection, Connection) {
    let endpoint = client(&world.ca.authority(), None, ALPN);
    let there = endpoint
        .connect(world.listener.local_addr(), "localhost")
        .expect("an address")
        .await
        .expect("a handshake");
    (there, world.listener.accept().await.expect("a connection"))
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("it happens in time")
}

#[tokio::test]
async fn frames_of_every_size_arrive_as_they_were_sent() {
    let world = open_world();
    let (there, here) = connected(&world).await;
    let (send, mut receive) = there.open_bi().await.expect("a stream");
    let mut send = send;
    // Nobody hears of a stream before its first byte.
    send.write_all(&[0, 0, 0, 4, 0, 0, 0, 0]).await.expect("an empty frame");
    let mut stream = within(here.accept_stream()).await.expect("alive").expect("a stream");
    let first = within(stream.reader.next()).await.expect("a frame").expect("not the end");
    assert!(first.header.is_empty() && first.payload.is_empty());

    let big: Bytes = (0..3_000_000u32).map(|i| (i % 251) as u8).collect();
    let frames: Vec<(String, Vec<Bytes>)> = vec![
        ("small".into(), vec![Bytes::from_static(b"payload")]),
        ("no payload".into(), vec![]),
        ("parts".into(), vec![Bytes::from_static(b"a"), big.clone(), Bytes::new(), Bytes::from_static(b"z")]),
        ("long header ".repeat(10_000), vec![]),
        ("after".into(), vec![Bytes::from_static(b"!")]),
    ];
    let writing = async {
        for (header, payload) in &frames {
            stream.writer.feed(header, payload).expect("it fits");
        }
        stream.writer.finish().await.expect("written");
        stream.writer.delivered().await.expect("delivered");
    };
    let (bytes, ()) = within(async { tokio::join!(receive.read_to_end(64 << 20), writing) }).await;
    // Send it all back in odd pieces: chunk borders must not matter.
    let bytes = bytes.expect("all of it");
    let returning = async {
        for piece in bytes.chunks(7_919) {
            send.write_all(piece).await.expect("written");
        }
        send.finish().expect("open");
    };
    let reading = async {
        for (header, payload) in &frames {
            let frame = stream.reader.next().await.expect("a frame").expect("not the end");
            let said: String = prost::Message::decode(frame.header).expect("a string");
            assert_eq!(&said, header);
            assert_eq!(frame.payload, payload.concat());
        }
        assert_eq!(stream.reader.next().await, Ok(None));
    };
    within(async { tokio::join!(returning, reading) }).await;
}

#[tokio::test]
async fn what_is_no_frame_is_refused_by_kind() {
    let limits = NetLimits {
        frames: FrameLimits { frame_bytes_max: 1_000, header_bytes_max: 100 },
        ..NetLimits::default()
    };
    let world = world(limits, |_| ClientAuthentication::None);
    let (there, here) = connected(&world).await;
    let case = async |bytes: &[u8], reset: bool| {
        let (mut send, _receive) = there.open_bi().await.expect("a stream");
        send.write_all(bytes).await.expect("written");
        let mut stream = within(here.accept_stream()).await.expect("alive").expect("a stream");
        if reset {
            send.reset(77u32.into()).expect("open");
        } else {
            send.finish().expect("open");
        }
        within(stream.reader.next()).await
    };
    let frame = |error: FrameError| Err(ReadError::Frame(error));
    // A length beyond the limit, found before a byte of it is there.
    let too_large = FrameError::TooLarge { length: 0xffff_ffff, limit: 1_000 };
    assert_eq!(case(&[0xff, 0xff, 0xff, 0xff], false).await, frame(too_large));
    // Too short for its own fields, and headers that are too long for the frame or the limit.
    assert_eq!(case(&[0, 0, 0, 1, 0, 0], false).await, frame(FrameError::TooShort { length: 1 }));
    let outside = FrameError::HeaderOutside { header: 8, length: 11 };
    assert_eq!(case(&[0, 0, 0, 11, 0, 0, 0, 8], false).await, frame(outside));
    let header = FrameError::HeaderTooLarge { length: 256, limit: 100 };
    assert_eq!(case(&[0, 0, 2, 0, 0, 0, 1, 0], false).await, frame(header));
    // The end inside the prefix, the header, the payload.
    for cut in [3, 7, 9, 11] {
        let bytes = [0, 0, 0, 11, 0, 0, 0, 2, 1, 1, 5, 5, 5, 5, 5];
        assert_eq!(case(&bytes[..cut], false).await, frame(FrameError::Truncated { received: cut }));
    }
    // Given up by the peer.
    assert_eq!(case(&[0, 0, 0, 11, 0, 0, 0, 2, 1, 1, 5], true).await, Err(ReadError::Reset { code: 77 }));
    // The connection is as good as before.
    assert_eq!(case(&[0, 0, 0, 4, 0, 0, 0, 0], false).await.map(|frame| frame.is_some()), Ok(true));
}

#[tokio::test]
async fn a_read_that_is_dropped_loses_nothing() {
    let world = open_world();
    let (there, here) = connected(&world).await;
    let (mut send, _receive) = there.open_bi().await.expect("a stream");
    let mut bytes = BytesMut::new();
    bytes.put_u32(4 + 3 + 4);
    bytes.put_u32(3);
    bytes.put_slice(b"abc1234");
    send.write_all(&bytes[..8]).await.expect("written");
    let mut stream = within(here.accept_stream()).await.expect("alive").expect("a stream");
    for next in 8..bytes.len() {
        // Polls once and drops: whatever had arrived must be kept.
        assert!(poll_once(stream.reader.next()).await.is_none());
        send.write_all(&bytes[next..=next]).await.expect("written");
        tokio::task::yield_now().await;
    }
    let frame = within(stream.reader.next()).await.expect("a frame").expect("not the end");
    assert_eq!((&frame.header[..], &frame.payload[..]), (&b"abc"[..], &b"1234"[..]));
}

async fn poll_once<F: Future>(future: F) -> Option<F::Output> {
    let mut future = std::pin::pin!(future);
    std::future::poll_fn(|cx| {
        std::task::Poll::Ready(match future.as_mut().poll(cx) {
            std::task::Poll::Ready(output) => Some(output),
            std::task::Poll::Pending => None,
        })
    })
    .await
}

#[tokio::test]
async fn a_client_certificate_is_verified_and_named() {
    let world = world(NetLimits::default(), |ca| ClientAuthentication::Asked { authorities: ca.authority() });
    let address = world.listener.local_addr();

    let stranger = client(&world.ca.authority(), None, ALPN);
    let nobody = within(stranger.connect(address, "localhost").expect("an address")).await.expect("let in");
    let here = within(world.listener.accept()).await.expect("a connection");
    assert_eq!(here.peer().identity, None);
    nobody.close(0u32.into(), b"bye");
    within(here.closed()).await;
    drop(here);

    let other_dir = tempfile::tempdir().expect("a temporary directory");
    let other =
        DevCa::open_or_create(other_dir.path()).expect("an authority").client("impostor").expect("files");
    let impostor = client(&world.ca.authority(), Some(&other), ALPN);
    if let Ok(connection) = within(impostor.connect(address, "localhost").expect("an address")).await {
        // TLS 1.3: the client may think itself in before the server has looked.
        within(connection.closed()).await;
    }

    let files = world.ca.client("alice").expect("files");
    let alice = client(&world.ca.authority(), Some(&files), ALPN);
    let _connection = within(alice.connect(address, "127.0.0.1").expect("an address")).await.expect("let in");
    let here = within(world.listener.accept()).await.expect("a connection");
    assert_eq!(here.peer().identity.as_deref(), Some("CN=alice"));
    assert_eq!(world.listener.connections(), 1);
}

#[tokio::test]
async fn strangers_and_crowds_are_turned_away() {
    let limits = NetLimits { connections_max: 1, retry_above_handshakes: 0, ..NetLimits::default() };
    let world = world(limits, |_| ClientAuthentication::None);
    let address = world.listener.local_addr();

    // Garbage on the port.
    let socket = UdpSocket::bind(loopback()).expect("a socket");
    for length in [0, 1, 20, 1_200, 1_400] {
        socket.send_to(&vec![0xc3; length], address).expect("sent");
    }
    // Another protocol.
    let other = client(&world.ca.authority(), None, b"h3");
    within(other.connect(address, "localhost").expect("an address")).await.expect_err("another protocol");

    // The first one is let in (over a Retry packet, here always), the second is refused, and let in once the first
    // has left.
    let (first, here) = connected(&world).await;
    let second = client(&world.ca.authority(), None, ALPN);
    within(second.connect(address, "localhost").expect("an address")).await.expect_err("the house is full");
    first.close(0u32.into(), b"bye");
    assert!(within(here.accept_stream()).await.expect("a clean end").is_none());
    drop(here);
    within(second.connect(address, "localhost").expect("an address")).await.expect("room again");
    let here = within(world.listener.accept()).await.expect("a connection");

    // Closing ends the accept loop and tells the peers.
    within(world.listener.close(602, "shutting down")).await;
    assert!(within(world.listener.accept()).await.is_none());
    assert!(within(here.closed()).await.is_clean());
}

/// Passes packets between one client and the listener of the moment, as a port does that another process takes over.
async fn relay(front: tokio::net::UdpSocket, mut backend: tokio::sync::watch::Receiver<SocketAddr>) {
    let mut client = None;
    let (mut packet, mut answer) = (vec![0; 65_536], vec![0; 65_536]);
    loop {
        let back = tokio::net::UdpSocket::bind(loopback()).await.expect("a socket");
        let address = *backend.borrow_and_update();
        back.connect(address).await.expect("an address");
        loop {
            tokio::select! {
                changed = backend.changed() => match changed {
                    Ok(()) => break,
                    Err(_) => return,
                },
                Ok((length, from)) = front.recv_from(&mut packet) => {
                    client = Some(from);
                    let _ = back.send(&packet[..length]).await;
                }
                Ok(length) = back.recv(&mut answer) => {
                    let _ = front.send_to(&answer[..length], client.expect("asked before answered")).await;
                }
            }
        }
    }
}

#[tokio::test]
async fn a_restart_is_noticed_at_once() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    // Each life opens its files anew.
    let listen = || {
        let tls =
            DevCa::open_or_create(dir.path()).expect("an authority").server(&[]).expect("a certificate");
        Listener::bind(NetConfig { listen: loopback(), tls, limits: NetLimits::default() })
            .expect("a listener")
    };
    let first = listen();
    let second = listen();
    let front = tokio::net::UdpSocket::bind(loopback()).await.expect("a socket");
    let address = front.local_addr().expect("bound");
    let (switch, backend) = tokio::sync::watch::channel(first.local_addr());
    tokio::spawn(relay(front, backend));

    let endpoint = client(&dir.path().join("ca.pem"), None, ALPN);
    let connection =
        within(endpoint.connect(address, "localhost").expect("an address")).await.expect("a handshake");
    switch.send(second.local_addr()).expect("the relay runs");
    // Any packet will do; one that QUIC sent of its own accord may have been the first.
    if let Ok((mut send, _receive)) = connection.open_bi().await {
        let _ = send.write_all(&[0; 100]).await;
    }
    assert_eq!(within(connection.closed()).await, quinn::ConnectionError::Reset);
}

#[test]
fn an_authority_is_kept_and_its_loss_is_noticed() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("tls");
    let ca = DevCa::open_or_create(&path).expect("made");
    let first = std::fs::read(ca.authority()).expect("ca.pem");
    let again = DevCa::open_or_create(&path).expect("opened");
    assert_eq!(first, std::fs::read(again.authority()).expect("ca.pem"));
    again
        .server(&["broker-1.example".into(), "10.1.2.3".into()])
        .expect("signed by the authority as read back");
    again.server(&["no host name".into(), "ü".into()]).expect_err("not ASCII");
    again.client("../escape").expect_err("a path");
    again.client("ca").expect_err("the authority's own file");

    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = |file: &str| std::fs::metadata(path.join(file)).expect(file).permissions().mode() & 0o777;
        assert_eq!((mode("ca.key"), mode("server.key"), mode("ca.pem")), (0o600, 0o600, 0o644));
    }
    std::fs::remove_file(path.join("ca.key")).expect("removed");
    let error = DevCa::open_or_create(&path).expect_err("half an authority").to_string();
    assert!(error.contains("ca.key") && error.contains("remove both"), "{error}");
}

/// Ten streams begin a large frame each: the heads alone take no more than their first buffers, and whoever comes when
/// the budget is used up is refused, while what was begun can be completed.
#[tokio::test]
async fn frames_on_their_way_in_have_a_budget() {
    let limits = NetLimits {
        frames: FrameLimits { frame_bytes_max: 4 << 20, ..FrameLimits::default() },
        connection_receiving_bytes_max: 3 << 20,
        ..NetLimits::default()
    };
    let world = world(limits, |_| ClientAuthentication::None);
    let (there, here) = connected(&world).await;
    let mut open = Vec::new();
    for number in 0..3_u32 {
        let (mut send, receive) = there.open_bi().await.expect("a stream");
        let head = [&(4 + (2_u32 << 20)).to_be_bytes()[..], &0_u32.to_be_bytes()].concat();
        send.write_all(&head).await.expect("a head");
        let mut stream = within(here.accept_stream()).await.expect("alive").expect("a stream");
        if number < 2 {
            // Begun, and left waiting for the rest.
            let waited = tokio::time::timeout(Duration::from_secs(1), stream.reader.next()).await;
            assert!(waited.is_err(), "{waited:?}");
        } else {
            assert_eq!(within(stream.reader.next()).await, Err(ReadError::Overloaded));
        }
        open.push((send, receive, stream));
    }
    // The first is completed as soon as the second is given up.
    let (_, _, second) = open.remove(1);
    drop(second);
    let (send, _, first) = &mut open[0];
    let payload = vec![7; 2 << 20];
    let (sent, frame) = tokio::join!(send.write_all(&payload), within(first.reader.next()));
    sent.expect("sent");
    assert_eq!(frame.expect("a frame").expect("not the end").payload.len(), 2 << 20);
}

/// A peer that begins a frame and never ends it does not keep the stream, or its memory, for ever.
#[tokio::test]
async fn a_frame_has_an_end_to_its_time() {
    let limits = NetLimits { frame_deadline: Duration::from_millis(300), ..NetLimits::default() };
    let world = world(limits, |_| ClientAuthentication::None);
    let (there, here) = connected(&world).await;
    let (mut send, _receive) = there.open_bi().await.expect("a stream");
    send.write_all(&[0, 0, 0, 14, 0, 0, 0, 0, 1, 2]).await.expect("a head and two bytes");
    let mut stream = within(here.accept_stream()).await.expect("alive").expect("a stream");
    let late = within(stream.reader.next()).await;
    assert_eq!(late, Err(ReadError::TooSlow { received: 10, seconds: 0 }));
}

/// A header counts like a payload: heads of large ones on many streams come to an end.
#[tokio::test]
async fn headers_on_their_way_in_count_too() {
    let limits = NetLimits { connection_receiving_bytes_max: 3 << 20, ..NetLimits::default() };
    let world = world(limits, |_| ClientAuthentication::None);
    let (there, here) = connected(&world).await;
    let mut open = Vec::new();
    for number in 0..3_u32 {
        let (mut send, receive) = there.open_bi().await.expect("a stream");
        let head = [&(4 + (4_u32 << 20)).to_be_bytes()[..], &(4_u32 << 20).to_be_bytes(), &[9]].concat();
        send.write_all(&head).await.expect("a head");
        let mut stream = within(here.accept_stream()).await.expect("alive").expect("a stream");
        if number < 2 {
            let waited = tokio::time::timeout(Duration::from_secs(1), stream.reader.next()).await;
            assert!(waited.is_err(), "{waited:?}");
        } else {
            assert_eq!(within(stream.reader.next()).await, Err(ReadError::Overloaded));
        }
        open.push((send, receive, stream));
    }
}
