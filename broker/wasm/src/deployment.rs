//! What all instances of one (version, configuration) share.

use std::sync::Arc;

use crate::batch::Context;
use crate::bindings::tidemill::plugin::types;
use crate::compiled::Compiled;
use crate::error::{CallError, Failure};
use crate::limits::PluginLimits;
use crate::sink::GuestSink;
use crate::text::cut;

pub(crate) struct Deployment {
    pub(crate) compiled: Compiled,
    pub(crate) context: Context,
    pub(crate) limits: Arc<PluginLimits>,
    pub(crate) sink: Arc<dyn GuestSink>,
}

impl Deployment {
    pub(crate) fn new(
        compiled: Compiled,
        context: Context,
        limits: PluginLimits,
        sink: Arc<dyn GuestSink>,
    ) -> Self {
        Self { compiled, context, limits: Arc::new(limits), sink }
    }

    pub(crate) fn failed(&self, failure: types::Failure) -> CallError {
        let reason_bytes_max = self.limits.reason_bytes_max;
        CallError::Failed(match failure {
            types::Failure::Retry(reason) => Failure::Retry(cut(reason, reason_bytes_max)),
            types::Failure::Reject(reason) => Failure::Reject(cut(reason, reason_bytes_max)),
        })
    }
}
