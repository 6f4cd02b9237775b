use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tidemill_protocol::messages::{
    DeletePluginRequest, DescribePluginRequest, ListPluginsRequest, PluginVersion, UploadPluginRequest,
    request,
};

use super::{all_pages, body_of};
use crate::cluster::{Cluster, Repeat};
use crate::{Client, RequestError};

/// A component is sent, validated and compiled: large ones take their time.
const UPLOAD_TIMEOUT: Duration = Duration::from_secs(300);

/// Uploaded components. From [`Client::plugins`].
#[derive(Debug, Clone)]
pub struct Plugins {
    cluster: Arc<Cluster>,
}

impl Client {
    /// Plugins: upload, list, describe, delete.
    #[must_use]
    pub fn plugins(&self) -> Plugins {
        Plugins { cluster: Arc::clone(&self.cluster) }
    }
}

impl Plugins {
    /// Uploads a component under a name and version (empty: the next number). The same bytes under the same version
    /// are no error.
    ///
    /// # Errors
    /// The broker's reasons not to take it, or no answer.
    pub async fn upload(
        &self,
        name: &str,
        version: &str,
        component: impl Into<Bytes>,
    ) -> Result<PluginVersion, RequestError> {
        let component = component.into();
        let body = request::Body::UploadPlugin(UploadPluginRequest {
            name: name.to_owned(),
            version: version.to_owned(),
            size: component.len() as u64,
            blake3: Bytes::copy_from_slice(blake3::hash(&component).as_bytes()),
        });
        // Without a version each upload that arrives makes one.
        let repeat = if version.is_empty() { Repeat::IfUntouched } else { Repeat::Freely };
        body_of!(self.cluster.call_with(body, component, repeat, UPLOAD_TIMEOUT).await?, PluginVersion)
    }

    /// All versions of all plugins.
    ///
    /// # Errors
    /// No answer.
    pub async fn list(&self) -> Result<Vec<PluginVersion>, RequestError> {
        all_pages(|last: Option<&PluginVersion>| {
            let (after_name, after_version) =
                last.map(|last| (last.name.clone(), last.version.clone())).unwrap_or_default();
            let body = request::Body::ListPlugins(ListPluginsRequest { after_name, after_version, limit: 0 });
            async move {
                let page = body_of!(self.cluster.call(body, Repeat::Freely).await?, ListPlugins)?;
                Ok((page.versions, page.more))
            }
        })
        .await
    }

    /// One version of a plugin (empty: the newest).
    ///
    /// # Errors
    /// No such plugin or version, or no answer.
    pub async fn describe(&self, name: &str, version: &str) -> Result<PluginVersion, RequestError> {
        let body = DescribePluginRequest { name: name.to_owned(), version: version.to_owned() };
        body_of!(self.cluster.call(request::Body::DescribePlugin(body), Repeat::Freely).await?, PluginVersion)
    }

    /// Deletes one version of a plugin.
    ///
    /// # Errors
    /// No such plugin or version, a deployment uses it, or no answer.
    pub async fn delete(&self, name: &str, version: &str) -> Result<(), RequestError> {
        let body = DeletePluginRequest { name: name.to_owned(), version: version.to_owned() };
        body_of!(self.cluster.call(request::Body::DeletePlugin(body), Repeat::IfUntouched).await?, Empty)
            .map(drop)
    }
}
