//! Whole brokers, as their users meet them: real processes, real clients, real plugins.

mod bad_input;
mod bystander;
mod directory;
mod disk;
mod hostile;
mod kit;
mod path_plugins;
mod plugin_time;
mod produce_consume;
mod produce_filters;
mod raw;
mod refusals;
mod restart;
mod tasks;
