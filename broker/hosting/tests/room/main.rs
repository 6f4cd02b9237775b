//! The room as its users see it: plugins on shards in memory.

mod components;
mod faulty;
mod kit;
mod limits;
mod outputs;
mod policies;
mod pools;
mod rehearsing;
mod steps;
mod timers;
mod unreadable;
