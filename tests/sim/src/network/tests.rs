use super::*;

const A: NodeId = NodeId::new(BrokerId::new(1), 1);
const B: NodeId = NodeId::new(BrokerId::new(2), 1);
const SHARD: ShardId = ShardId::new(1);

/// Two nodes; what is opened to the second is handed out.
fn two_nodes() -> (SimNetwork, mpsc::UnboundedReceiver<PeerStream>) {
    let network = SimNetwork::new(1, &Trace::begin());
    let (accepted, streams) = mpsc::unbounded_channel();
    network.listen(A.broker(), Arc::new(|_, _, _| {}));
    network.listen(
        B.broker(),
        Arc::new(move |from, shard, stream| {
            assert_eq!((from, shard), (A, SHARD));
            accepted.send(stream).unwrap();
        }),
    );
    (network, streams)
}

async fn say(stream: &mut PeerStream, word: &'static str) {
    stream.sender.send(Bytes::from(word), &[]).await.unwrap();
}

async fn hear(stream: &mut PeerStream) -> Result<Option<String>, PeerError> {
    let message = stream.receiver.next().await?;
    Ok(message.map(|message| String::from_utf8(message.head.to_vec()).unwrap()))
}

#[tokio::test(start_paused = true)]
async fn messages_arrive_in_order_and_take_time() {
    let (network, mut streams) = two_nodes();
    let mut here = network.dialer(A).open(B, SHARD).await.unwrap();
    let mut there = streams.recv().await.unwrap();
    let began = Instant::now();
    for word in ["one", "two", "three"] {
        say(&mut here, word).await;
    }
    here.sender.finish().await.unwrap();
    for word in ["one", "two", "three"] {
        assert_eq!(hear(&mut there).await, Ok(Some(word.to_owned())));
    }
    assert_eq!(hear(&mut there).await, Ok(None));
    assert!(began.elapsed() >= Duration::from_millis(LATENCY_MS.start));
    say(&mut there, "back").await;
    assert_eq!(hear(&mut here).await, Ok(Some("back".to_owned())));
}

#[tokio::test(start_paused = true)]
async fn a_short_cut_delays_and_a_long_one_breaks_off() {
    let (network, mut streams) = two_nodes();
    let mut here = network.dialer(A).open(B, SHARD).await.unwrap();
    let mut there = streams.recv().await.unwrap();
    network.cut(A.broker(), B.broker());
    say(&mut here, "late").await;
    let healing = async {
        tokio::time::sleep(BROKEN_AFTER / 2).await;
        network.heal();
    };
    let began = Instant::now();
    let (heard, ()) = tokio::join!(hear(&mut there), healing);
    assert_eq!(heard, Ok(Some("late".to_owned())));
    assert_eq!(began.elapsed(), BROKEN_AFTER / 2);
    network.cut(B.broker(), A.broker());
    assert!(matches!(network.dialer(A).open(B, SHARD).await, Err(PeerError::Unreachable { .. })));
    say(&mut here, "lost").await;
    assert!(hear(&mut there).await.is_err());
    assert!(hear(&mut here).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn whoever_is_killed_is_heard_of_no_more() {
    let (network, mut streams) = two_nodes();
    let mut here = network.dialer(A).open(B, SHARD).await.unwrap();
    let there = streams.recv().await.unwrap();
    network.remove(B.broker());
    assert!(hear(&mut here).await.is_err());
    assert!(network.dialer(A).open(B, SHARD).await.is_err());
    network.listen(B.broker(), Arc::new(|_, _, _| {}));
    assert!(here.sender.send(Bytes::from("again"), &[]).await.is_err(), "it is another life");
    drop(there);
    assert!(network.dialer(A).open(B, SHARD).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_stream_dropped_without_an_end_is_an_error() {
    let (network, mut streams) = two_nodes();
    let mut here = network.dialer(A).open(B, SHARD).await.unwrap();
    drop(streams.recv().await.unwrap());
    assert!(hear(&mut here).await.is_err());
}
