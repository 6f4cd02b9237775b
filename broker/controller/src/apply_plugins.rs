//! The plugin registry.

use tidemill_protocol::Timestamp;

use crate::changes::ObjectKey;
use crate::command::ControllerReply;
use crate::error::ControllerError;
use crate::names::Name;
use crate::plugin::{PluginRecord, PluginUpload};
use crate::state::{Bounds, Controller};

impl Controller {
    pub(crate) fn register_plugin(
        &mut self,
        upload: &PluginUpload,
        now: Timestamp,
    ) -> Result<ControllerReply, ControllerError> {
        let name = upload.name.as_str();
        let version = match &upload.version {
            Some(version) => version.clone(),
            None => match self.plugin_versions(name).find(|record| record.digest == upload.digest) {
                // The same bytes without a version asked for: they are there already.
                Some(record) => return Ok(ControllerReply::Plugin(Box::new(record.clone()))),
                None => self.next_whole_version(name),
            },
        };
        if let Some(existing) = self.plugin(name, Some(version.as_str())) {
            return if existing.digest == upload.digest {
                Ok(ControllerReply::Plugin(Box::new(existing.clone())))
            } else {
                Err(ControllerError::PluginExists { plugin: name.to_owned(), version: version.to_string() })
            };
        }
        if self.plugins.len() >= Bounds::PLUGIN_VERSIONS_MAX {
            return Err(ControllerError::TooMany {
                what: "plugin versions",
                limit: Bounds::PLUGIN_VERSIONS_MAX,
            });
        }
        let number = self.header.next_plugin_number;
        self.header.next_plugin_number += 1;
        let record = PluginRecord {
            name: upload.name.clone(),
            version,
            number,
            kind: upload.kind,
            digest: upload.digest,
            size: upload.size,
            uploaded_at: now,
            summary: upload.summary.clone(),
            config: upload.config.clone(),
        };
        self.note_change(ObjectKey::plugin(&record));
        self.plugins.insert((record.name.to_string(), record.version.to_string()), record.clone());
        self.next_version();
        Ok(ControllerReply::Plugin(Box::new(record)))
    }

    fn next_whole_version(&self, name: &str) -> Name {
        let highest = self
            .plugin_versions(name)
            .filter_map(|record| record.version.as_str().parse::<u64>().ok())
            .max()
            .unwrap_or(0);
        Name::parse(&highest.saturating_add(1).to_string()).expect("digits make a name")
    }

    pub(crate) fn delete_plugin(
        &mut self,
        name: &Name,
        version: Option<&Name>,
    ) -> Result<ControllerReply, ControllerError> {
        let doomed: Vec<PluginRecord> = self
            .plugin_versions(name.as_str())
            .filter(|record| version.is_none_or(|version| *version == record.version))
            .cloned()
            .collect();
        if doomed.is_empty() {
            let asked = version.map_or_else(|| name.to_string(), |version| format!("{name}@{version}"));
            return Err(ControllerError::UnknownPlugin(asked));
        }
        for record in &doomed {
            let user = self.deployments.values().find(|deployment| {
                !deployment.deleted
                    && deployment.spec.plugin == record.name
                    && deployment.spec.version.as_ref() == Some(&record.version)
            });
            if let Some(user) = user {
                return Err(ControllerError::PluginInUse {
                    plugin: format!("{}@{}", record.name, record.version),
                    deployment: user.spec.name.to_string(),
                });
            }
        }
        for record in &doomed {
            self.plugins.remove(&(record.name.to_string(), record.version.to_string()));
            self.note_change(ObjectKey::plugin(record));
        }
        self.next_version();
        Ok(ControllerReply::PluginsDeleted(doomed))
    }
}
