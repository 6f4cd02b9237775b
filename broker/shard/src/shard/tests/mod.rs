//! The shard as a whole, on storage that tests own.

mod faults;
mod lifecycle;
mod marked;
mod model;
mod model_tests;
mod repair;
mod tasks;
mod world;
