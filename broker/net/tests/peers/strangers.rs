//! Who is not of the cluster, or is no broker: turned away, told why, logged and counted.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tidemill_net::{
    ALPN, BindError, DialError, Listener, NetConfig, NetLimits, PEER_ALPN, PeerEndpoint, PeerLimits,
    PeerNetConfig, PeerTls,
};

use crate::world::{Counters, address, cluster, connected, endpoint, loopback, patient, within};

#[tokio::test]
async fn another_authority_is_refused_on_both_sides() {
    let counters = Counters::default();
    let _guard = metrics::set_default_local_recorder(&counters);
    let (ours, others) = (cluster(1), cluster(2));
    let (one, stranger) = (ours.peer(1), others.peer(2));
    let error = within(stranger.dial(&address(&one))).await.expect_err("another authority");
    assert!(matches!(error, DialError::Stranger { .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("not signed by the authority") && text.contains("same ca.pem"), "{text}");
    assert!(!error.is_transient());
    counters.refused("not_accepted").await;
    assert_eq!(counters.of("tidemill_peer_failed_dials_total", "stranger"), 1);
    assert_eq!(one.connections(), 0);
}

#[tokio::test]
async fn a_certificate_of_another_authority_gets_nobody_in() {
    let counters = Counters::default();
    let _guard = metrics::set_default_local_recorder(&counters);
    let (ours, others) = (cluster(1), cluster(1));
    let one = ours.peer(1);
    // It was told whom to trust, and has no certificate that would be trusted.
    let tls = PeerTls { authority: ours.ca.authority(), ..others.tls(2) };
    let impostor = endpoint(tls, patient());
    let error = within(impostor.dial(&address(&one))).await.expect_err("not signed by ours");
    assert!(matches!(error, DialError::NotAccepted { .. }), "{error:?}");
    counters.refused("certificate").await;
    assert!(tokio::time::timeout(Duration::from_millis(100), one.accept()).await.is_err());
}

#[tokio::test]
async fn another_cluster_with_the_same_authority_is_refused() {
    let counters = Counters::default();
    let _guard = metrics::set_default_local_recorder(&counters);
    let ours = cluster(1);
    let one = ours.peer(1);
    let other_cluster = cluster(2).id;
    let other = endpoint(ours.tls_of(other_cluster, 2), patient());
    let error = within(other.dial(&address(&one))).await.expect_err("another cluster");
    assert!(matches!(error, DialError::Refused { code: 700, .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.contains(&other_cluster.to_string()) && text.contains(&ours.id.to_string()), "{text}");
    assert!(!error.is_transient());
    counters.refused("certificate").await;
    assert_eq!(counters.of("tidemill_peer_refused_total", "certificate"), 1);
    assert_eq!(counters.of("tidemill_peer_failed_dials_total", "refused"), 1);
    assert!(tokio::time::timeout(Duration::from_millis(100), one.accept()).await.is_err());
}

/// With plain quinn, as somebody who was given a certificate for something else.
fn outsider(authority: &Path, identity: Option<(&Path, &Path)>, alpn: &[u8]) -> quinn::Endpoint {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(authority).expect("ca.pem")).expect("an authority");
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_root_certificates(roots);
    let mut tls = match identity {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let chain = vec![CertificateDer::from_pem_file(certificate).expect("certificate")];
            let key = PrivateKeyDer::from_pem_file(key).expect("key");
            builder.with_client_auth_cert(chain, key).expect("an identity")
        }
    };
    tls.alpn_protocols = vec![alpn.to_vec()];
    let tls = quinn::crypto::rustls::QuicClientConfig::try_from(tls).expect("QUIC over TLS");
    let mut endpoint = quinn::Endpoint::client(loopback()).expect("a client endpoint");
    endpoint.set_default_client_config(quinn::ClientConfig::new(Arc::new(tls)));
    endpoint
}

#[tokio::test]
async fn a_client_of_the_same_authority_is_no_peer() {
    let counters = Counters::default();
    let _guard = metrics::set_default_local_recorder(&counters);
    let cluster = cluster(1);
    let one = cluster.peer(1);
    let files = cluster.ca.client("broker-2").expect("files");
    let client = outsider(&cluster.ca.authority(), Some((&files.certificate, &files.key)), PEER_ALPN);
    let connection =
        within(client.connect(one.local_addr(), "peer.tidemill").expect("an address")).await.expect("TLS");
    let quinn::ConnectionError::ApplicationClosed(close) = within(connection.closed()).await else {
        panic!("closed with a reason");
    };
    assert_eq!(close.error_code, 700_u32.into());
    let reason = String::from_utf8_lossy(&close.reason).into_owned();
    assert!(reason.contains("CN=broker-2") && reason.contains("not a broker's"), "{reason}");
    counters.refused("certificate").await;

    // Nor can a broker be started with it.
    let tls = PeerTls { certificate: files.certificate, key: files.key, authority: cluster.ca.authority() };
    let error = PeerEndpoint::bind(PeerNetConfig { listen: loopback(), tls, limits: patient() })
        .expect_err("a client's certificate");
    assert!(matches!(error, BindError::Tls(_)) && error.to_string().contains("broker-2.pem"), "{error}");
}

#[tokio::test]
async fn the_clients_port_and_the_peers_are_two() {
    let counters = Counters::default();
    let _guard = metrics::set_default_local_recorder(&counters);
    let cluster = cluster(1);
    let one = cluster.peer(1);
    let tls = cluster.ca.server(&[]).expect("a certificate");
    let clients = Listener::bind(NetConfig { listen: loopback(), tls, limits: NetLimits::default() })
        .expect("a listener");
    let wrong_port = clients.local_addr().to_string();
    let error = within(one.dial(&wrong_port)).await.expect_err("the clients' port");
    assert_eq!(error, DialError::Protocol { address: wrong_port });
    assert!(error.to_string().contains("clients' port"), "{error}");

    let client = outsider(&cluster.ca.authority(), None, ALPN);
    within(client.connect(one.local_addr(), "peer.tidemill").expect("an address"))
        .await
        .expect_err("the peers' port");
    counters.refused("protocol").await;
}

#[tokio::test]
async fn a_server_certificate_of_the_same_authority_is_no_peers() {
    let cluster = cluster(1);
    let one = cluster.peer(1);
    // Somebody who got at the certificate for clients, and no further.
    let tls = cluster.ca.server(&[]).expect("a certificate");
    let chain = vec![CertificateDer::from_pem_file(&tls.certificate).expect("certificate")];
    let key = PrivateKeyDer::from_pem_file(&tls.key).expect("key");
    let mut server =
        rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3")
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .expect("a server");
    server.alpn_protocols = vec![PEER_ALPN.to_vec()];
    let server = quinn::crypto::rustls::QuicServerConfig::try_from(server).expect("QUIC over TLS");
    let server = quinn::Endpoint::server(quinn::ServerConfig::with_crypto(Arc::new(server)), loopback())
        .expect("an endpoint");
    let address = server.local_addr().expect("bound").to_string();
    tokio::spawn(async move {
        while let Some(incoming) = server.accept().await {
            let _ = incoming.await;
        }
    });
    let error = within(one.dial(&address)).await.expect_err("not for peers");
    assert!(matches!(error, DialError::Stranger { .. }), "{error:?}");
    assert!(error.to_string().contains("peer.tidemill"), "{error}");
}

#[tokio::test]
async fn what_is_no_address_is_said() {
    let limits = PeerLimits { dial_timeout: Duration::from_millis(300), ..patient() };
    let one = cluster(1).limited_peer(1, limits);
    for (given, expected) in [
        ("broker-2", "no port"),
        (":9631", "no host"),
        ("broker-2:peers", "no number"),
        ("127.0.0.1:0", "no number"),
        ("[::1]:9631", "can't be reached from"),
    ] {
        let error = within(one.dial(given)).await.expect_err(given);
        assert!(
            matches!(error, DialError::Address { .. }) && error.to_string().contains(expected),
            "{error}"
        );
        assert!(error.to_string().contains(given), "{error}");
    }
    // Somebody who never answers.
    let silent = std::net::UdpSocket::bind(loopback()).expect("a socket");
    let error =
        within(one.dial(&silent.local_addr().expect("bound").to_string())).await.expect_err("silence");
    assert!(matches!(error, DialError::NoAnswer { .. }) && error.is_transient(), "{error:?}");
    assert!(error.to_string().contains("UDP"), "{error}");
}

#[tokio::test]
async fn connections_have_an_end() {
    let counters = Counters::default();
    let _guard = metrics::set_default_local_recorder(&counters);
    let cluster = cluster(1);
    let net = NetLimits { connections_max: 2, retry_above_handshakes: 0, ..patient().net };
    let one = cluster.limited_peer(1, PeerLimits { net, ..patient() });
    let two = cluster.peer(2);
    let (first, second) = (connected(&two, &one).await, connected(&two, &one).await);
    assert_eq!(one.connections(), 2);
    let error = within(two.dial(&address(&one))).await.expect_err("no place");
    assert_eq!(error, DialError::Crowded { address: address(&one) });
    counters.refused("crowded").await;
    drop(first);
    within(async {
        while one.connections() > 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    connected(&two, &one).await;
    drop(second);
}
