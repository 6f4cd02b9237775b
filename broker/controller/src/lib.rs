//! Cluster metadata as a pure state machine.
