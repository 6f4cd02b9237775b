//! Histories made by hand: of each kind one that must be found, as that kind and no other, and good ones.

mod files;
mod filters;
mod good;
mod jepsen;
mod kit;
mod ours;
mod replicas;
mod tasks;
mod transactions;
