//! Whether what other brokers propose may come in.

use futures::future::BoxFuture;
use tidemill_shard::Unit;

use crate::error::ProposeError;
use crate::replica::Replica;

/// The broker's say about units that other brokers bring to a replica here, because it leads: whether there is room for them. What is
/// proposed on this broker itself passes the same checks before it comes to a replica.
pub trait Gate: Send + Sync {
    /// Waits for room for a unit; answers what is held until the unit is applied or never will be, even where its outcome was given up as
    /// unknown before, or the stream that brought it has ended.
    ///
    /// # Errors
    /// There is none: [`ProposeError::Overloaded`] or [`ProposeError::DiskFull`]. The unit is not written then.
    fn admit<'a>(&'a self, replica: &'a Replica, unit: &'a Unit)
    -> BoxFuture<'a, Result<Held, ProposeError>>;
}

/// Room that is given back when this is dropped. That may be while a replica's queue is locked: what is done then must neither wait nor
/// call a replica.
pub type Held = Box<dyn Send>;
