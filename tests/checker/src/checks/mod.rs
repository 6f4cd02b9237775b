//! The checks, by what they look at. Those named `at_end` run once the history is over.

pub(crate) mod filters;
pub(crate) mod groups;
pub(crate) mod losses;
pub(crate) mod order;
pub(crate) mod places;
pub(crate) mod polls;
pub(crate) mod reads;
pub(crate) mod replicas;
pub(crate) mod sends;
pub(crate) mod tasks;
pub(crate) mod transactions;
