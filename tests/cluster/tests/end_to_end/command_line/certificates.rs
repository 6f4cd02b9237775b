//! The recipe of docs/operations.md for clients with certificates, as it stands there.

use std::path::Path;

use tidemill_cluster_tests::{BrokerOptions, Outcome, TestBroker, tidemill_binary};
use tokio::process::Command;

use super::terminal::{Ran, at_home, run};
use tidemill_cluster_tests::machine::unable;

/// The first block of commands of the section.
fn recipe() -> String {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/operations.md");
    let page = std::fs::read_to_string(page).expect("the page");
    let (_, section) = page.split_once("### Clients with certificates").expect("the section");
    let (_, rest) = section.split_once("```sh\n").expect("a block");
    rest.split_once("```").expect("its end").0.to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_with_a_certificate_is_served_and_others_are_told_what_to_do() -> Outcome<()> {
    let home = tempfile::tempdir()?;
    if Command::new("openssl").arg("version").output().await.is_err() {
        unable(&["openssl"], "the recipe's certificates are made with openssl, which is not here");
        return Ok(());
    }
    let mut shell = Command::new("sh");
    shell.args(["-e", "-c", &recipe()]).current_dir(home.path());
    run(&mut shell, b"").await?.succeeded("the recipe")?;
    let authority = home.path().join("clients-ca.pem");
    let broker = TestBroker::start(BrokerOptions::default().set("client_ca", authority.display())).await?;
    let broker_authority = broker.authority().display().to_string();
    let tidemill = async |arguments: &[&str]| -> Outcome<Ran> {
        let mut command = Command::new(tidemill_binary()?);
        at_home(&mut command, home.path());
        run(command.args(arguments), b"").await
    };
    let address = broker.address().to_string();
    let reach = ["--address", &address, "--ca", &broker_authority];
    let mine = ["--certificate", "billing.pem", "--certificate-key", "billing.key"];
    tidemill(&[&["topic", "create", "t"], &reach[..], &mine].concat()).await?.succeeded("a certificate")?;
    tidemill(&[&["context", "save", "prod"], &reach[..], &mine].concat()).await?.succeeded("saving")?;
    assert!(tidemill(&["topic", "list"]).await?.succeeded("the saved one")?.contains('t'));

    let nothing = tidemill(&[&["topic", "list"], &reach[..]].concat()).await?;
    assert_eq!(nothing.code, 3, "{nothing:?}");
    assert!(nothing.stderr.contains("UNAUTHENTICATED"), "{nothing:?}");
    assert!(nothing.stderr.contains("--certificate-key"), "{nothing:?}");
    // The wrong authority for the broker.
    let other = ["topic", "list", "--address", &address, "--ca", "clients-ca.pem"];
    let untrusted = tidemill(&[&other[..], &mine].concat()).await?;
    assert!(untrusted.code == 3 && untrusted.stderr.contains("is not trusted"), "{untrusted:?}");
    assert!(untrusted.stderr.contains("--ca"), "{untrusted:?}");
    Ok(())
}
