//! Brokers among themselves, over loopback: two and three of them, strangers, and those who would join.

mod joining;
mod liveness;
mod strangers;
mod together;
mod world;
