use tidemill_protocol::messages::{ClusterStatus, ClusterStatusRequest, MetricsRequest, request};

use super::body_of;
use crate::cluster::Repeat;
use crate::{Client, RequestError};

impl Client {
    /// How the broker and its shards are.
    ///
    /// # Errors
    /// No answer.
    pub async fn cluster_status(&self) -> Result<ClusterStatus, RequestError> {
        let body = request::Body::ClusterStatus(ClusterStatusRequest {});
        body_of!(self.cluster.call(body, Repeat::Freely).await?, ClusterStatus)
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
