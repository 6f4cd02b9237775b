//! Brokers of one cluster.

use std::time::Duration;

use bytes::Bytes;
use tidemill_net::{DialError, NetLimits, PeerLimits};

use crate::world::{address, cluster, connected, heard, patient, say, stream, within};

#[tokio::test]
async fn three_brokers_know_each_other() {
    let cluster = cluster(1);
    let peers = [1, 2, 3].map(|broker| cluster.peer(broker));
    for (from, dialler) in peers.iter().enumerate() {
        for (to, dialled) in peers.iter().enumerate().filter(|(to, _)| *to != from) {
            let (there, here) = connected(dialler, dialled).await;
            assert_eq!(there.peer().peer, Some(dialled.identity()), "{from} -> {to}");
            assert_eq!(here.peer().peer, Some(dialler.identity()), "{from} -> {to}");
            assert_eq!(here.peer().peer, Some(cluster.identity(u32::try_from(from).expect("few") + 1)));
            assert_eq!(there.peer().address, dialled.local_addr());
            // Either side opens streams.
            for (opener, other) in [(&there, &here), (&here, &there)] {
                let (mut near, mut far) = stream(opener, other, "hello").await;
                say(&mut far, "welcome", &[Bytes::from_static(b"body")]).await;
                assert_eq!(heard(&mut near).await, ("welcome".to_owned(), Bytes::from_static(b"body")));
            }
        }
    }
}

#[tokio::test]
async fn host_names_are_resolved() {
    let cluster = cluster(1);
    let (one, two) = (cluster.peer(1), cluster.peer(2));
    // The resolver may name the newer kind of address first, which this socket can't reach: the next one is tried.
    let name = format!("localhost:{}", two.local_addr().port());
    let connection = within(one.dial(&name)).await.expect("let in");
    assert_eq!(connection.peer().peer, Some(two.identity()));
}

#[tokio::test]
async fn a_close_is_heard_with_its_reason() {
    let cluster = cluster(1);
    let (one, two) = (cluster.peer(1), cluster.peer(2));
    let (there, here) = connected(&one, &two).await;
    let address = address(&two);
    within(two.close(602, "shutting down")).await;
    assert!(within(two.accept()).await.is_none());
    assert!(within(here.closed()).await.is_clean());
    assert_eq!(
        within(there.closed()).await.to_string(),
        "the peer closed the connection (code 602): shutting down"
    );
    within(one.close(0, "")).await;
    assert_eq!(within(one.dial(&address)).await.expect_err("closed"), DialError::Closed);
}

#[tokio::test]
async fn dropping_every_handle_ends_a_connection() {
    let cluster = cluster(1);
    let (one, two) = (cluster.peer(1), cluster.peer(2));
    let (there, here) = connected(&one, &two).await;
    assert_eq!(two.connections(), 1);
    drop(there);
    assert!(within(here.closed()).await.is_clean());
    drop(here);
    assert_eq!(two.connections(), 0);
}

/// Streams that nobody reads take up windows, but not those of others: heartbeats and large frames alike get through.
#[tokio::test]
async fn unread_streams_hold_up_no_others() {
    const WINDOW_BYTES: u32 = 64 << 10;
    let defaults = PeerLimits::default().net;
    let streams = defaults.connection_window_bytes / defaults.stream_window_bytes;
    assert_eq!(streams, 32);
    // What is left must be more than the eighth of a window that quinn does not tell of.
    let unread_streams = streams - streams / 8 - 1;
    assert_eq!(defaults.send_window_bytes, u64::from(defaults.connection_window_bytes));
    let net = NetLimits {
        stream_window_bytes: WINDOW_BYTES,
        connection_window_bytes: WINDOW_BYTES * streams,
        send_window_bytes: u64::from(WINDOW_BYTES * streams),
        ..patient().net
    };
    let limits = PeerLimits { net, ..patient() };
    let cluster = cluster(1);
    let (one, two) = (cluster.limited_peer(1, limits.clone()), cluster.limited_peer(2, limits));
    let (there, here) = connected(&one, &two).await;

    let mut unread = Vec::new();
    for _ in 0..unread_streams {
        let (mut near, far) = stream(&there, &here, "bulk").await;
        let large = Bytes::from(vec![7; 1 << 20]);
        let stuck = tokio::spawn(async move { near.writer.send(&"large".to_owned(), &[large]).await });
        unread.push((stuck, far));
    }
    let (mut near, mut far) = stream(&there, &here, "heartbeats").await;
    for beat in 0..100 {
        say(&mut near, &beat.to_string(), &[]).await;
        assert_eq!(heard(&mut far).await.0, beat.to_string());
    }
    // What is larger than all windows together moves too, as it is read.
    let large = Bytes::from(vec![9; 4 << 20]);
    let ((), received) = tokio::join!(say(&mut near, "large", std::slice::from_ref(&large)), heard(&mut far));
    assert_eq!(received.1, large);
    assert!(unread.iter().all(|(stuck, _)| !stuck.is_finished()), "the others wait for who reads them");
    for (stuck, mut far) in unread {
        assert_eq!(heard(&mut far).await.1.len(), 1 << 20);
        within(stuck).await.expect("no panic").expect("sent");
    }
}

