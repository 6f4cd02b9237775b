//! What clients may ask: one file per stream kind, one file per area of requests.

pub(crate) mod control;
pub(crate) mod intake;
pub(crate) mod produce;
pub(crate) mod request;
pub(crate) mod routed;
pub(crate) mod subscribe;

mod acks;
mod adoption;
mod brokers;
mod deployments;
mod groups;
mod interest;
mod metadata;
mod offsets;
mod page;
mod plugins;
mod produce_filter;
mod state;
pub(crate) mod status;
pub(crate) mod stopped;
pub(crate) mod topics;
