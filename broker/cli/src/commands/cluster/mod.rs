//! `tidemill cluster`: form a cluster of brokers, look at it, grow and shrink it.

mod add;
mod drain;
mod init;
mod notes;
mod recover;
mod set;
mod settled;
mod status;
mod which;

use clap::Subcommand;
use serde_json::json;
use tidemill_client::{BrokerId, Client};

use crate::arguments::Connection;
use crate::commands::ask;
use crate::connect::connect;
use crate::error::CliError;
use crate::output;
use crate::waiting::REQUEST_TIMEOUT;

/// A cluster of brokers
#[derive(Debug, Subcommand)]
#[command(after_help = "\
Examples:
  tidemill cluster init --dir plan --broker 1 2 3   before their first start
  tidemill cluster status                           who leads what, and what is at risk
  tidemill cluster add --broker 4                   let another one in
  tidemill cluster drain 2 --wait                   empty one
  tidemill cluster remove 2                         and take it out
  tidemill cluster recover --data-dir DIR           most of the others are lost for good")]
pub(crate) enum Cluster {
    /// Plan a new cluster: its id, its key, and the brokers that form it
    #[command(after_help = "\
Examples:
  tidemill cluster init --dir plan --broker 1 --broker 2 --broker 3
  tidemill cluster init --dir plan --broker 1 2 3 --shards 24 --durability replicated

It asks no broker: it writes a directory that each of these needs for its first start
(`tidemill server --cluster DIR`), and says how they are started. The cluster serves once most
of them are up. More are added later; a broker that was started without all this is a cluster
of one, which grows in the same way.")]
    Init(init::Init),
    /// Show brokers, who leads which shard, who lags, and what is at risk
    #[command(after_help = "\
Examples:
  tidemill cluster status
  tidemill cluster status --check > /dev/null || echo look at it
  until tidemill cluster status --settled --address log2:9630 > /dev/null; do sleep 1; done
  tidemill cluster status --json

The third waits for a broker that was restarted, and asks that one alone. Where a context holds
your certificate, name it, too (--context prod): --address alone leaves it aside.

Of replicas, 1* 2 3(+120) reads: broker 1 leads, 2 has all of it, 3 lacks 120 entries. A learner
has no vote: it is catching up, or follows the controller (shard 0), as every broker does.
Silent is who the leader has not heard of for so long, unheard who it never heard of since it
leads; of 1? 2? 3? no leader says anything. What is planned is shown where it differs from what
is. 3.2 is broker 3 in its incarnation 2: it has a new one when its directory was replaced, one
of its replicas came back without all that it had, or to a shard that it had left. The numbers
only rise, and need not follow on each other.")]
    Status(status::Status),
    /// Make a token with which one more broker joins
    #[command(after_help = "\
Examples:
  tidemill cluster add --broker 4
  tidemill cluster add --valid 10m --json

A broker whose data directory is lost comes back in the same way, under its own number and with
an empty directory: `tidemill cluster add --broker N`. Whoever has the token gets the cluster's
key: it is worth that until it is used or expires.")]
    Add(add::Add),
    /// Move replicas and leads of a broker to others
    #[command(after_help = "\
Examples:
  tidemill cluster drain 4 --wait
  tidemill cluster drain 4 --undo

It serves on meanwhile. Where the others are too few to take its replicas, it is refused.")]
    Drain(drain::Drain),
    /// Take a broker out for good
    #[command(after_help = "\
Examples:
  tidemill cluster drain 4 --wait
  tidemill cluster remove 4

One that is lost is removed without draining; where a shard would be left without a
majority, it is refused. So is one that is alive and holds replicas: drain it first. One
that is alive and holds none stops by itself; started again it is turned away. It comes back
only with an empty data directory and a token of `tidemill cluster add`.")]
    Remove(which::WhichBroker),
    /// Go on with one broker where most of the others are lost for good
    #[command(after_help = "\
Examples:
  tidemill cluster recover --data-dir /var/lib/tidemill                 look at what is there
  tidemill cluster recover --data-dir /var/lib/tidemill --accept-loss --dry-run
  tidemill cluster recover --data-dir /var/lib/tidemill --accept-loss   go on with it

For shards whose majority is gone: the disks of two of three brokers, say. It works on the
directory of a stopped broker and asks no other one. Afterwards this broker is the cluster, with
all that it has; what only others had is lost. They are out for good: delete their directories,
for a majority of them would go on among themselves. They come back empty, with tokens of
`tidemill cluster add`. Where a majority can be brought back, do that instead.")]
    Recover(recover::Recover),
    /// Change settings of the whole cluster
    #[command(after_help = "\
Examples:
  tidemill cluster set --rebuild-delay 30m
  tidemill cluster set --snapshot-rate 50MiB
  tidemill cluster set --snapshot-rate unlimited

`tidemill cluster status` shows them.")]
    Set(set::Set),
}

pub(crate) async fn run(cluster: Cluster, connection: &Connection) -> Result<(), CliError> {
    let json = connection.json;
    match cluster {
        Cluster::Init(init) => init::run(&init, json),
        Cluster::Status(asked) => ask(connection, |client| status::run(asked, client, json)).await,
        Cluster::Add(add) => ask(connection, |client| add::run(add, client, json)).await,
        Cluster::Drain(drain) if drain.waits() => {
            let (client, broker) = connect(connection).await?;
            let limit = Some(broker.timeout.unwrap_or(REQUEST_TIMEOUT));
            broker.bounded(&client, limit, drain::run(drain, client.clone(), json)).await
        }
        Cluster::Drain(drain) => ask(connection, |client| drain::run(drain, client, json)).await,
        Cluster::Remove(which) => ask(connection, |client| remove(which.number(), client, json)).await,
        Cluster::Recover(recover) => recover::run(recover, json).await,
        Cluster::Set(set) => ask(connection, |client| set::run(set, client, json)).await,
    }
}

async fn remove(broker: u32, client: Client, json: bool) -> Result<(), CliError> {
    client.remove_broker(BrokerId::new(broker)).await?;
    output::print(json, &json!({ "removed": broker }), || {
        println!("removed broker {broker}; what its data directory holds is no longer the cluster's");
    })
}
