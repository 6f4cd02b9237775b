//! Requests: a stream each, with a deadline; an error has a stable code, says what to do, and whether to retry.

use std::sync::Arc;
use std::time::Duration;

use tidemill_net::{FrameReader, Stream};
use tidemill_protocol::ErrorCode;
use tidemill_protocol::messages::{Empty, Error, Reply, Request, reply, request};
use tokio::time::Instant;

use crate::cluster::{Asking, forming};
use crate::connection::{Caller, Opened};
use crate::context::Context;
use crate::handlers::{brokers, deployments, groups, metadata, offsets, plugins, state, status, topics};
use crate::refusals::{self, Refused};

/// A client that does not take its reply for so long has the stream given up.
const REPLY_DEADLINE: Duration = Duration::from_secs(60);

/// Answers one request.
pub(crate) async fn serve(context: Arc<Context>, caller: Caller, opened: Opened, request: Request) {
    metrics::counter!("tidemill_requests_total").increment(1);
    let _under_way = context.requests.begin();
    let deadline = context.deadline(request.deadline_ms);
    let Opened { stream, payload } = opened;
    let Stream { mut reader, mut writer, .. } = stream;
    let asking = Asking { context: Arc::clone(&context), caller, until: Instant::now() + deadline };
    let only_reads = request.body.as_ref().is_none_or(only_reads);
    let needs_others = request.body.as_ref().is_some_and(needs_the_cluster);
    let answering = async {
        match request.body {
            Some(body) => answer(&asking, body, &mut reader, payload).await,
            None => Err(Error::new(ErrorCode::BadMessage, "the request has no body that this release knows")),
        }
    };
    let reply = match tokio::time::timeout(deadline, answering).await {
        Ok(Ok(body)) => Reply { error: None, body: Some(body) },
        Ok(Err(error)) => Reply { error: Some(error), body: None },
        Err(_) => {
            let has_others = context.peers.as_ref().is_some_and(|peers| !peers.said().is_empty());
            Reply { error: Some(late(deadline, only_reads, needs_others && has_others)), body: None }
        }
    };
    if let Some(error) = &reply.error {
        metrics::counter!("tidemill_requests_failed_total", "code" => refusals::code(error)).increment(1);
        refusals::note(Refused::Request, &asking.caller, error);
    }
    let writing = async {
        if writer.send(&reply, &[]).await.is_ok() {
            let _ = writer.finish().await;
        }
    };
    if tokio::time::timeout(REPLY_DEADLINE, writing).await.is_err() {
        writer.reset(ErrorCode::Deadline.code());
    }
}

/// What is said of a request whose time is over.
fn late(deadline: Duration, only_reads: bool, waits_for_others: bool) -> Error {
    let mut said = format!("no answer within {} ms", deadline.as_millis());
    if !only_reads {
        said.push_str("; it may still take effect");
    }
    if waits_for_others {
        said.push_str("; `tidemill cluster status` shows which brokers are away");
    }
    Error::new(ErrorCode::Deadline, said)
}

