//! Who is no broker of the cluster is told so, at both ends.

use std::time::Duration;

use tidemill_client::messages::Error;
use tidemill_client::{BrokerId, Client, ErrorCode};
use tidemill_cluster_tests::metrics::metric;
use tidemill_cluster_tests::waiting::eventually;
use tidemill_cluster_tests::{BrokerOptions, Outcome, TestBroker, TestCluster, WorldError};
use tidemill_net::{
    ClusterCa, Connection, ConnectionLost, PeerEndpoint, PeerLimits, PeerNetConfig, PeerTls, dial_to_join,
};
use tidemill_protocol::ClusterId;
use tokio::time::timeout;

/// Longer than a broker takes to dial its seeds a few times.
const PATIENCE: Duration = Duration::from_secs(60);
/// What both say of a certificate that another authority signed.
const SIGNED_ELSEWHERE: &str = "it was not signed by the authority that is trusted";

/// Whether one line of a broker's log says all of this.
fn says(broker: &TestBroker, words: &[&str]) -> Option<()> {
    let log = broker.log_text().ok()?;
    log.lines().any(|line| words.iter().all(|word| line.contains(word))).then_some(())
}

/// Whether a broker has counted anything in this series.
async fn has_counted(client: &Client, series: &str) -> Option<()> {
    let metrics = client.metrics().await.ok()?;
    let values = metrics.lines().filter_map(|line| line.strip_prefix(series)?.trim().parse::<f64>().ok());
    (values.sum::<f64>() > 0.0).then_some(())
}

/// The first frame of a connection between brokers, as far as it is said here.
#[derive(Clone, PartialEq, prost::Message)]
struct Open {
    #[prost(message, optional, tag = "1")]
    hello: Option<Hello>,
    #[prost(message, optional, tag = "6")]
    join: Option<Join>,
}

/// Which versions of the brokers' protocol a broker speaks.
#[derive(Clone, PartialEq, prost::Message)]
struct Hello {
    #[prost(uint32, tag = "1")]
    protocol_min: u32,
    #[prost(uint32, tag = "2")]
    protocol_max: u32,
    #[prost(string, tag = "6")]
    software: String,
}

/// The same of one that is about to join.
#[derive(Clone, PartialEq, prost::Message)]
struct Join {
    #[prost(uint32, tag = "1")]
    protocol_min: u32,
    #[prost(uint32, tag = "2")]
    protocol_max: u32,
    #[prost(string, tag = "7")]
    software: String,
}

/// What a hello, and who joins, is answered where it is refused.
#[derive(Clone, PartialEq, prost::Message)]
struct Answer {
    #[prost(message, optional, tag = "1")]
    error: Option<Error>,
}

/// Those of a broker, but for what waits for a machine that is busy with other things.
fn patient() -> PeerLimits {
    PeerLimits { dial_timeout: PATIENCE, ..PeerLimits::default() }
}

/// The authority that the plan came with.
fn authority_of(cluster: &TestCluster) -> Outcome<ClusterCa> {
    Ok(ClusterCa::open(cluster.directory().join("cluster"))?)
}

/// Has a certificate as a broker of the cluster, and says what a test wants.
async fn peer_of(cluster: &TestCluster, client: &Client, broker: u32) -> Outcome<PeerEndpoint> {
    let status = client.cluster_status().await?;
    let id = ClusterId::from_slice(&status.cluster_id).ok_or("a cluster's id has 16 bytes")?;
    let authority = authority_of(cluster)?;
    let files = authority.issue_peer(id, BrokerId::new(broker), cluster.directory().join("peer"))?;
    let tls = PeerTls::new(files, &authority);
    Ok(PeerEndpoint::bind(PeerNetConfig { listen: ([127, 0, 0, 1], 0).into(), tls, limits: patient() })?)
}

/// Begins a connection with this, and answers the error that it must come to.
async fn refusal_of(connection: &Connection, open: &Open) -> Outcome<Error> {
    let mut stream = connection.open_stream().await?;
    stream.writer.send(open, &[]).await?;
    stream.writer.finish().await?;
    let answer = timeout(PATIENCE, stream.reader.next()).await??.ok_or("an answer")?;
    let Answer { error } = answer.message()?;
    Ok(error.ok_or("it should be refused")?)
}

/// The reason with which the other side closes a connection as one of a peer that is refused, which it must.
async fn closing_reason(connection: &Connection) -> Outcome<String> {
    match timeout(PATIENCE, connection.closed()).await? {
        ConnectionLost::ClosedByPeer { code, reason } if code == u64::from(ErrorCode::PeerRefused.code()) => {
            Ok(reason)
        }
        other => Err(format!("it should be closed as one that is refused: {other}").into()),
    }
}

