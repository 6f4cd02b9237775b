//! Clusters whose acknowledgements do not wait for the disks: a killed process loses nothing, and a machine without power only its own.

use tidemill_cluster_tests::metrics::metric;
use tidemill_cluster_tests::{BrokerOptions, Outcome, TestCluster};

use crate::load::Load;
use crate::retired::{SHARDS, comes_back_anew};
use crate::wal_files::NewestFile;

/// What of the log had not come to the device when the power went.
const UNSYNCED_BLOCKS: u64 = 8;

/// Three brokers that have settled.
async fn replicated() -> Outcome<TestCluster> {
    let arguments = ["--durability", "replicated"];
    let options = BrokerOptions::default();
    let mut cluster = TestCluster::planned_with(3, SHARDS, options, None, &arguments).await?;
    cluster.start_planned(|_, options| options).await?;
    let status = cluster.settled(&cluster.client()?).await?;
    assert_eq!(status.durability, "replicated");
    Ok(cluster)
}

/// kill -9 of each broker in turn, under load. The kernel has what it had written: it is told from a loss, and nothing is retired.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_broker_loses_nothing_that_it_had_not_synced() -> Outcome<()> {
    let mut cluster = replicated().await?;
    let client = cluster.client()?;
    let mut load = Load::start(&client, "plays", 6).await?;
    for broker in 1..=3 {
        load.goes_on().await?;
        cluster.broker(broker).kill().await?;
        load.goes_on().await?;
        cluster.broker(broker).restart().await?;
        cluster.settled(&client).await?;
        let alone = cluster.broker(broker).client().await?;
        assert_eq!(metric(&alone, "tidemill_replicas_retired_total").await?, 0.0, "broker {broker}");
    }
    load.goes_on().await?;
    load.check(&client).await?;
    Ok(())
}

/// One machine loses its power, and with it what its kernel had not written yet. Its broker does not trust what is left: its replicas are
/// retired, and get everything from the others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_lost_power_comes_back_with_new_replicas() -> Outcome<()> {
    const POWERLESS: u32 = 2;
    let mut cluster = replicated().await?;
    let client = cluster.client()?;
    let mut load = Load::start(&client, "plays", 6).await?;
    let data_dir = cluster.broker(POWERLESS).data_dir();
    NewestFile::well_filled(&data_dir).await?;
    cluster.broker(POWERLESS).kill().await?;
    load.goes_on().await?;

    let newest = NewestFile::find(&data_dir)?;
    newest.change(0..1, as_of_another_boot)?;
    newest.lose_from(newest.data.end.saturating_sub(UNSYNCED_BLOCKS).max(newest.data.start))?;
    cluster.broker(POWERLESS).restart().await?;
    comes_back_anew(&cluster, &client, POWERLESS).await?;
    let log = cluster.broker(POWERLESS).log_text()?;
    assert!(log.contains("the machine lost power"), "{}", cluster.broker(POWERLESS).log_tail());
    load.goes_on().await?;
    load.check(&client).await?;
    Ok(())
}

/// Puts another boot's id in the header of a file of the write-ahead log, as `broker/log/src/wal/header.rs` and `block.rs` lay it out.
fn as_of_another_boot(block: &mut [u8]) {
    const BOOT_ID_GIVEN: usize = 11;
    const TRAILER: usize = 4_064;
    const USED: usize = 4_084;
    const CRC: usize = 4_092;
    let crc_of = |block: &[u8]| {
        let used = usize::from(u16::from_le_bytes([block[USED], block[USED + 1]]));
        crc32(block[..used].iter().chain(&block[TRAILER..CRC])).to_le_bytes()
    };
    assert!(block.starts_with(b"TMWALSEG"), "this is a file's header");
    assert_eq!(block[CRC..], crc_of(block), "this is how a block is checked");
    assert_eq!(block[BOOT_ID_GIVEN], 1, "the system tells one boot from another");
    for byte in &mut block[64..80] {
        *byte = !*byte;
    }
    let crc = crc_of(block);
    block[CRC..].copy_from_slice(&crc);
}

/// The usual one (IEEE 802.3), bit by bit.
fn crc32<'a>(bytes: impl Iterator<Item = &'a u8>) -> u32 {
    let bit = |crc: u32, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg());
    !bytes.fold(u32::MAX, |crc: u32, byte| (0..8).fold(crc ^ u32::from(*byte), bit))
}
