//! Why a broker did not start.

use std::net::SocketAddr;
use std::path::PathBuf;

use tidemill_log::wal::WalOpenError;
use tidemill_net::{BindError, TlsError};
use tidemill_protocol::{BrokerId, ClusterId, ShardId};
use tidemill_raft::{ReadError, ReplicaStartError};
use tidemill_shard::ShardOpenError;

use crate::cluster::{ClusterDirectoryError, JoinError};
use crate::config::ConfigError;
use crate::data_dir::DataDirError;

/// Why a broker did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The settings.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The data directory.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// The settings name another broker than the data directory's.
    #[error(
        "the data directory {path} belongs to broker {found}, the settings say {asked}; name the right directory, or give \
         --broker-id {found}"
    )]
    WrongBroker {
        /// The directory.
        path: String,
        /// Whose it is.
        found: u32,
        /// Who asks.
        asked: u32,
    },
    /// The settings name something else than what was fixed when the data directory was made.
    #[error(
        "{setting}: the data directory {path} was made with {stored}, the settings say {asked}, and it can't be \
         changed any more; take {setting} out of the settings, or name another data directory"
    )]
    Fixed {
        /// Which setting.
        setting: &'static str,
        /// The directory.
        path: String,
        /// What it was made with.
        stored: String,
        /// What the settings say.
        asked: String,
    },
    /// The write-ahead log.
    #[error(transparent)]
    Wal(#[from] WalOpenError),
    /// A shard's state.
    #[error("shard {shard} can't be opened: {source}")]
    Shard {
        /// Which.
        shard: ShardId,
        /// Why.
        source: Box<ShardOpenError>,
    },
    /// A replica of the shard ran before in this process, and what it had open is in use.
    #[error(
        "shard {shard} can't be opened: the files of its replica before this one are still in use here; it is tried again"
    )]
    StillOpen {
        /// Which.
        shard: ShardId,
    },
    /// A shard's replica.
    #[error(transparent)]
    Replica(#[from] ReplicaStartError),
    /// A shard's replica does not lead.
    #[error("shard {shard} does not come up: {source}")]
    NotLeading {
        /// Which.
        shard: ShardId,
        /// Why.
        source: ReadError,
    },
    /// The cluster's first command failed.
    #[error("the cluster can't be initialised: {0}")]
    Init(String),
    /// The sandbox for plugins.
    #[error(transparent)]
    Hosting(#[from] tidemill_hosting::HostingStartError),
    /// Certificates.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A file that a setting names.
    #[error("{setting}: {source}")]
    File {
        /// Which setting.
        setting: &'static str,
        /// What is wrong with the file.
        source: TlsError,
    },
    /// The socket.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The socket for metrics.
    #[error("metrics.listen: {address} can't be listened on: {source}")]
    Metrics {
        /// Which address.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// The data directory's identity can't be written.
    #[error("the data directory can't be written: {0}")]
    Write(std::io::Error),
    /// A small file of the data directory does not read.
    #[error("the data directory can't be read: {0}")]
    Read(std::io::Error),
    /// The cluster was formed before, and this broker was another one then.
    #[error("the cluster does not want this broker, which was about to form it anew: {0}")]
    Over(String),
    /// The directory of `tidemill cluster init`.
    #[error(transparent)]
    Cluster(#[from] ClusterDirectoryError),
    /// This broker is not among those that form the cluster.
    #[error(
        "broker {broker} is not one of those that form the cluster of {directory}; name one of them with --broker-id, or let it join the \
         running cluster with a token of `tidemill cluster add`"
    )]
    NotPlanned {
        /// Who is to start.
        broker: BrokerId,
        /// The cluster's plan.
        directory: PathBuf,
    },
    /// An empty data directory, other brokers, and nothing that says how it belongs to them.
    #[error(
        "the data directory {path} is empty, and peers.seeds names other brokers: say how this one comes into their cluster, with a token of \
         `tidemill cluster add` (--join) or with the plan of `tidemill cluster init` (--cluster); to begin a cluster of its own, name no seeds"
    )]
    NoOrigin {
        /// The directory.
        path: String,
    },
    /// The cluster does not take the broker in.
    #[error(transparent)]
    Join(#[from] JoinError),
    /// The data directory belongs to another cluster than the settings name.
    #[error(
        "the data directory {path} belongs to cluster {found}, and {setting} is of cluster {asked}; name the right directory, or take \
         {setting} out of the settings"
    )]
    OtherCluster {
        /// The directory.
        path: String,
        /// Whose it is.
        found: ClusterId,
        /// What names another: `cluster` or `join`.
        setting: &'static str,
        /// Which one the settings name.
        asked: ClusterId,
    },
    /// `tidemill cluster recover` did not get to its end.
    #[error(
        "the data directory {path} is half recovered: `tidemill cluster recover --accept-loss` broke off on it; run it again, as often as \
         needed"
    )]
    HalfRecovered {
        /// The directory.
        path: String,
    },
    /// The socket for other brokers.
    #[error("peers.listen: {0}")]
    Peers(BindError),
    /// Starting was interrupted.
    #[error("starting was interrupted")]
    Interrupted,
}
