//! Producer ids: handed out in blocks, so that a broker asks the controller seldom.

use serde::{Deserialize, Serialize};
use tidemill_protocol::ProducerId;

/// Ids `first .. first + count`, given to one broker and to no other, ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProducerIdBlock {
    /// The first.
    pub first: ProducerId,
    /// How many.
    pub count: u32,
}
