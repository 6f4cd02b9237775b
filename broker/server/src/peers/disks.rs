//! How the other brokers' disks are, as they say themselves.
//!
//! Whoever is connected to another broker asks it once and is told whenever it changes. What is known of a broker ends with the connection:
//! one that is not there keeps nobody from writing.

use std::convert::Infallible;
use std::time::Duration;

use tidemill_net::{Connection, Stream};
use tidemill_protocol::BrokerId;

use super::messages::{DiskOpen, DiskReport, Purpose};
use super::{Peers, open_on};
use crate::context::Context;

/// A broker that could not tell is asked again after this long.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);
/// A shard that stopped is seen at the latest after this.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

impl Peers {
    /// How the disk of another broker is; well, as far as nothing else was heard.
    pub(crate) fn disk_of(&self, broker: BrokerId) -> DiskReport {
        self.0.disks.lock().get(&broker).copied().unwrap_or_default()
    }

    pub(super) fn disk_heard(&self, broker: BrokerId, report: DiskReport) {
        let mut disks = self.0.disks.lock();
        let known = if report == DiskReport::default() {
            disks.remove(&broker).unwrap_or_default()
        } else {
            disks.insert(broker, report).unwrap_or_default()
        };
        drop(disks);
        if known != report {
            tracing::info!(%broker, nearly_full = report.nearly_full, failed = report.failed, stopping = report.stopping, "how a broker is");
        }
    }
}

/// Hears how a broker's disk is, for as long as the connection to it is polled.
pub(super) async fn follow(peers: &Peers, broker: BrokerId, connection: &Connection) -> Infallible {
    loop {
        if let Err(reason) = hear(peers, broker, connection).await {
            tracing::debug!(%broker, reason, "a broker does not tell how its disk is");
        }
        peers.disk_heard(broker, DiskReport::default());
        tokio::time::sleep(RETRY_INTERVAL).await;
    }
}

async fn hear(peers: &Peers, broker: BrokerId, connection: &Connection) -> Result<(), String> {
    let mut stream = open_on(connection, Purpose::Disk(DiskOpen {})).await?;
    // This half stays open: its end tells the other broker that nobody listens any more.
    stream.writer.flush().await.map_err(|error| error.to_string())?;
    while let Some(frame) = stream.reader.next().await.map_err(|error| error.to_string())? {
        let report = frame.message().map_err(|_| "what it says of its disk does not read")?;
        peers.disk_heard(broker, report);
    }
    Ok(())
}

/// Tells another broker how the disk here is, until its stream ends.
pub(super) async fn tell(context: &Context, mut stream: Stream) {
    let mut disk = context.disk.watch();
    let mut told = None;
    loop {
        let nearly_full = *disk.borrow_and_update();
        let stopping = context.stopping.is_cancelled();
        let report = DiskReport { nearly_full, failed: context.shards.any_stopped(), stopping };
        if told != Some(report) {
            if stream.writer.send(&report, &[]).await.is_err() {
                return;
            }
            told = Some(report);
        }
        tokio::select! {
            // The disk's state is this broker's own, and does not go while it serves.
            _ = disk.changed() => {}
            () = context.stopping.cancelled(), if !stopping => {}
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
            // Nobody listens any more.
            _ = stream.reader.next() => return,
        }
    }
}
