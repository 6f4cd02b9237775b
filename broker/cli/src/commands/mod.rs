//! The commands, one file each.

pub(crate) mod bench;
pub(crate) mod completions;
pub(crate) mod consume;
pub(crate) mod context;
pub(crate) mod deploy;
pub(crate) mod deployment;
pub(crate) mod group;
pub(crate) mod inspect;
mod metrics;
pub(crate) mod plugin;
pub(crate) mod produce;
pub(crate) mod server;
pub(crate) mod state;
mod status;
pub(crate) mod topic;

use crate::arguments::{Arguments, Command};
use crate::connect::connect;
use crate::error::CliError;

/// Runs a command to its end.
pub(crate) async fn run(arguments: Arguments) -> Result<(), CliError> {
    let Arguments { connection, command } = arguments;
    let json = connection.json;
    match command {
        Command::Dev(dev) => server::dev(dev, json).await,
        Command::Server(server) => server::run(server, json).await,
        Command::Context(context) => context::run(context, &connection),
        Command::Topic(topic) => topic::run(topic, connect(&connection).await?, json).await,
        Command::Produce(produce) => produce::run(produce, connect(&connection).await?, json).await,
        Command::Consume(consume) => consume::run(consume, connect(&connection).await?, json).await,
        Command::Group(group) => group::run(group, connect(&connection).await?, json).await,
        Command::Plugin(plugin) => plugin::run(plugin, &connection).await,
        Command::Deploy(deploy) => deploy::run(deploy, connect(&connection).await?, json).await,
        Command::Deployment(deployment) => {
            deployment::run(deployment, connect(&connection).await?, json).await
        }
        Command::State(state) => state::run(state, connect(&connection).await?, json).await,
        Command::Status => status::run(connect(&connection).await?, json).await,
        Command::Metrics => metrics::run(connect(&connection).await?, json).await,
        Command::Bench(bench) => bench::run(bench, connect(&connection).await?, json).await,
        Command::Completions { .. } | Command::Inspect(_) | Command::CompileWorker => Ok(()),
    }
}
