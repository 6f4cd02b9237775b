//! Requests: topics, groups, offsets, plugins, deployments, state, status. One file per area.

mod cluster;
mod deployments;
mod groups;
mod offsets;
mod plugins;
mod state;
mod topics;

use crate::RequestError;

pub use deployments::{Deployments, NewDeployment};
pub use groups::{Commit, Groups};
pub use offsets::{OffsetAnswer, Offsets, Position};
pub use plugins::Plugins;
pub use state::{State, StateRange};
pub use topics::{NewTopic, Topics};

/// Everything of a list that comes in pages: each is asked for by the last item before it, and says whether there are more.
async fn all_pages<T, P>(mut page: impl FnMut(Option<&T>) -> P) -> Result<Vec<T>, RequestError>
where
    P: Future<Output = Result<(Vec<T>, bool), RequestError>>,
{
    let mut all: Vec<T> = Vec::new();
    loop {
        let (items, more) = page(all.last()).await?;
        let is_last = !more || items.is_empty();
        all.extend(items);
        if is_last {
            return Ok(all);
        }
    }
}

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
