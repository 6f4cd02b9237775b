//! The example at the top of the client's documentation, as it stands there.

use tidemill_cluster_tests::Outcome;
use tokio::process::Command;

use crate::kit::{PATIENCE, broker, create};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_example_of_the_client_runs() -> Outcome<()> {
    let (broker, client) = broker().await?;
    create(&client, "plays", 3).await?;
    // The second time it reads on where the first one left off.
    for _ in 0..2 {
        let mut example = Command::new(env!("CARGO_BIN_EXE_client-example"));
        example.env("TIDEMILL_ADDRESS", broker.address().to_string()).env("TIDEMILL_CA", broker.authority());
        let output = tokio::time::timeout(PATIENCE, example.kill_on_drop(true).output()).await??;
        let printed = String::from_utf8(output.stdout)?;
        assert!(output.status.success(), "{printed}{}", String::from_utf8_lossy(&output.stderr));
        assert!(printed.starts_with("stored at Some("), "{printed}");
        assert_eq!(printed.lines().filter(|line| line.starts_with("plays-")).count(), 1_001);
        assert_eq!(printed.matches("the last one").count(), 1, "{printed}");
    }
    let committed = client.groups().positions("royalties").await?;
    assert_eq!(committed.values().map(|offset| offset.get()).sum::<i64>(), 2_002);
    Ok(())
}