/// Refuses each hello, as a broker does that speaks newer versions alone.
async fn refuse_hellos(newer: PeerEndpoint, why: &'static str) {
    while let Some(connection) = newer.accept().await {
        let Ok(Some(mut stream)) = connection.accept_stream().await else { continue };
        let Ok(Some(_hello)) = stream.reader.next().await else { continue };
        let answer = Answer { error: Some(Error::new(ErrorCode::PeerRefused, why)) };
        if stream.writer.send(&answer, &[]).await.is_ok() && stream.writer.finish().await.is_ok() {
            // Who dialled hears why, and closes it.
            connection.closed().await;
        }
    }
}

/// A broker of another cluster has another authority, and so no certificate that counts here.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_of_another_cluster_is_refused_with_the_reason_at_both_ends() -> Outcome<()> {
    let cluster = TestCluster::start(1, 1, BrokerOptions::default()).await?;
    let seed = cluster.peer_address(1);
    let mut stranger = TestBroker::start(BrokerOptions::default().set("broker_id", 2)).await?;
    stranger.stop().await?;
    stranger.set("peers.seeds", &seed);
    stranger.restart().await?;
    // Who dials looks at the other's certificate first, and tells it that this will not do.
    let here = &cluster.brokers()[0];
    let turned_away = ["turned a peer away: it does not accept this broker's certificate", SIGNED_ELSEWHERE];
    eventually("the seed says why", PATIENCE, async || says(here, &turned_away)).await?;
    let client = cluster.client()?;
    let refused = r#"tidemill_peer_refused_total{reason="not_accepted"}"#;
    eventually("the seed counts it", PATIENCE, async || has_counted(&client, refused).await).await?;

    let in_vain = ["no seed answers", "is not of this cluster", SIGNED_ELSEWHERE];
    eventually("the stranger says why", PATIENCE, async || says(&stranger, &in_vain)).await?;
    let client = stranger.client().await?;
    let failed = r#"tidemill_peer_failed_dials_total{reason="stranger"}"#;
    eventually("the stranger counts it", PATIENCE, async || has_counted(&client, failed).await).await?;
    Ok(())
}

/// As long as a cluster is not formed nobody is over for good: a founder that comes with another directory than it had is refused for what it
/// says of itself, hears why, and asks again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_founder_that_lost_its_directory_is_refused_at_the_hello_and_both_ends_count_it() -> Outcome<()> {
    const WHY: &str = "broker 5 came with another data directory than it had";
    // Two of five are no majority.
    let cluster = TestCluster::planned(5, 1, BrokerOptions::default(), None).await?;
    let here = TestBroker::start(cluster.options_of(4)).await?;
    let mut stranger = TestBroker::start(cluster.options_of(5)).await?;
    let client = here.client().await?;
    let connected = r#"tidemill_peer_connected{broker="5"}"#;
    eventually("they meet", PATIENCE, async || has_counted(&client, connected).await).await?;

    stranger.kill().await?;
    std::fs::remove_dir_all(stranger.data_dir())?;
    stranger.restart().await?;
    eventually("who refuses says why", PATIENCE, async || says(&here, &[WHY])).await?;
    let refused = r#"tidemill_peer_refused_total{reason="hello"}"#;
    eventually("who refuses counts it", PATIENCE, async || has_counted(&client, refused).await).await?;

    let in_vain = ["refuses this one", WHY];
    eventually("the refused one says why", PATIENCE, async || says(&stranger, &in_vain)).await?;
    let client = stranger.client().await?;
    let failed = r#"tidemill_peer_failed_dials_total{reason="hello"}"#;
    eventually("who is refused counts it", PATIENCE, async || has_counted(&client, failed).await).await?;
    Ok(())
}

