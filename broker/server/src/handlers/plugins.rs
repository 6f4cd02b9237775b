//! The plugin registry: upload, list, describe, delete.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tidemill_controller::{
    ConfigKey, ControllerCommand, ControllerError, ControllerReply, Name, PluginKind, PluginRecord,
    PluginUpload,
};
use tidemill_net::FrameReader;
use tidemill_protocol::ErrorCode;
use tidemill_protocol::messages::{
    self, DeletePluginRequest, DescribePluginRequest, Error, ListPluginsReply, ListPluginsRequest,
    PayloadChunk, PluginVersion, UploadPluginRequest,
};

use crate::components;
use crate::connection::read_error;
use crate::context::Context;
use crate::errors;
use crate::handlers::page::page;
use crate::handlers::topics::control;
use crate::naming::unknown_plugin;
use crate::view::ClusterView;

const SUMMARY_CHARACTERS_MAX: usize = 1000;
/// How long a component may take to arrive: so long, and as much longer as it takes at this rate. Its place is others' too.
const RECEIVE_TIME: Duration = Duration::from_secs(10);
const RECEIVE_BYTES_PER_MILLISECOND_MIN: u64 = 512;

/// Takes a component in: its bytes, a check of what it is, a compilation; then it is registered.
pub(crate) async fn upload(
    context: &Arc<Context>,
    request: UploadPluginRequest,
    reader: &mut FrameReader,
    first: Bytes,
) -> Result<PluginVersion, Error> {
    context.room_to_write()?;
    let limit = context.config.limits.plugin_bytes_max;
    if request.size > limit {
        return Err(Error::new(
            ErrorCode::PluginTooLarge,
            format!(
                "the component has {} bytes, this broker takes up to {limit} (limits.plugin_bytes_max)",
                request.size
            ),
        ));
    }
    let plugin = name(&request.name)?;
    let version =
        Some(request.version.as_str()).filter(|version| !version.is_empty()).map(name).transpose()?;
    let bytes = {
        let _place = context.uploads.try_acquire().map_err(|_| too_many_uploads())?;
        let time = RECEIVE_TIME + Duration::from_millis(request.size / RECEIVE_BYTES_PER_MILLISECOND_MIN);
        tokio::time::timeout(time, receive(request.size, reader, first)).await.map_err(|_| {
            let reason = format!("the component did not come within {} s; upload it again", time.as_secs());
            Error::new(ErrorCode::Deadline, reason)
        })??
    };
    let place = context.compiles.acquire().await.map_err(|_| too_many_uploads())?;
    let digest = *blake3::hash(&bytes).as_bytes();
    if digest.as_slice() != request.blake3.as_ref() {
        return Err(Error::new(
            ErrorCode::DigestMismatch,
            "the component's bytes do not have the digest that was announced; upload it again",
        ));
    }
    let hold = context.hosting.hold(digest).await.map_err(|_| errors::stopping())?;
    let checked = context.hosting.check_upload(bytes).await;
    let checked = checked.map_err(|error| components::elsewhere(context, errors::upload(&error)))?;
    // Others compile it, too: two brokers whose uploads held all places would wait for each other.
    drop(place);
    let upload = PluginUpload {
        name: plugin,
        version,
        kind: match checked.kind {
            tidemill_hosting::PluginKind::Partitioner => PluginKind::Partitioner,
            tidemill_hosting::PluginKind::Filter => PluginKind::Filter,
            tidemill_hosting::PluginKind::Consumer => PluginKind::Consumer,
        },
        digest: checked.digest,
        size: checked.size,
        summary: checked.summary.chars().take(SUMMARY_CHARACTERS_MAX).collect(),
        config: checked
            .config
            .into_iter()
            .map(|key| ConfigKey {
                name: key.name,
                doc: key.doc,
                required: key.required,
                default: key.default,
            })
            .collect(),
    };
    // It would be refused in the end: the other brokers need not keep and compile it for that.
    may_register(context, &upload).await?;
    components::spread(context, upload.digest).await?;
    // Should this request end before its answer is there, the version may still be registered.
    let registering = components::registering(context, upload.digest, hold);
    let registered = control(context, ControllerCommand::RegisterPlugin(upload)).await;
    if !registered.as_ref().is_err_and(|error| error.code == ErrorCode::OutcomeUnknown.code()) {
        registering.settle();
    }
    match registered? {
        ControllerReply::Plugin(record) => Ok(version_message(&record)),
        other => Err(errors::another_reply(&other)),
    }
}