#[tokio::test]
async fn a_stream_of_large_frames_has_the_windows_of_clients_and_more() {
    let (peers, clients) = (PeerLimits::default().net, NetLimits::default());
    assert!(peers.stream_window_bytes >= clients.stream_window_bytes);
    assert!(peers.connection_window_bytes >= clients.connection_window_bytes);
    assert!(peers.send_window_bytes >= clients.send_window_bytes);
    assert!(peers.frames.frame_bytes_max > 16 << 20, "an entry of 16 MiB and its surroundings");

    let cluster = cluster(1);
    let (one, two) = (cluster.peer(1), cluster.peer(2));
    let (there, here) = connected(&one, &two).await;
    let (mut near, mut far) = stream(&there, &here, "entries").await;
    let frame = Bytes::from(vec![5; 1 << 20]);
    // What the windows take is written without anybody reading: a joiner's, on which the connection began, would not do.
    for number in 0..7 {
        say(&mut near, &number.to_string(), std::slice::from_ref(&frame)).await;
    }
    let entry = Bytes::from(vec![6; 16 << 20]);
    let writing = async {
        for number in 7..64 {
            say(&mut near, &number.to_string(), std::slice::from_ref(&frame)).await;
        }
        near.writer.send(&"entry".to_owned(), std::slice::from_ref(&entry)).await.expect("sent");
    };
    let reading = async {
        for number in 0..64 {
            let (name, payload) = heard(&mut far).await;
            assert_eq!((name, payload.len()), (number.to_string(), 1 << 20));
        }
        assert_eq!(heard(&mut far).await, ("entry".to_owned(), entry.clone()));
    };
    tokio::time::timeout(Duration::from_secs(60), async { tokio::join!(writing, reading) })
        .await
        .expect("it moves");
}

#[tokio::test]
async fn a_renewed_certificate_is_shown_from_the_next_handshake_on_and_connections_stay() {
    let cluster = cluster(1);
    let (one, two) = (cluster.peer(1), cluster.peer(2));
    let (there, here) = connected(&one, &two).await;
    // As after a year: it counts to the second in which it was made.
    let expired = cluster.tls_living(2, Duration::ZERO);
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    two.renew(&expired).expect("it reads");
    let refused = within(one.dial(&address(&two))).await.expect_err("it is shown to those who dial");
    assert!(matches!(refused, DialError::Stranger { .. }), "{refused}");
    let refused = within(two.dial(&address(&one))).await.expect_err("and where it dials");
    assert!(matches!(refused, DialError::NotAccepted { .. }), "{refused}");

    two.renew(&cluster.tls(2)).expect("it reads");
    connected(&one, &two).await;
    connected(&two, &one).await;
    let (mut near, mut far) = stream(&there, &here, "still there").await;
    say(&mut far, "yes", &[]).await;
    assert_eq!(heard(&mut near).await.0, "yes");

    let error = two.renew(&cluster.tls(1)).expect_err("another broker's");
    assert!(error.to_string().contains("broker 1 of"), "{error}");
    connected(&one, &two).await;
}
