use std::collections::BTreeMap;
use std::sync::Arc;

use tidemill_protocol::messages::{
    CommitOffsetsRequest, CommittedOffset, DeleteGroupRequest, DescribeGroupRequest, GroupDescription,
    ListGroupsRequest, request,
};
use tidemill_protocol::{Offset, TopicPartition};

use super::{all_pages, body_of};
use crate::cluster::{Cluster, Repeat};
use crate::error::server_error;
use crate::{Client, RequestError};

/// Consumer groups: positions that are remembered under a name. From [`Client::groups`].
#[derive(Debug, Clone)]
pub struct Groups {
    cluster: Arc<Cluster>,
}

/// A position to remember: the next offset to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit {
    /// Of which partition.
    pub partition: TopicPartition,
    /// The next offset to read; `None` forgets the position.
    pub offset: Option<Offset>,
    /// Whatever the reader wants to remember with it.
    pub note: String,
}

impl Commit {
    /// The next offset to read of a partition.
    #[must_use]
    pub const fn new(partition: TopicPartition, offset: Offset) -> Self {
        Self { partition, offset: Some(offset), note: String::new() }
    }
}

impl Client {
    /// Consumer groups: commit, describe, list, delete.
    #[must_use]
    pub fn groups(&self) -> Groups {
        Groups { cluster: Arc::clone(&self.cluster) }
    }
}

impl Groups {
    /// Remembers positions under the group's name.
    ///
    /// # Errors
    /// The first partition that was refused, or no answer.
    pub async fn commit(&self, group: &str, commits: &[Commit]) -> Result<(), RequestError> {
        let offsets = commits.iter().map(|commit| CommittedOffset {
            partition: Some(commit.partition.into()),
            offset: commit.offset.map_or(-1, Offset::get),
            leader_epoch: -1,
            note: commit.note.clone(),
            committed_at: 0,
        });
        let body = CommitOffsetsRequest { group: group.to_owned(), offsets: offsets.collect() };
        let body = request::Body::CommitOffsets(body);
        let reply = body_of!(self.cluster.call(body, Repeat::Freely).await?, CommitOffsets)?;
        if reply.errors.len() > commits.len() {
            return Err(RequestError::BadAnswer("more outcomes than positions were committed".to_owned()));
        }
        reply.errors.into_iter().try_for_each(|error| Ok(server_error(Some(error))?))
    }

    /// What is remembered under the group's name.
    ///
    /// # Errors
    /// No such group, or no answer.
    pub async fn describe(&self, group: &str) -> Result<GroupDescription, RequestError> {
        let body = request::Body::DescribeGroup(DescribeGroupRequest { group: group.to_owned() });
        body_of!(self.cluster.call(body, Repeat::Freely).await?, Group)
    }

    /// The positions of a group; none where there is no such group.
    ///
    /// # Errors
    /// No answer.
    pub async fn positions(&self, group: &str) -> Result<BTreeMap<TopicPartition, Offset>, RequestError> {
        let description = match self.describe(group).await {
            Err(error) if error.is(tidemill_protocol::ErrorCode::UnknownGroup) => return Ok(BTreeMap::new()),
            done => done?,
        };
        let positions = description.offsets.into_iter().filter_map(|committed| {
            let partition = committed.partition?.parse()?;
            (committed.offset >= 0).then(|| (partition, Offset::new(committed.offset)))
        });
        Ok(positions.collect())
    }

    /// The names of all groups.
    ///
    /// # Errors
    /// No answer.
    pub async fn list(&self) -> Result<Vec<String>, RequestError> {
        all_pages(|last: Option<&String>| {
            let after = last.cloned().unwrap_or_default();
            let body = request::Body::ListGroups(ListGroupsRequest { after, limit: 0 });
            async move {
                let page = body_of!(self.cluster.call(body, Repeat::Freely).await?, ListGroups)?;
                Ok((page.groups, page.more))
            }
        })
        .await
    }

    /// Forgets a group and its positions.
    ///
    /// # Errors
    /// No such group, or no answer.
    pub async fn delete(&self, group: &str) -> Result<(), RequestError> {
        let body = request::Body::DeleteGroup(DeleteGroupRequest { group: group.to_owned() });
        body_of!(self.cluster.call(body, Repeat::IfUntouched).await?, Empty).map(drop)
    }
}