async fn answer(
    asking: &Asking,
    body: request::Body,
    reader: &mut FrameReader,
    payload: bytes::Bytes,
) -> Result<reply::Body, Error> {
    use request::Body;
    let context = &asking.context;
    if needs_the_cluster(&body) {
        forming::check(context)?;
    }
    if is_about_metadata(&body) {
        // Whoever did something by another broker finds it here with his next request.
        context.fresh_view().await;
    }
    let done = |()| reply::Body::Empty(Empty {});
    Ok(match body {
        Body::Metadata(request) => reply::Body::Metadata(metadata::answer(context, &request).await?),
        Body::CreateTopic(request) => reply::Body::Topic(topics::create(asking, request).await?),
        Body::DeleteTopic(request) => topics::delete(context, request).await.map(done)?,
        Body::AlterTopic(request) => reply::Body::Topic(topics::alter(asking, request).await?),
        Body::DescribeTopic(request) => reply::Body::Topic(topics::describe(asking, &request.name).await?),
        Body::DeleteRecords(request) => {
            reply::Body::DeleteRecords(topics::delete_records(asking, &request).await?)
        }
        Body::ListOffsets(request) => reply::Body::ListOffsets(offsets::list(asking, &request).await?),
        Body::InitProducer(_) => reply::Body::InitProducer(offsets::init_producer(context).await?),
        Body::CommitOffsets(request) => reply::Body::CommitOffsets(groups::commit(asking, request).await?),
        Body::DescribeGroup(request) => reply::Body::Group(groups::describe(asking, request.group).await?),
        Body::ListGroups(request) => reply::Body::ListGroups(groups::list(asking, &request).await?),
        Body::DeleteGroup(request) => groups::delete(context, request.group).await.map(done)?,
        Body::UploadPlugin(request) => {
            reply::Body::PluginVersion(plugins::upload(context, request, reader, payload).await?)
        }
        Body::ListPlugins(request) => reply::Body::ListPlugins(plugins::list(context, &request)),
        Body::DescribePlugin(request) => reply::Body::PluginVersion(plugins::describe(context, &request)?),
        Body::DeletePlugin(request) => plugins::delete(context, &request).await.map(done)?,
        Body::CreateDeployment(request) => {
            reply::Body::Deployment(deployments::create(asking, request).await?)
        }
        Body::ListDeployments(request) => {
            reply::Body::ListDeployments(deployments::list(asking, &request).await?)
        }
        Body::DescribeDeployment(request) => {
            reply::Body::Deployment(deployments::describe(asking, &request.name).await?)
        }
        Body::PauseDeployment(request) => {
            reply::Body::Deployment(deployments::pause(asking, &request.name).await?)
        }
        Body::ResumeDeployment(request) => {
            reply::Body::Deployment(deployments::resume(asking, &request.name).await?)
        }
        Body::DeleteDeployment(request) => deployments::delete(context, &request.name).await.map(done)?,
        Body::DeploymentLogs(request) => reply::Body::DeploymentLogs(deployments::logs(context, &request)?),
        Body::StateGet(request) => reply::Body::StateGet(state::get(asking, request).await?),
        Body::StateScan(request) => reply::Body::StateScan(state::scan(asking, request).await?),
        Body::ClusterStatus(_) => reply::Body::ClusterStatus(status::cluster(context).await),
        Body::Metrics(_) => reply::Body::Metrics(status::metrics(context)),
        Body::CreateJoinToken(request) => {
            reply::Body::JoinToken(brokers::create_join_token(context, &request).await?)
        }
        Body::DrainBroker(request) => brokers::drain(context, &request).await.map(done)?,
        Body::RemoveBroker(request) => brokers::remove(context, &request).await.map(done)?,
        Body::AlterCluster(request) => brokers::alter(context, &request).await.map(done)?,
    })
}

/// Whether there is nothing to answer before the cluster is formed. Of no topic, the metadata say where the brokers are.
fn needs_the_cluster(body: &request::Body) -> bool {
    use request::Body;
    match body {
        Body::ClusterStatus(_) | Body::Metrics(_) => false,
        Body::Metadata(request) => request.all || !request.topics.is_empty(),
        _ => true,
    }
}

/// Whether it leaves everything as it is.
const fn only_reads(body: &request::Body) -> bool {
    use request::Body;
    matches!(
        body,
        Body::Metadata(_)
            | Body::DescribeTopic(_)
            | Body::ListOffsets(_)
            | Body::DescribeGroup(_)
            | Body::ListGroups(_)
            | Body::ListPlugins(_)
            | Body::DescribePlugin(_)
            | Body::ListDeployments(_)
            | Body::DescribeDeployment(_)
            | Body::DeploymentLogs(_)
            | Body::StateGet(_)
            | Body::StateScan(_)
            | Body::ClusterStatus(_)
            | Body::Metrics(_)
    )
}

/// Whether the answer depends on what the controller decided, and is asked for seldom enough to make sure that it is known here.
const fn is_about_metadata(body: &request::Body) -> bool {
    use request::Body;
    !matches!(
        body,
        Body::Metadata(_)
            | Body::ListOffsets(_)
            | Body::InitProducer(_)
            | Body::CommitOffsets(_)
            | Body::DescribeGroup(_)
            | Body::ListGroups(_)
            | Body::DeleteGroup(_)
            | Body::ClusterStatus(_)
            | Body::Metrics(_)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waited_in_vain_hears_what_is_known_of_it() {
        let said =
            |only_reads, waits_for_others| late(Duration::from_secs(2), only_reads, waits_for_others).message;
        assert_eq!(said(false, false), "no answer within 2000 ms; it may still take effect");
        assert_eq!(said(true, false), "no answer within 2000 ms");
        let with_others = said(true, true);
        assert!(
            with_others.ends_with("`tidemill cluster status` shows which brokers are away"),
            "{with_others}"
        );
        assert!(!with_others.contains("take effect"), "{with_others}");
    }
}