/// Brokers with no version of their protocol in common: whichever dials, and whether it is one of the cluster's or would become one, the other
/// refuses it, it hears why, and both count it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_speaks_only_newer_versions_is_refused_with_the_reason_at_both_ends() -> Outcome<()> {
    const SPEAKS: &str = "speaks versions 1000 to 1001 of the brokers' protocol";
    const TOO_OLD: &str = "it speaks only old versions of the brokers' protocol";
    let (protocol_min, protocol_max, software) = (1_000, 1_001, "tidemill/99.0".to_owned());
    let mut cluster = TestCluster::start(1, 1, BrokerOptions::default()).await?;
    let (client, address) = (cluster.client()?, cluster.peer_address(1));
    let newer = peer_of(&cluster, &client, 2).await?;

    // The newer one dials.
    let here = &cluster.brokers()[0];
    let connection = newer.dial(&address).await?;
    let hello = Hello { protocol_min, protocol_max, software: software.clone() };
    let error = refusal_of(&connection, &Open { hello: Some(hello), join: None }).await?;
    assert_eq!(error.error_code(), Some(ErrorCode::PeerRefused), "{error}");
    let is_told = |text: &str| text.contains(SPEAKS) && text.contains("(tidemill/99.0), and this broker ");
    assert!(is_told(&error.message), "{error}");
    let reason = closing_reason(&connection).await?;
    assert!(is_told(&reason), "{reason}");
    let why = ["refused: it ", SPEAKS];
    eventually("who refuses says why", PATIENCE, async || says(here, &why)).await?;
    let refused = r#"tidemill_peer_refused_total{reason="hello"}"#;
    eventually("who refuses counts it", PATIENCE, async || has_counted(&client, refused).await).await?;

    // A newer one that has no certificate yet.
    let connection = dial_to_join(&address, authority_of(&cluster)?.fingerprint(), &patient()).await?;
    let join = Join { protocol_min, protocol_max, software };
    let error = refusal_of(&connection, &Open { hello: None, join: Some(join) }).await?;
    assert_eq!(error.error_code(), Some(ErrorCode::PeerRefused), "{error}");
    assert!(error.message.contains(SPEAKS) && error.message.contains("this cluster "), "{error}");
    let why = ["refused: tidemill/99.0 ", SPEAKS];
    eventually("who takes nobody in says why", PATIENCE, async || says(here, &why)).await?;
    let refused = r#"tidemill_peer_refused_total{reason="join"}"#;
    eventually("and counts it", PATIENCE, async || has_counted(&client, refused).await).await?;

    // The newer one is dialled.
    let seed = newer.local_addr();
    tokio::spawn(refuse_hellos(newer, TOO_OLD));
    cluster.broker(1).stop().await?;
    cluster.broker(1).set("peers.seeds", seed);
    cluster.broker(1).restart().await?;
    let here = &cluster.brokers()[0];
    let in_vain = ["no seed answers", "refuses this one", TOO_OLD];
    eventually("the refused one says why", PATIENCE, async || says(here, &in_vain)).await?;
    let failed = r#"tidemill_peer_failed_dials_total{reason="hello"}"#;
    eventually("who is refused counts it", PATIENCE, async || has_counted(&client, failed).await).await?;
    Ok(())
}

/// How many were turned away for this reason.
async fn refused(client: &Client, reason: &str) -> Outcome<f64> {
    metric(client, &format!("tidemill_peer_refused_total{{reason=\"{reason}\"}}")).await
}

/// Waits until more have been silent than so many; answers how many.
async fn more_silent(client: &Client, before: f64) -> Outcome<f64> {
    let looks = async || refused(client, "silent").await.ok().filter(|now| *now > before);
    eventually("it is counted as silent", PATIENCE, looks).await
}

/// Whoever goes before it has said what it is for, with a certificate or without, was refused nothing. Who says what it may not is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_goes_before_its_hello_was_silent_and_is_counted_as_that() -> Outcome<()> {
    let cluster = TestCluster::start(1, 1, BrokerOptions::default()).await?;
    let (client, address) = (cluster.client()?, cluster.peer_address(1));
    let (here, peer) = (&cluster.brokers()[0], peer_of(&cluster, &client, 2).await?);
    let silent = refused(&client, "silent").await?;

    peer.dial(&address).await?.close(0, "never mind");
    let silent = more_silent(&client, silent).await?;
    let gone = ["refused: the connection ended before it said what it is for"];
    eventually("it is said of the first", PATIENCE, async || says(here, &gone)).await?;

    let connection = peer.dial(&address).await?;
    connection.open_stream().await?.writer.finish().await?;
    assert_eq!(closing_reason(&connection).await?, "a stream ended before it said what it is for");
    let silent = more_silent(&client, silent).await?;

    let fingerprint = authority_of(&cluster)?.fingerprint();
    dial_to_join(&address, fingerprint, &patient()).await?.close(0, "never mind");
    let silent = more_silent(&client, silent).await?;
    for reason in ["hello", "join"] {
        assert_eq!(refused(&client, reason).await?, 0.0, "nobody was refused as {reason}");
    }

    let connection = peer.dial(&address).await?;
    let mut stream = connection.open_stream().await?;
    stream.writer.send(&Open { hello: None, join: Some(Join::default()) }, &[]).await?;
    let reason = closing_reason(&connection).await?;
    assert!(reason.contains("the first stream of a connection carries the hello"), "{reason}");
    assert_eq!(refused(&client, "hello").await?, 1.0);
    assert_eq!(refused(&client, "silent").await?, silent, "it said something");
    Ok(())
}

