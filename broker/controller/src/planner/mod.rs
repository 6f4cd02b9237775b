//! What the controller's leader should propose next, as a pure function of the state and of whom it hears.
//!
//! Small steps: who is asked again after a step was applied goes on from there, and where nothing is to be done nothing
//! is proposed. What a shard's leader does with a plan (learners, a joint change) is its own; a plan is never one that
//! would leave a shard without a majority of voters that are alive.

mod leaders;
mod liveness;
mod replicas;

use tidemill_protocol::Timestamp;

use crate::command::ControllerCommand;
use crate::state::Controller;

pub use liveness::Liveness;

/// So many commands at most come out of one call.
const PLAN_COMMANDS_MAX: usize = 64;

/// What to propose next; empty where nothing is to be done, or where what is under way must come to an end first.
///
/// `now` is the log's time.
#[must_use]
pub fn plan(controller: &Controller, now: Timestamp, liveness: &Liveness) -> Vec<ControllerCommand> {
    // Who lives decides everything else; who is to hold a shard decides who may lead it.
    let mut commands = liveness::plan(controller, liveness);
    if commands.is_empty() {
        commands = replicas::plan(controller, now);
    }
    if commands.is_empty() {
        commands = leaders::plan(controller);
    }
    commands.truncate(PLAN_COMMANDS_MAX);
    commands
}

#[cfg(test)]
mod tests;
