use std::time::Duration;

use tidemill_protocol::BrokerId;
use tidemill_protocol::messages::{
    AlterClusterRequest, ClusterStatus, ClusterStatusRequest, CreateJoinTokenRequest, DrainBrokerRequest,
    JoinToken, Metadata, MetadataRequest, MetricsRequest, RemoveBrokerRequest, request,
};

use super::body_of;
use crate::cluster::Repeat;
use crate::{Client, RequestError};

impl Client {
    /// How the cluster, its shards and the broker that is asked are, and what is not as it should be.
    ///
    /// # Errors
    /// No answer.
    pub async fn cluster_status(&self) -> Result<ClusterStatus, RequestError> {
        let body = request::Body::ClusterStatus(ClusterStatusRequest {});
        body_of!(self.cluster.call(body, Repeat::Freely).await?, ClusterStatus)
    }

    /// All brokers and topics, as the broker that is asked knows them.
    ///
    /// # Errors
    /// No answer.
    pub async fn metadata(&self) -> Result<Metadata, RequestError> {
        let body = request::Body::Metadata(MetadataRequest { topics: Vec::new(), all: true });
        body_of!(self.cluster.call(body, Repeat::Freely).await?, Metadata)
    }

    /// A token with which a new broker may join, or one that has lost its data: once, and before it expires. `broker`: only this
    /// one; `valid`: by default as long as the cluster has it.
    ///
    /// # Errors
    /// The cluster refuses, or no answer.
    pub async fn create_join_token(
        &self,
        broker: Option<BrokerId>,
        valid: Option<Duration>,
    ) -> Result<JoinToken, RequestError> {
        let body = request::Body::CreateJoinToken(CreateJoinTokenRequest {
            broker_id: broker.map_or(0, BrokerId::get),
            valid_ms: valid.map_or(0, milliseconds),
        });
        // One that nobody hears of is never used, and expires.
        body_of!(self.cluster.call(body, Repeat::Freely).await?, JoinToken)
    }

    /// Takes replicas and leads from a broker; with `undo` it may have them again.
    ///
    /// # Errors
    /// No such broker, a quorum would be lost, or no answer.
    pub async fn drain_broker(&self, broker: BrokerId, undo: bool) -> Result<(), RequestError> {
        let body = request::Body::DrainBroker(DrainBrokerRequest { broker_id: broker.get(), undo });
        body_of!(self.cluster.call(body, Repeat::Freely).await?, Empty).map(drop)
    }

    /// Removes a broker: as what it is now it never comes back.
    ///
    /// # Errors
    /// No such broker, data or a quorum would be lost, or no answer.
    pub async fn remove_broker(&self, broker: BrokerId) -> Result<(), RequestError> {
        let body = request::Body::RemoveBroker(RemoveBrokerRequest { broker_id: broker.get() });
        body_of!(self.cluster.call(body, Repeat::IfUntouched).await?, Empty).map(drop)
    }

    /// Changes the cluster's settings; those that are `None` stay. How long a broker may be away before its replicas are rebuilt
    /// elsewhere, and how many bytes per second of snapshots a broker sends (0: as many as it can).
    ///
    /// # Errors
    /// Settings that are not allowed, or no answer.
    pub async fn alter_cluster(
        &self,
        rebuild_delay: Option<Duration>,
        snapshot_bytes_per_second: Option<u64>,
    ) -> Result<(), RequestError> {
        let body = request::Body::AlterCluster(AlterClusterRequest {
            rebuild_delay_ms: rebuild_delay.map(milliseconds),
            snapshot_bytes_per_second,
        });
        body_of!(self.cluster.call(body, Repeat::Freely).await?, Empty).map(drop)
    }

    /// The broker's metrics, as Prometheus writes them.
    ///
    /// # Errors
    /// No answer.
    pub async fn metrics(&self) -> Result<String, RequestError> {
        let body = request::Body::Metrics(MetricsRequest {});
        Ok(body_of!(self.cluster.call(body, Repeat::Freely).await?, Metrics)?.prometheus)
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
