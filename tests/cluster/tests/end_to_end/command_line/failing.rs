//! How commands fail: the exit code says which kind it is, the words say what to do.

use serde_json::Value;
use tidemill_cluster_tests::{BrokerOptions, Outcome, TestBroker};

use super::terminal::Terminal;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_exit_code_says_which_kind_of_error_it_is() -> Outcome<()> {
    let terminal = Terminal::new().await?;
    terminal.done("topic create t --partitions 2").await?;
    for (line, code, fragment) in [
        // What stands on the command line, or in what is read.
        ("produce", 2, "<TOPIC>"),
        ("produce t --format json --key-separator :", 2, "--key-separator"),
        ("produce t --format json --value-field-key id", 2, "--value-field-key"),
        ("produce t --key-separator=", 2, "--key-separator"),
        ("produce t --partition 0 --routed", 2, "--routed"),
        ("produce t --file nowhere.txt", 2, "nowhere.txt"),
        ("produce t --batch-bytes 1", 2, "batch_bytes"),
        ("produce t --batch-bytes lots", 2, "64KiB"),
        ("consume t --from yesterday", 2, "earliest"),
        ("consume t --set a=b", 2, "--filter"),
        ("topic create new --retention soon", 2, "7d"),
        ("nothing", 2, "unrecognized"),
        ("produce t --header y", 2, "NAME=VALUE"),
        ("topic list --address 127.0.0.1:port", 2, "HOST:PORT"),
        ("topic list --address 127.0.0.1:99999", 2, "65535"),
        ("topic list --address=", 2, "empty address"),
        ("topic list --ca nowhere.pem", 2, "nowhere.pem"),
        ("cluster init --dir plan --broker 1..3", 2, "one by one"),
        ("server --set durability=Fsync", 2, "fsync nor replicated"),
        ("server --listen localhost:9777", 2, "127.0.0.1:9630"),
        ("server --data-dir new --cluster nowhere", 2, "nowhere"),
        ("deploy consumer c --plugin p", 2, "--topic"),
        // No broker.
        ("topic list --address 127.0.0.1:9", 3, "tidemill dev"),
        ("consume t --address 127.0.0.1:9", 3, "127.0.0.1:9"),
        // What is asked for is not there.
        ("produce nowhere", 4, "'nowhere'"),
        ("produce nowhere --routed", 4, "UNKNOWN_TOPIC"),
        ("consume nowhere", 4, "'nowhere'"),
        ("consume nowhere --group g", 4, "UNKNOWN_TOPIC"),
        ("consume t --partition 7", 4, "no partition 7"),
        ("consume t --filter nothing", 4, "nothing"),
        ("bench consume --topic nowhere", 4, "'nowhere'"),
        ("topic describe nowhere", 4, "tidemill topic list"),
        ("topic create new --with nowhere", 4, "nowhere"),
        ("group describe nobody", 4, "tidemill group list"),
        ("plugin describe nothing", 4, "tidemill plugin list"),
        ("deployment describe nothing", 4, "tidemill deployment list"),
        ("deploy filter f --plugin nothing", 4, "nothing"),
        // Everything else.
        ("topic create t", 1, "TOPIC_EXISTS"),
        ("consume t --from 99 --partition 0", 1, "OFFSET_OUT_OF_RANGE"),
        ("consume t --from 99", 1, "--partition N"),
    ] {
        let said = terminal.fails(line, code).await?;
        assert!(said.contains(fragment), "{line} says {said}");
    }
    let ran = terminal.tidemill(&["produce", "t", "--partition", "7"], "x\n").await?;
    assert!(
        ran.code == 4 && ran.stderr.contains("line 1: ") && ran.stderr.contains("no partition 7"),
        "{ran:?}"
    );
    Ok(())
}

/// The authority of a data directory that was made anew has the old one's name, and another key.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_authority_is_no_sign_of_another_program() -> Outcome<()> {
    let terminal = Terminal::new().await?;
    let other = TestBroker::start(BrokerOptions::default()).await?;
    let said = terminal.fails(&format!("topic list --ca {}", other.authority().display()), 3).await?;
    assert!(said.contains("is not trusted") && said.contains("new tls/ca.pem"), "{said}");
    Ok(())
}

/// A command that asks for a document gets one, whatever else happens in it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn completions_are_scripts_or_documents() -> Outcome<()> {
    let terminal = Terminal::new().await?;
    let script = terminal.done("completions bash").await?;
    assert!(script.contains("_tidemill"), "{script}");
    let document: Value = terminal.json("completions bash").await?;
    assert_eq!(document["script"], script);
    Ok(())
}
