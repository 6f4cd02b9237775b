//! A peer that is gone without a word.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tidemill_net::{ConnectionLost, NetLimits, PeerEndpoint, PeerLimits};
use tokio::net::UdpSocket;
use tokio::sync::watch;

use crate::world::{cluster, loopback, patient, within};

/// Passes packets between one dialler and the endpoint of the moment, or swallows them where there is none.
async fn relay(front: UdpSocket, to: watch::Receiver<Option<SocketAddr>>) {
    let back = UdpSocket::bind(loopback()).await.expect("a socket");
    let (mut packet, mut answer) = (vec![0; 65_536], vec![0; 65_536]);
    let mut dialler = None;
    loop {
        tokio::select! {
            Ok((length, from)) = front.recv_from(&mut packet) => {
                dialler = Some(from);
                let to = *to.borrow();
                if let Some(to) = to {
                    let _ = back.send_to(&packet[..length], to).await;
                }
            }
            Ok((length, from)) = back.recv_from(&mut answer) => {
                if *to.borrow() == Some(from) {
                    let _ = front.send_to(&answer[..length], dialler.expect("asked before answered")).await;
                }
            }
        }
    }
}

/// A relay's address, and where to say what it leads to.
async fn through_relay(to: &PeerEndpoint) -> (String, watch::Sender<Option<SocketAddr>>) {
    let front = UdpSocket::bind(loopback()).await.expect("a socket");
    let address = front.local_addr().expect("bound").to_string();
    let (switch, leads_to) = watch::channel(Some(to.local_addr()));
    tokio::spawn(relay(front, leads_to));
    (address, switch)
}

#[tokio::test]
async fn a_silent_peer_is_noticed_in_the_idle_time() {
    let idle_timeout = Duration::from_millis(1_500);
    let net = NetLimits { keep_alive: Duration::from_millis(200), idle_timeout, ..patient().net };
    let limits = PeerLimits { net, ..patient() };
    let cluster = cluster(1);
    let (one, two) = (cluster.limited_peer(1, limits.clone()), cluster.limited_peer(2, limits));
    let (address, switch) = through_relay(&two).await;
    let there = within(one.dial(&address)).await.expect("let in");
    let here = within(two.accept()).await.expect("a connection");

    // Nobody says anything, and it lives on.
    tokio::select! {
        lost = there.closed() => panic!("{lost}"),
        lost = here.closed() => panic!("{lost}"),
        () = tokio::time::sleep(2 * idle_timeout) => {}
    }
    let since = Instant::now();
    switch.send(None).expect("the relay runs");
    let (lost_there, lost_here) = within(async { tokio::join!(there.closed(), here.closed()) }).await;
    assert_eq!((lost_there, lost_here), (ConnectionLost::TimedOut, ConnectionLost::TimedOut));
    // Packets of the last keep-alive had been heard already.
    assert!(since.elapsed() + Duration::from_millis(250) >= idle_timeout, "{:?}", since.elapsed());
}

/// A peer that was started again gets packets of connections that it knows nothing of, and says so.
#[tokio::test]
async fn a_restart_is_noticed_with_the_next_packet() {
    let idle_timeout = Duration::from_secs(3600);
    let net = NetLimits { idle_timeout, ..patient().net };
    let limits = PeerLimits { net, ..patient() };
    let cluster = cluster(1);
    let one = cluster.limited_peer(1, limits.clone());
    // Two lives of one broker: each has a fresh certificate, and both the same key.
    let (before, after) = (cluster.limited_peer(2, limits.clone()), cluster.limited_peer(2, limits));
    let (address, switch) = through_relay(&before).await;
    let there = within(one.dial(&address)).await.expect("let in");
    switch.send(Some(after.local_addr())).expect("the relay runs");
    // The next keep-alive will do.
    let lost = within(there.closed()).await;
    assert!(matches!(&lost, ConnectionLost::Failed(why) if why.contains("reset")), "{lost}");
    let again = within(one.dial(&address)).await.expect("let in");
    assert_eq!(again.peer().peer, Some(after.identity()));
}

#[test]
fn a_dead_peer_is_noticed_in_two_seconds_by_default() {
    let net = PeerLimits::default().net;
    assert_eq!((net.keep_alive, net.idle_timeout), (Duration::from_millis(500), Duration::from_secs(2)));
}
