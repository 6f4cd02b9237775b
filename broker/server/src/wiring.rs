//! Where the rooms meet: hosting gets its shards, and hears what the controller decided.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tidemill_controller::{DeploymentKind, DeploymentStatus};
use tidemill_hosting::{Hosting, HostingConfig, HostingStartError, TaskPlan, WorkerCommand};

use crate::config::BrokerConfig;
use crate::context::Context;
use crate::data_dir::DataDir;
use crate::disk::DiskState;
use crate::machine::Clock;
use crate::outbox::OutboxSignals;
use crate::room::Room;
use crate::shards::Shards;
use crate::task_port::ShardPort;
use crate::view::ClusterView;
use crate::{adopter, plans};

/// The hidden subcommand of the broker's own program that compiles one component.
const COMPILE_SUBCOMMAND: &str = "compile-worker";
/// A program other than the running one that has the subcommand: for tests, whose own program has none.
const COMPILER_VARIABLE: &str = "TIDEMILL_COMPILER";

/// Starts the room and gives it the shards.
pub(crate) fn start_hosting(
    config: &BrokerConfig,
    data_dir: &DataDir,
    shards: &Shards,
    outboxes: &Arc<OutboxSignals>,
    disk: &Arc<DiskState>,
    room: &Room,
    clock: &Clock,
) -> Result<Hosting, HostingStartError> {
    let (artifacts, digests) = (data_dir.path("artifacts"), data_dir.path("artifact-digests"));
    let settings = hosting_config(config, artifacts, digests, clock).map_err(HostingStartError::Directory)?;
    let hosting = Hosting::start(settings)?;
    hosting.connect(Arc::new(ShardPort {
        shards: shards.clone(),
        outboxes: Arc::clone(outboxes),
        disk: Arc::clone(disk),
        room: room.clone(),
    }));
    Ok(hosting)
}

/// How a broker with these settings runs plugins: limits, and the compiler's process. Also for who runs plugins as the
/// broker does without being one.
///
/// # Errors
/// The running program does not know its own file.
pub fn hosting_config(
    config: &BrokerConfig,
    artifacts_dir: PathBuf,
    digests_file: PathBuf,
    clock: &Clock,
) -> std::io::Result<HostingConfig> {
    let program = match std::env::var_os(COMPILER_VARIABLE) {
        Some(program) => program.into(),
        None => std::env::current_exe()?,
    };
    Ok(HostingConfig {
        artifacts_dir,
        digests_file,
        worker: WorkerCommand { program, args: vec![COMPILE_SUBCOMMAND.into()] },
        call_time: Duration::from_millis(config.plugins.call_ms_max),
        task_call_time: Duration::from_millis(config.plugins.task_call_ms_max),
        memory_bytes_max: config.plugins.memory_bytes_max,
        compile_time: Duration::from_millis(config.plugins.compile_ms_max),
        compile_memory_bytes_max: config.plugins.compile_memory_bytes_max,
        component_bytes_max: config.limits.plugin_bytes_max,
        log_bytes_max: config.plugins.log_bytes_max,
        clock: Arc::clone(clock),
    })
}

/// Keeps the tasks that run here in step with the deployments and with which shards are led here, and lets go of what was kept for
/// deployments that are gone.
pub(crate) async fn follow_deployments(context: Arc<Context>) {
    /// Leadership changes are noticed at the latest after this.
    const LOOK_INTERVAL: Duration = Duration::from_secs(1);
    let mut view = context.view.clone();
    loop {
        let now = view.now();
        context.hosting.reconcile(tasks(&context, &now));
        // By what is known at each look: what was opened for a deployment that this round has not heard of is not let go.
        let is_live = |id| context.view.now().deployment(id).is_some_and(|record| !record.deleted);
        context.hosting.retain(is_live);
        tokio::select! {
            changed = view.changed() => {
                if changed.is_none() {
                    return;
                }
            }
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
            () = context.stopping.cancelled() => return,
        }
    }
}

fn tasks(context: &Context, view: &ClusterView) -> Vec<TaskPlan> {
    let running = view.controller().deployments().filter(|record| {
        record.spec.kind == DeploymentKind::Consumer
            && !record.deleted
            && record.status == DeploymentStatus::Running
    });
    let mut plans = Vec::new();
    for record in running {
        for (shard, replica) in
            context.shards.data().filter(|(_, replica)| replica.watch().borrow().is_leader())
        {
            debug_assert_eq!(shard, replica.shard_id());
            let assigned = adopter::assignments(view, shard, record);
            plans.extend(assigned.into_iter().map(|task| plans::task(view, record, task.partition)));
        }
    }
    plans
}