/// A seed may be another broker that has this one's number: that is not this broker itself, and both say so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_broker_of_a_seeds_number_is_refused_as_one_with_another_directory() -> Outcome<()> {
    const WHY: &str = "broker 1 came with another data directory than it had";
    let cluster = TestCluster::planned(3, 1, BrokerOptions::default(), None).await?;
    let (here, seed) = (TestBroker::start(cluster.options_of(1)).await?, cluster.peer_address(1));
    let options = cluster
        .options_of(1)
        .directory(cluster.directory().join("twin"))
        .set("peers.listen", "127.0.0.1:0")
        .set("peers.seeds", &seed);
    let twin = TestBroker::start(options).await?;
    eventually("who refuses says why", PATIENCE, async || says(&here, &[WHY])).await?;
    let in_vain = ["no seed answers", "refuses this one", WHY];
    eventually("the refused one says why", PATIENCE, async || says(&twin, &in_vain)).await?;
    let waits = ["waiting for brokers 2 and 3 to form the cluster", seed.as_str(), WHY];
    eventually("and what it waits for", PATIENCE, async || says(&twin, &waits)).await?;
    Ok(())
}

/// A broker whose only seed is itself finds nobody: nothing says so but its log.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_names_only_itself_as_a_seed_says_so() -> Outcome<()> {
    let cluster = TestCluster::planned(3, 1, BrokerOptions::default(), None).await?;
    let own = cluster.peer_address(1);
    let lone = TestBroker::start(cluster.options_of(1).set("peers.seeds", &own)).await?;
    let every = format!("every seed ({own}) is this broker's own address");
    let told = [every.as_str(), "name another broker's peers.listen with --seed"];
    eventually("it says what is wrong", PATIENCE, async || says(&lone, &told)).await?;
    let waits = ["WARN", "waiting for brokers 2 and 3 to form the cluster", every.as_str()];
    eventually("and what it waits for", PATIENCE, async || says(&lone, &waits)).await?;
    assert!(says(&lone, &["refused: "]).is_none(), "it is no stranger to itself: {}", lone.log_tail());
    Ok(())
}

/// Tokens that are none, or nobody's, and brokers that are not in the plan.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_no_right_to_join_does_not() -> Outcome<()> {
    let mut cluster = TestCluster::start(1, 1, BrokerOptions::default()).await?;
    let client = cluster.client()?;
    cluster.settled(&client).await?;
    let refusal = |refused: WorldError| match refused {
        WorldError::Ended { log, .. } => log,
        other => panic!("{other}"),
    };
    let options = cluster.joining(2, "hello")?;
    let said = refusal(TestBroker::start(options).await.expect_err("no token"));
    assert!(said.contains("this is no join token"), "{said}");

    let forever = client.create_join_token(None, Some(Duration::from_secs(8 * 24 * 60 * 60))).await;
    let said = forever.expect_err("a token for so long").to_string();
    assert!(said.contains("CLUSTER_CHANGE_REFUSED") && said.contains("7 days"), "{said}");

    let token = client.create_join_token(Some(BrokerId::new(3)), None).await?;
    let options = cluster.joining(3, &token.token)?.set("shards", 5);
    let said = refusal(TestBroker::start(options).await.expect_err("what the cluster has fixed"));
    assert!(said.contains("shards") && said.contains("has fixed it"), "{said}");
    let options = cluster.joining(2, &token.token)?;
    let said = refusal(TestBroker::start(options).await.expect_err("another broker's token"));
    assert!(said.contains("is for broker 3"), "{said}");

    let options = BrokerOptions::default().set("broker_id", 2).set("peers.seeds", cluster.peer_address(1));
    let said = refusal(TestBroker::start(options).await.expect_err("neither token nor plan"));
    assert!(said.contains("peers.seeds names other brokers") && said.contains("--join"), "{said}");

    // A directory keeps to its cluster, whatever token is shown.
    let other = TestCluster::start(1, 1, BrokerOptions::default()).await?;
    let theirs = other.client()?.create_join_token(Some(BrokerId::new(1)), None).await?;
    cluster.broker(1).stop().await?;
    let directory = cluster.broker(1).directory().to_owned();
    let options = BrokerOptions::default().directory(directory).set("broker_id", 1).set("join", theirs.token);
    cluster.broker(1).change(options);
    let said = refusal(cluster.broker(1).restart().await.expect_err("another cluster's token"));
    assert!(said.contains("and join is of cluster"), "{said}");

    let options = cluster.options_of(1).set("broker_id", 7).directory(cluster.directory().join("broker-7"));
    let said = refusal(TestBroker::start(options).await.expect_err("not planned"));
    assert!(said.contains("not one of those that form the cluster"), "{said}");
    Ok(())
}
