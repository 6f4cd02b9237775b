//! The room as its neighbours see it, with plugins that do as they should and with plugins that do not.

mod compiling;
mod contract_versions;
mod hostile_calls;
mod hostile_tasks;
mod kit;
mod uploads;
mod well_behaved;
