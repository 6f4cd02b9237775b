//! The command line against a broker, as somebody at a terminal uses it: every command is started, and what it prints and
//! how it ends is looked at.

mod away;
mod bench;
mod certificates;
mod consuming;
mod contexts;
mod failing;
mod first_steps;
mod grouping;
mod hosting;
mod inspecting;
mod producing;
mod settings;
mod terminal;
mod topics;

pub(crate) use first_steps::Newcomer;
