//! `tidemill context`: saved connections, and what counts where several are given.

use serde_json::{Value, json};
use tidemill_cluster_tests::Outcome;

use super::terminal::{Ran, Terminal, run};

/// Without the environment that names the broker.
async fn plain(terminal: &Terminal, line: &str) -> Outcome<Ran> {
    let mut command = terminal.command()?;
    command.env_remove("TIDEMILL_ADDRESS").env_remove("TIDEMILL_CA").args(line.split_whitespace());
    run(&mut command, b"").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_are_saved_chosen_and_forgotten() -> Outcome<()> {
    let terminal = Terminal::new().await?;
    terminal.done("topic create here").await?;
    let (address, ca) = (terminal.broker.address(), terminal.broker.authority().display());
    let done = async |line: &str| plain(&terminal, line).await?.succeeded(line);
    let json = async |line: &str| -> Outcome<Value> {
        Ok(serde_json::from_str(&done(&format!("{line} --json")).await?)?)
    };

    assert_eq!(json("context list").await?, json!({ "current": null, "contexts": {} }));
    let said = done(&format!("context save test --address {address} --ca {ca}")).await?;
    assert_eq!(said, format!("saved context test: {address}; it is used where none is named\n"));
    // The first one is used where none is named.
    assert!(done("topic list").await?.contains("here"));
    let saved = json("context save elsewhere --address 127.0.0.1:9,127.0.0.1:8").await?;
    assert_eq!(saved["saved"], "elsewhere");
    assert_eq!(saved["context"]["addresses"], json!(["127.0.0.1:9", "127.0.0.1:8"]));
    let said = done("context use elsewhere").await?;
    assert_eq!(said, "context elsewhere is used where none is named\n");
    assert_eq!(json("context list").await?["current"], "elsewhere");
    assert!(done("context list").await?.contains("127.0.0.1:9,127.0.0.1:8"));
    assert!(done("--context test topic list").await?.contains("here"), "named, it counts");
    assert_eq!(json("context use test").await?, json!({ "current": "test" }));
    let mut unset = terminal.command()?;
    unset.env_remove("TIDEMILL_ADDRESS").env_remove("TIDEMILL_CA").env("TIDEMILL_CONTEXT", "");
    assert!(run(unset.args(["topic", "list"]), b"").await?.succeeded("set to nothing")?.contains("here"));

    // A host that is not known, and whose address it is.
    let saved = json("context save gone --address nowhere.invalid").await?;
    assert_eq!(saved["context"]["addresses"], json!(["nowhere.invalid:9630"]));
    let ran = plain(&terminal, "--context gone topic list").await?;
    assert!(ran.code == 3 && ran.stderr.contains("nowhere.invalid:9630: the host is not known"), "{ran:?}");
    assert!(ran.stderr.contains("context 'gone'") && ran.stderr.contains("tidemill context list"), "{ran:?}");
    done("context delete gone").await?;

    for unknown in ["context use nobody", "context delete nobody", "--context nobody topic list"] {
        let ran = plain(&terminal, unknown).await?;
        assert!(ran.code == 2 && ran.stderr.contains("'nobody'"), "{unknown}: {ran:?}");
    }
    assert_eq!(plain(&terminal, "context save nothing").await?.code, 2, "say which broker");
    assert_eq!(json("context delete elsewhere").await?, json!({ "deleted": "elsewhere" }));
    assert_eq!(done("context delete test").await?, "deleted context test\n");
    assert_eq!(json("context list").await?, json!({ "current": null, "contexts": {} }));
    Ok(())
}

/// Paths of a saved connection mean the same from everywhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relative_path_is_kept_as_what_it_meant() -> Outcome<()> {
    let terminal = Terminal::new().await?;
    std::fs::copy(terminal.broker.authority(), terminal.home().join("ca.pem"))?;
    let address = terminal.broker.address();
    plain(&terminal, &format!("context save test --address {address} --ca ca.pem"))
        .await?
        .succeeded("save")?;
    let mut command = terminal.command()?;
    command.env_remove("TIDEMILL_ADDRESS").env_remove("TIDEMILL_CA").current_dir("/");
    let ran = run(command.args(["status", "--json"]), b"").await?;
    assert_eq!(ran.code, 0, "{ran:?}");
    Ok(())
}
