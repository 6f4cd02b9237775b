//! Whole brokers, as their users meet them: real processes, real clients, real plugins.

mod bad_input;
mod bystander;
mod directory;
mod disk;
mod disk_tasks;
mod fixed_settings;
mod hostile;
mod kit;
mod metrics;
mod path_plugins;
mod produce_consume;
mod raw;
mod restart;
mod tasks;
