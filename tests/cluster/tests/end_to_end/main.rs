//! Whole brokers, as their users meet them: real processes, real clients, real plugins.

mod bad_input;
mod bystander;
mod client_example;
mod command_line;
mod directory;
mod disk;
mod disk_fails;
mod disk_tasks;
mod each_kind;
mod fixed_settings;
mod hostile;
mod idempotence;
mod kit;
mod leftovers;
mod metrics;
mod path_plugins;
mod plugin_time;
mod plugins_on_fixtures;
mod produce_consume;
mod produce_filters;
mod raw;
mod refusals;
mod restart;
mod small_disk;
mod tasks;
mod worked_example;
