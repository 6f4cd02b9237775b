use std::sync::Arc;

use bytes::Bytes;
use tidemill_protocol::PartitionId;
use tidemill_protocol::messages::{StateEntry, StateGetRequest, StateScanReply, StateScanRequest, request};

use super::body_of;
use crate::cluster::{Cluster, Repeat};
use crate::{Client, RequestError};

/// The keyed state of a deployment. From [`Client::state`].
#[derive(Debug, Clone)]
pub struct State {
    cluster: Arc<Cluster>,
    deployment: String,
}

/// Which keys to scan.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StateRange {
    /// From this key on.
    pub start: Bytes,
    /// Up to and without this key; `None`: to the last.
    pub end: Option<Bytes>,
    /// Of this task's partition; `None`: of all.
    pub partition: Option<PartitionId>,
    /// At most so many entries; 0: the broker's choice.
    pub limit: u32,
}

impl Client {
    /// The state of a deployment: get, scan.
    #[must_use]
    pub fn state(&self, deployment: impl Into<String>) -> State {
        State { cluster: Arc::clone(&self.cluster), deployment: deployment.into() }
    }
}

impl State {
    /// The entries of a key: one per task that has it.
    ///
    /// # Errors
    /// No such deployment, or no answer.
    pub async fn get(
        &self,
        key: impl Into<Bytes>,
        partition: Option<PartitionId>,
    ) -> Result<Vec<StateEntry>, RequestError> {
        let body = request::Body::StateGet(StateGetRequest {
            deployment: self.deployment.clone(),
            key: key.into(),
            partition: partition.map(PartitionId::get),
        });
        Ok(body_of!(self.cluster.call(body, Repeat::Freely).await?, StateGet)?.entries)
    }

    /// Entries in the order of their keys, and whether there are more.
    ///
    /// # Errors
    /// No such deployment, or no answer.
    pub async fn scan(&self, range: StateRange) -> Result<StateScanReply, RequestError> {
        let body = request::Body::StateScan(StateScanRequest {
            deployment: self.deployment.clone(),
            start: range.start,
            end: range.end,
            limit: range.limit,
            partition: range.partition.map(PartitionId::get),
        });
        body_of!(self.cluster.call(body, Repeat::Freely).await?, StateScan)
    }
}
