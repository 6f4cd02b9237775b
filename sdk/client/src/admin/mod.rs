//! Requests: topics, groups, offsets, plugins, deployments, state, status. One file per area.

mod cluster;
mod deployments;
mod groups;
mod offsets;
mod plugins;
mod state;
mod topics;

pub use deployments::{Deployments, NewDeployment};
pub use groups::{Commit, Groups};
pub use offsets::{OffsetAnswer, Offsets, Position};
pub use plugins::Plugins;
pub use state::{State, StateRange};
pub use topics::{NewTopic, Topics};

/// The body of a reply that was expected; anything else makes no sense.
macro_rules! body_of {
    ($reply:expr, $variant:ident) => {
        match $reply {
            tidemill_protocol::messages::reply::Body::$variant(body) => Ok(body),
            _ => Err($crate::RequestError::BadAnswer(concat!("expected ", stringify!($variant)).to_owned())),
        }
    };
}
use body_of;