/// Refuses other contents for a version that there is. Only what the controller says now counts: this broker may not have heard that the
/// version was deleted.
async fn may_register(context: &Context, upload: &PluginUpload) -> Result<(), Error> {
    let Some(version) = &upload.version else { return Ok(()) };
    let differs = |view: &ClusterView| {
        let existing = view.plugin(upload.name.as_str(), Some(version.as_str()));
        existing.is_some_and(|existing| existing.digest != upload.digest)
    };
    if differs(&context.view.now())
        && let Some(view) = context.asked_view().await
        && differs(&view)
    {
        let (plugin, version) = (upload.name.to_string(), version.to_string());
        return Err(errors::controller(&ControllerError::PluginExists { plugin, version }));
    }
    Ok(())
}

fn too_many_uploads() -> Error {
    Error::new(ErrorCode::Overloaded, "too many plugins are being uploaded to this broker; try again")
}

/// Collects the component from the first frame and those that follow; never more than was announced.
async fn receive(size: u64, reader: &mut FrameReader, first: Bytes) -> Result<Bytes, Error> {
    let size = usize::try_from(size).unwrap_or(usize::MAX);
    let wrong_size = || errors::bad_message(&format!("more bytes came than the {size} that were announced"));
    if first.len() == size {
        return Ok(first);
    }
    if first.len() > size {
        return Err(wrong_size());
    }
    // Grows with what arrives: an announced size alone takes no memory.
    let mut bytes = BytesMut::from(first.as_ref());
    while bytes.len() < size {
        let frame = match reader.next().await {
            Ok(Some(frame)) => frame,
            Ok(None) => {
                let came = format!("the upload ended after {} of {size} bytes", bytes.len());
                return Err(errors::bad_message(&came));
            }
            Err(error) => return Err(read_error(&error)),
        };
        frame
            .message::<PayloadChunk>()
            .map_err(|_| errors::bad_message("after an upload's first frame come chunks"))?;
        if frame.payload.is_empty() || bytes.len() + frame.payload.len() > size {
            return Err(wrong_size());
        }
        bytes.extend_from_slice(&frame.payload);
    }
    Ok(bytes.freeze())
}

pub(crate) fn list(context: &Context, request: &ListPluginsRequest) -> ListPluginsReply {
    let view = context.view.now();
    let after = (request.after_name.as_str(), request.after_version.as_str());
    let behind = |record: &&PluginRecord| (record.name.as_str(), record.version.as_str()) > after;
    let versions = view.controller().plugins().filter(behind).map(version_message);
    let (versions, more) = page(versions, request.limit);
    ListPluginsReply { versions, more }
}

pub(crate) fn describe(context: &Context, request: &DescribePluginRequest) -> Result<PluginVersion, Error> {
    let plugin = name(&request.name)?;
    let version =
        Some(request.version.as_str()).filter(|version| !version.is_empty()).map(name).transpose()?;
    let view = context.view.now();
    let wanted = version.as_ref().map(Name::as_str);
    view.plugin(plugin.as_str(), wanted)
        .map(version_message)
        .ok_or_else(|| unknown_plugin(&view, plugin.as_str(), wanted))
}

pub(crate) async fn delete(context: &Arc<Context>, request: &DeletePluginRequest) -> Result<(), Error> {
    let plugin = name(&request.name)?;
    let version =
        Some(request.version.as_str()).filter(|version| !version.is_empty()).map(name).transpose()?;
    let view = context.view.now();
    let wanted = version.as_ref().map(Name::as_str);
    if view.plugin(plugin.as_str(), wanted).is_none() {
        return Err(unknown_plugin(&view, plugin.as_str(), wanted));
    }
    drop(view);
    let command = ControllerCommand::DeletePlugin { name: plugin, version };
    control(context, command).await.map(|_| ())
}

/// Parses the name of a plugin, of a version of it, or of a deployment.
pub(crate) fn name(text: &str) -> Result<Name, Error> {
    Name::parse(text).map_err(|error| errors::invalid_name(&error))
}

fn version_message(record: &PluginRecord) -> PluginVersion {
    let kind = match record.kind {
        PluginKind::Partitioner => messages::PluginKind::Partitioner,
        PluginKind::Filter => messages::PluginKind::Filter,
        PluginKind::Consumer => messages::PluginKind::Consumer,
    };
    PluginVersion {
        name: record.name.to_string(),
        version: record.version.to_string(),
        kind: kind.into(),
        blake3: Bytes::copy_from_slice(&record.digest),
        size: record.size,
        uploaded_at: record.uploaded_at.get(),
        summary: record.summary.clone(),
        config: record
            .config
            .iter()
            .map(|key| messages::ConfigKey {
                name: key.name.clone(),
                doc: key.doc.clone(),
                required: key.required,
                default: key.default.clone(),
            })
            .collect(),
    }
}
