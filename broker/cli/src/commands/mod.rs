//! The commands, one file each.

pub(crate) mod bench;
pub(crate) mod cluster;
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

use tidemill_client::Client;

use crate::arguments::{Arguments, Command, Connection};
use crate::connect::connect;
use crate::error::CliError;

/// Runs a command to its end.
pub(crate) async fn run(arguments: Arguments) -> Result<(), CliError> {
    let Arguments { connection, command } = arguments;
    let json = connection.json;
    match command {
        Command::Dev(dev) => server::dev(dev, json).await,
        Command::Server(server) => server::run(server, json).await,
        Command::Cluster(cluster) => cluster::run(cluster, &connection).await,
        Command::Context(context) => context::run(context, &connection),
        Command::Plugin(plugin) => plugin::run(plugin, &connection).await,
        Command::Produce(produce) => {
            let (client, broker) = connect(&connection).await?;
            produce::run(produce, client, &broker, json).await
        }
        Command::Consume(consume) => {
            let (client, broker) = connect(&connection).await?;
            let limit = broker.timeout.or(consume.gives_up_after());
            broker.bounded(&client, limit, consume::run(consume, client.clone(), json)).await
        }
        Command::Bench(bench) => {
            let (client, broker) = connect(&connection).await?;
            let limit = Some(broker.timeout.unwrap_or(consume::AWAY_MAX));
            broker.bounded(&client, limit, bench::run(bench, client.clone(), json)).await
        }
        Command::Deployment(deployment) if deployment.runs_on() => {
            let (client, broker) = connect(&connection).await?;
            let limit = Some(broker.timeout.unwrap_or(crate::waiting::REQUEST_TIMEOUT));
            broker.bounded(&client, limit, deployment::run(deployment, client.clone(), json)).await
        }
        Command::Topic(topic) => ask(&connection, |client| topic::run(topic, client, json)).await,
        Command::Group(group) => ask(&connection, |client| group::run(group, client, json)).await,
        Command::Deploy(deploy) => ask(&connection, |client| deploy::run(deploy, client, json)).await,
        Command::Deployment(deployment) => {
            ask(&connection, |client| deployment::run(deployment, client, json)).await
        }
        Command::State(state) => ask(&connection, |client| state::run(state, client, json)).await,
        Command::Status => ask(&connection, |client| status::run(client, json)).await,
        Command::Metrics => ask(&connection, |client| metrics::run(client, json)).await,
        Command::Completions { .. } | Command::Inspect(_) | Command::CompileWorker => Ok(()),
    }
}

/// Runs a command that asks and is answered.
pub(crate) async fn ask<T, F>(
    connection: &Connection,
    command: impl FnOnce(Client) -> F,
) -> Result<T, CliError>
where
    F: Future<Output = Result<T, CliError>>,
{
    let (client, broker) = connect(connection).await?;
    broker.asked(&client, command(client.clone())).await
}
