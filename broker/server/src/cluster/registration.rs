//! Tells the controller where this broker is: at each start, until it is known there.

use std::time::Duration;

use tidemill_controller::{BrokerStart, ControllerCommand, ControllerError};
use tidemill_protocol::{BrokerId, DirectoryId, ShardId};
use tidemill_shard::{Unit, UnitResult};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::config::BrokerConfig;
use crate::data_dir::Meta;
use crate::shards::Shards;
use crate::view::ViewReader;

/// The highest feature level that this release knows.
const FEATURES: u32 = 1;
/// Pause between attempts while the controller can't be reached.
const RETRY_INTERVAL: Duration = Duration::from_millis(200);

/// What this broker says of itself.
pub(crate) fn registration(
    config: &BrokerConfig,
    meta: &Meta,
    addresses: &[String],
    peer_addresses: &[String],
) -> BrokerStart {
    BrokerStart {
        broker: BrokerId::new(meta.broker_id),
        incarnation: meta.incarnation,
        directory: DirectoryId::new(meta.directory),
        starts: meta.starts,
        addresses: addresses.to_vec(),
        peer_addresses: peer_addresses.to_vec(),
        rack: config.rack.clone(),
        software: concat!("tidemill/", env!("CARGO_PKG_VERSION")).to_owned(),
        features: FEATURES,
    }
}

/// Registers; where the controller can't be reached, or the cluster is not formed yet, waits and tries again.
///
/// # Errors
/// The controller's reason why this broker is none of the cluster's.
pub(crate) async fn register(
    shards: &Shards,
    registration: BrokerStart,
    stopping: &CancellationToken,
) -> Result<(), String> {
    loop {
        let unit = Unit::Control(ControllerCommand::Register(registration.clone()));
        match shards.propose(ShardId::CONTROLLER, unit).await {
            Ok(UnitResult::Control(Ok(_))) => return Ok(()),
            Ok(UnitResult::Control(Err(ControllerError::NotInitialised))) => {}
            Ok(UnitResult::Control(Err(refused))) => return Err(refused.to_string()),
            Ok(other) => return Err(format!("the controller answered {other:?}")),
            Err(error) => tracing::debug!(%error, "registering will be tried again"),
        }
        tokio::select! {
            () = tokio::time::sleep(RETRY_INTERVAL) => {}
            () = stopping.cancelled() => return Ok(()),
        }
    }
}

/// Watches whether this broker still is one of the cluster's, and says why where it is not.
pub(crate) async fn stay(meta: Meta, view: ViewReader, dismissed: watch::Sender<Option<String>>) {
    let mut view = view;
    loop {
        let now = view.now();
        if let Some(known) = now.controller().broker(BrokerId::new(meta.broker_id)) {
            let reason = if known.incarnation > meta.incarnation {
                Some(
                    "another data directory has taken this broker's place in the cluster; start it on that one",
                )
            } else if known.incarnation == meta.incarnation && !known.is_member() {
                Some("it was removed from the cluster")
            } else {
                None
            };
            if let Some(reason) = reason {
                let broker = meta.broker_id;
                let again = format!(
                    "an empty data directory and a token of `tidemill cluster add --broker {broker}`"
                );
                dismissed.send_replace(Some(format!("{reason}; a new life of it needs {again}")));
            }
        }
        if view.changed().await.is_none() {
            // The view ends with the broker; whoever waits for the word need not hear of that.
            return dismissed.closed().await;
        }
    }
}
