//! `tidemill server` and `tidemill dev`: where settings come from.

use serde_json::{Value, json};
use tidemill_cluster_tests::{BrokerOptions, Outcome, TestBroker};

use super::terminal::{Terminal, run};
use crate::raw::{ALPN, RawPeer};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_come_from_the_file_the_environment_and_flags() -> Outcome<()> {
    let terminal = Terminal::new().await?;
    let file = terminal.home().join("broker.toml");
    std::fs::write(&file, "broker_id = 7\nshards = 2\n[wal]\nbytes_max = 1073741824\n")?;
    let print = async |variables: &[(&str, &str)], line: &str| {
        let mut command = terminal.command()?;
        command.envs(variables.iter().copied()).args(line.split_whitespace());
        run(&mut command, b"").await
    };
    let environment = [("TIDEMILL_SHARDS", "3"), ("TIDEMILL_WAL__BYTES_MAX", "536870912")];
    let line = "server --print-config --json --config broker.toml --set shards=5 --set advertise=a:1,b:2 --set tls_names=c";
    let ran = print(&environment, line).await?;
    let config: Value = serde_json::from_str(&ran.succeeded(line)?)?;
    assert_eq!((&config["broker_id"], &config["shards"]), (&json!(7), &json!(5)));
    assert_eq!(config["wal"]["bytes_max"], 512 << 20);
    assert_eq!((&config["advertise"], &config["tls_names"]), (&json!(["a:1", "b:2"]), &json!(["c"])));
    let line = "server --print-config --join secret";
    let text = print(&[], line).await?.succeeded(line)?;
    assert!(text.contains("join = \"(set)\"") && !text.contains("secret"), "{text}");
    let line = "server --print-config --advertise a:1 --advertise b:2";
    let text = print(&[("TIDEMILL_TLS_NAMES", "c,d")], line).await?.succeeded(line)?;
    assert!(
        text.contains("advertise = [\"a:1\", \"b:2\"]") && text.contains("tls_names = [\"c\", \"d\"]"),
        "{text}"
    );

    let said = async |variable: &str| -> Outcome<String> {
        let ran = print(&[(variable, "1")], "dev").await?;
        assert_eq!(ran.code, 2, "{ran:?}");
        Ok(ran.stderr)
    };
    assert!(said("TIDEMILL_SHRADS").await?.contains("TIDEMILL_SHARDS"));
    assert!(said("TIDEMILL_WAL__NOTHING").await?.contains("names no setting"));
    assert!(said("TIDEMILL_LISTEN").await?.contains("listen"));
    let beyond = print(&[("TIDEMILL_LISTEN", "0.0.0.0:0")], "dev").await?;
    assert!(beyond.code == 2 && beyond.stderr.contains("--insecure"), "{beyond:?}");
    let port = terminal.broker.address().port();
    let taken = print(&[], &format!("dev --port {port}")).await?;
    assert!(taken.code == 1 && taken.stderr.contains("choose another port with --port"), "{taken:?}");
    assert!(!taken.stderr.contains("--listen"), "{taken:?}");
    Ok(())
}

/// A list that is given as one text is several names: the certificate is for each of them, and for no other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_of_names_reach_the_certificate() -> Outcome<()> {
    let options =
        BrokerOptions::default().set("tls_names", "log1,log1.example").set("advertise", "log2:1, log3:1");
    let broker = TestBroker::start(options).await?;
    for name in ["localhost", "log1", "log1.example", "log2", "log3"] {
        RawPeer::connect_by_name(&broker, ALPN, name).await.map_err(|error| format!("{name}: {error}"))?;
    }
    assert!(RawPeer::connect_by_name(&broker, ALPN, "log4").await.is_err());
    Ok(())
}
