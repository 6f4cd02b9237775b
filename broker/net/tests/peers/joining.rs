//! Who has a token and no certificate yet.

use std::time::Duration;

use bytes::Bytes;
use tidemill_net::{ConnectionLost, DialError, FrameError, PeerLimits, PeerTls, ReadError, dial_to_join};

use crate::world::{
    Cluster, Counters, address, cluster, connected, endpoint, heard, patient, say, stream, within,
};

async fn joiner(
    cluster: &Cluster,
    to: &tidemill_net::PeerEndpoint,
) -> Result<tidemill_net::Connection, DialError> {
    within(dial_to_join(&address(to), cluster.ca.fingerprint(), &patient())).await
}

#[tokio::test]
async fn a_joiner_knows_the_cluster_by_its_fingerprint() {
    let cluster = cluster(1);
    let one = cluster.peer(1);
    let there = joiner(&cluster, &one).await.expect("let in");
    let here = within(one.accept()).await.expect("a connection");
    assert_eq!(there.peer().peer, Some(one.identity()));
    assert_eq!((here.peer().peer, here.peer().identity.as_deref()), (None, None));
    let (mut near, mut far) = stream(&there, &here, "the secret").await;
    let answer = Bytes::from(vec![1; 60 << 10]);
    say(&mut far, "the authority", std::slice::from_ref(&answer)).await;
    assert_eq!(heard(&mut near).await, ("the authority".to_owned(), answer));
    here.close(0, "welcome");
    assert!(within(there.closed()).await.is_clean());
}

#[tokio::test]
async fn another_fingerprint_is_refused_before_anything_is_sent() {
    let counters = Counters::default();
    let _guard = metrics::set_default_local_recorder(&counters);
    let (ours, others) = (cluster(1), cluster(2));
    let one = ours.peer(1);
    let error = joiner(&others, &one).await.expect_err("another cluster");
    assert_eq!(error, DialError::Fingerprint { address: address(&one) });
    assert!(error.to_string().contains("join token"), "{error}");
    assert!(!error.is_transient());
    counters.refused("not_accepted").await;
    assert!(tokio::time::timeout(Duration::from_millis(100), one.accept()).await.is_err());
}

/// The authority's certificate is no secret: showing it proves nothing.
#[tokio::test]
async fn showing_the_authority_is_not_being_signed_by_it() {
    let (ours, others) = (cluster(1), cluster(1));
    let tls = others.tls(1);
    let leaf = std::fs::read_to_string(&tls.certificate).expect("peer.pem");
    let leaf = leaf.split_inclusive("-----END CERTIFICATE-----\n").next().expect("a certificate");
    let chain = others.path("impostor.pem");
    std::fs::write(&chain, format!("{leaf}{}", ours.ca.certificate_pem())).expect("written");
    let impostor = endpoint(PeerTls { certificate: chain, ..tls }, patient());
    let error = joiner(&ours, &impostor).await.expect_err("not signed by it");
    assert!(matches!(error, DialError::Stranger { .. }), "{error:?}");
}

#[tokio::test]
async fn a_joiner_has_one_stream() {
    let counters = Counters::default();
    let _guard = metrics::set_default_local_recorder(&counters);
    let cluster = cluster(1);
    let one = cluster.peer(1);
    let there = joiner(&cluster, &one).await.expect("let in");
    let here = within(one.accept()).await.expect("a connection");
    let _first = stream(&there, &here, "first").await;
    let mut second = within(there.open_stream()).await.expect("as far as QUIC goes");
    say(&mut second, "second", &[]).await;
    assert!(within(here.accept_stream()).await.expect("closed on purpose").is_none());
    let lost = within(there.closed()).await;
    assert!(matches!(lost, ConnectionLost::ClosedByPeer { code: 105, .. }), "{lost}");
    counters.refused("streams").await;
}

#[tokio::test]
async fn a_joiner_sends_small_frames_alone() {
    let cluster = cluster(1);
    let one = cluster.peer(1);
    let there = joiner(&cluster, &one).await.expect("let in");
    let here = within(one.accept()).await.expect("a connection");
    let (mut near, mut far) = stream(&there, &here, "small").await;
    let large = Bytes::from(vec![0; 1 << 20]);
    // It never gets more on its way than its window.
    let sending = tokio::spawn(async move { near.writer.send(&"large".to_owned(), &[large]).await });
    let refused = within(far.reader.next()).await;
    assert!(
        matches!(refused, Err(ReadError::Frame(FrameError::TooLarge { limit: 65_536, .. }))),
        "{refused:?}"
    );
    assert!(!sending.is_finished());
    here.close(0, "");
    within(sending).await.expect("no panic").expect_err("the connection is gone");
}

#[tokio::test]
async fn joiners_are_few_and_have_little_time() {
    let counters = Counters::default();
    let _guard = metrics::set_default_local_recorder(&counters);
    let cluster = cluster(1);
    let joiner_life = Duration::from_secs(2);
    let limits = PeerLimits { joiners_max: 2, joiner_life, ..patient() };
    let (one, two) = (cluster.limited_peer(1, limits), cluster.peer(2));
    let first = joiner(&cluster, &one).await.expect("let in");
    let _second = joiner(&cluster, &one).await.expect("let in");
    let error = joiner(&cluster, &one).await.expect_err("two are there");
    assert!(matches!(error, DialError::Refused { code: 601, .. }), "{error:?}");
    assert!(error.is_transient());
    counters.refused("joiners").await;
    // Brokers of the cluster have places of their own. (The two joiners were accepted before.)
    let (_there, here) = connected(&two, &one).await;
    assert_eq!(here.peer().peer, None, "the first in the queue is a joiner");
    let lost = within(first.closed()).await;
    assert!(matches!(lost, ConnectionLost::ClosedByPeer { code: 600, .. }), "{lost}");
    counters.refused("joining").await;
    within(async {
        while joiner(&cluster, &one).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}
