//! Tests of several parts together.

mod fixture;
mod proposing;
mod replicating;
mod slow_segments;
mod suite;
