//! Components that no plugin version and no deployment names any more go from the disk, with what was compiled of them.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tidemill_controller::Controller;
use tidemill_raft::Replica;

use crate::context::Context;

/// Looked at unasked: for uploads that were never registered.
const LOOK_INTERVAL: Duration = Duration::from_secs(300);

/// Looks at the start, whenever a digest is not named any more, and now and then.
pub(crate) async fn follow(context: Arc<Context>) {
    let mut view = context.view.clone();
    let mut before: Option<HashSet<[u8; 32]>> = None;
    let mut due = true;
    loop {
        let now = named(view.now().controller());
        if due || before.is_none_or(|before| !before.is_subset(&now)) {
            let_go(&context).await;
        }
        before = Some(now);
        due = tokio::select! {
            changed = view.changed() => {
                if changed.is_none() {
                    return;
                }
                false
            }
            () = tokio::time::sleep(LOOK_INTERVAL) => true,
            () = context.stopping.cancelled() => return,
        };
    }
}

async fn let_go(context: &Context) {
    let Some(controller) = context.shards.controller().cloned() else { return };
    // What is registered must be known as of now: a component must not go because the registry is behind.
    if controller.read_barrier().await.is_err() {
        return;
    }
    match context.hosting.let_go(move || registered(&controller)).await {
        Ok(0) => {}
        Ok(components) => tracing::info!(components, "components that nothing names any more are removed"),
        Err(error) => tracing::warn!(%error, "a component that nothing names any more could not be removed"),
    }
}

fn registered(controller: &Replica) -> Option<HashSet<[u8; 32]>> {
    controller.shard().controller().map(|controller| named(&controller))
}

/// The digests of all versions, and of all deployments, those included that a retry may still need.
fn named(controller: &Controller) -> HashSet<[u8; 32]> {
    let versions = controller.plugins().map(|plugin| plugin.digest);
    versions.chain(controller.deployments().map(|deployment| deployment.digest)).collect()
}
