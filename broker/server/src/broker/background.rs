//! What a broker does beside serving, each in a task of its own.

use std::sync::Arc;
use std::time::Duration;

use tidemill_net::Listener;
use tidemill_protocol::{BrokerId, NodeId, ShardId};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::adopter::Adopter;
use crate::cluster::{forming, handover, majority, membership, steering};
use crate::context::Context;
use crate::data_dir::Meta;
use crate::shards::Shards;
use crate::view::{ClusterView, ViewReader};
use crate::{components, connection, errors, maintenance, outbox, repair, scrubber, telemetry, wiring};

/// How often it is looked whether the controller's replica has come up, or is another one.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// Passes on what another broker said: that this one is over for good.
pub(super) async fn heed(mut over: watch::Receiver<Option<String>>, refused: watch::Sender<Option<String>>) {
    if let Ok(reason) = over.wait_for(Option::is_some).await {
        refused.send_replace(reason.clone());
    }
}

/// Keeps the view up to date with the controller's shard; where that is not here yet, it shows nothing.
pub(super) fn follow_controller(
    shards: &Shards,
    meta: &Meta,
    addresses: Vec<String>,
    stopping: &CancellationToken,
) -> (ViewReader, JoinHandle<()>) {
    let broker = BrokerId::new(meta.broker_id);
    let (shards, stopping) = (shards.clone(), stopping.clone());
    let picture = move |shards: &Shards| {
        let state = shards.state(ShardId::CONTROLLER)?.controller()?;
        Some(ClusterView::new(state, broker, addresses.clone()))
    };
    let (publish, view) = ViewReader::channel(picture(&shards).unwrap_or_default());
    let follower = tokio::spawn(async move {
        loop {
            let Some(controller) = shards.controller() else {
                tokio::select! {
                    () = tokio::time::sleep(LOOK_INTERVAL) => continue,
                    () = stopping.cancelled() => return,
                }
            };
            let mut changes = controller.changes();
            if let Some(view) = picture(&shards) {
                // A replica that takes another's place begins with less than that one had.
                publish.send_if_modified(|held| {
                    let newer = view.version() > held.version();
                    if newer {
                        *held = Arc::new(view);
                    }
                    newer
                });
            }
            let node = controller.node();
            // Nobody keeps it by waiting for it.
            drop(controller);
            tokio::select! {
                () = changes.changed() => {}
                // One that has ended changes no more.
                () = until_another(&shards, node) => {}
                () = stopping.cancelled() => return,
            }
        }
    });
    (view, follower)
}

/// Waits until the controller's replica here is another one, or is gone.
async fn until_another(shards: &Shards, node: NodeId) {
    while shards.controller().is_some_and(|replica| replica.node() == node) {
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

/// Starts what a broker does by itself, for as long as it runs.
pub(super) fn start_background(context: &Arc<Context>, stopping: &CancellationToken) -> Vec<JoinHandle<()>> {
    let (shards, view) = (&context.shards, &context.view);
    let adopter = Adopter {
        context: Arc::clone(context),
        shards: shards.clone(),
        view: view.clone(),
        plugins: context.config.plugins.clone(),
    };
    let every = Duration::from_millis(context.config.storage.retention_interval_ms.max(100));
    let mut tasks = vec![
        tokio::spawn(adopter.run(stopping.clone())),
        tokio::spawn(maintenance::retention(
            shards.clone(),
            every,
            context.clock.clone(),
            context.disk.watch(),
            stopping.clone(),
        )),
        tokio::spawn(scrubber::scrub(
            shards.clone(),
            context.config.storage.scrub_bytes_per_second,
            stopping.clone(),
        )),
        tokio::spawn(repair::repair(Arc::clone(context))),
        tokio::spawn(maintenance::compare_states(shards.clone(), stopping.clone())),
        tokio::spawn(wiring::follow_deployments(Arc::clone(context))),
        tokio::spawn(components::follow(Arc::clone(context))),
        tokio::spawn(components::fetch_missing(Arc::clone(context))),
        tokio::spawn(forming::tell(Arc::clone(context))),
        tokio::spawn(majority::tell(Arc::clone(context))),
        tokio::spawn(steering::steer(
            shards.clone(),
            context.meta.clone(),
            context.clock.clone(),
            stopping.clone(),
        )),
        tokio::spawn(handover::spread(shards.clone(), view.clone(), context.room.clone(), stopping.clone())),
        tokio::spawn(telemetry::upkeep(context.metrics.clone())),
    ];
    tasks.extend(outbox::start(shards, view, &context.outboxes, &context.room, stopping));
    tasks.extend(membership::start(shards, view, stopping));
    tasks.extend(shards.numbers().map(|shard| {
        tokio::spawn(maintenance::ticks(shards.clone(), shard, context.clock.clone(), stopping.clone()))
    }));
    tasks
}

/// Serves clients' connections until the listener closes.
pub(super) async fn accept(listener: Arc<Listener>, context: Arc<Context>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Some(connection) if context.stopping.is_cancelled() => {
                    let error = errors::stopping();
                    connection.close(error.code, &error.message);
                }
                Some(connection) => {
                    connections.spawn(connection::serve(Arc::clone(&context), connection));
                }
                None => return,
            },
            Some(ended) = connections.join_next(), if !connections.is_empty() => {
                if let Err(error) = ended && error.is_panic() {
                    tracing::error!(%error, "a connection's task panicked; only that connection ended");
                }
            }
        }
    }
}
