//! Under `durability = "replicated"` a machine that lost power is told from a process that was killed.

use std::path::Path;
use std::sync::Arc;

use tidemill_protocol::Timestamp;
use tidemill_server::{Broker, BrokerConfig, DurabilitySetting, Machine, StartError, WalSettings};

fn booted(boot: u8) -> Machine {
    let clock = Arc::new(|| Timestamp::new(1_700_000_000_000));
    Machine { clock, boot_id: Some([boot; 16]) }
}

fn config(data_dir: &Path, durability: DurabilitySetting) -> BrokerConfig {
    let mut config = BrokerConfig {
        data_dir: data_dir.to_owned(),
        listen: ([127, 0, 0, 1], 0).into(),
        shards: Some(1),
        durability: Some(durability),
        wal: WalSettings { segment_bytes: 4 << 20, bytes_max: 16 << 20, ..WalSettings::default() },
        ..BrokerConfig::default()
    };
    config.storage.disk_reserve_bytes = 0;
    config.storage.disk_free_min_bytes = 0;
    config
}

/// What the kernel has of a running broker's directory: what the next one finds after this one is killed.
fn killed(running: &Path) -> tempfile::TempDir {
    fn copy(from: &Path, to: &Path) {
        for entry in std::fs::read_dir(from).expect("a directory") {
            let entry = entry.expect("an entry");
            let target = to.join(entry.file_name());
            if entry.path().is_dir() {
                std::fs::create_dir(&target).expect("made");
                copy(&entry.path(), &target);
            } else {
                std::fs::copy(entry.path(), target).expect("copied");
            }
        }
    }
    let copied = tempfile::tempdir().expect("a directory");
    copy(running, copied.path());
    copied
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_after_a_power_loss_is_refused_and_names_the_override() {
    let home = tempfile::tempdir().expect("a directory");
    let replicated = |dir: &Path| config(dir, DurabilitySetting::Replicated);
    let broker = Broker::start_on(replicated(home.path()), booted(1)).await.expect("starts");
    let (same_boot, next_boot) = (killed(home.path()), killed(home.path()));

    let again = Broker::start_on(replicated(same_boot.path()), booted(1)).await.expect("only killed");
    again.shutdown("enough").await;

    let Err(error) = Broker::start_on(replicated(next_boot.path()), booted(2)).await else {
        panic!("what was acknowledged may be lost");
    };
    assert!(matches!(error, StartError::Replica(_)), "{error:?}");
    let said = error.to_string();
    assert!(said.contains("lost power") && said.contains("--accept-data-loss"), "{said}");
    // Still, until somebody decides.
    assert!(Broker::start_on(replicated(next_boot.path()), booted(2)).await.is_err());
    let accepting = BrokerConfig { accept_data_loss: true, ..replicated(next_boot.path()) };
    Broker::start_on(accepting, booted(2)).await.expect("as told").shutdown("enough").await;
    let after =
        Broker::start_on(replicated(next_boot.path()), booted(3)).await.expect("it had stopped cleanly");
    after.shutdown("enough").await;
    broker.shutdown("enough").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_fsync_a_power_loss_is_nothing_to_ask_about() {
    let home = tempfile::tempdir().expect("a directory");
    let fsync = |dir: &Path| config(dir, DurabilitySetting::Fsync);
    let broker = Broker::start_on(fsync(home.path()), booted(1)).await.expect("starts");
    let next_boot = killed(home.path());
    let again = Broker::start_on(fsync(next_boot.path()), booted(2)).await.expect("nothing is lost");
    again.shutdown("enough").await;
    broker.shutdown("enough").await;
}
