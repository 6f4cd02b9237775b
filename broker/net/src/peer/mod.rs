//! Brokers among themselves: one endpoint that is dialled and dials.
//!
//! - **Who is who.** Both sides show a certificate that the cluster's authority signed; which broker that is, its subject says
//!   ([`PeerIdentity`]). Where it is, is not in it: every peer answers to one name.
//! - **Who joins** has no certificate yet, and knows of the cluster what its [`JoinToken`] says: the authority's fingerprint. A
//!   broker shows the authority's certificate behind its own, so the fingerprint is enough to know it by. Who shows no certificate is
//!   treated as a joiner: one stream, small frames, a few seconds, and few of them at a time. These are also the terms on which every
//!   connection begins; they are widened once it is known whose it is.
//! - **Welcome.** In TLS 1.3 who dials is done before the other side has looked at its certificate. So the other side says that it lets
//!   it in: one byte ([`WELCOME`]) on a one-way stream, the only one there is. Until then the dialled connection is not
//!   handed out, and who is turned away gets a [`DialError`] with the reason instead of a connection that breaks soon after.
//! - **Liveness.** Both sides send something at least every `keep_alive` (half a second) and give a connection up that has been silent
//!   for `idle_timeout` (two seconds). A peer that was started again is noticed with the next packet (`reset.rs`).
//! - **Large frames hold up no heartbeats.** quinn sends of streams a packet each in turn: a small frame waits for at most one packet per
//!   other stream, and behind that for what is in flight already, which [`tidemill_transport`] bounds. What streams do share is the
//!   connection's windows, on both sides. One stream takes up no more of them than its own window, of which they hold 32. quinn says
//!   that a window has moved when an eighth of it has, so with 27 streams that nobody reads the 28th still moves; with more it may stand
//!   until one of them is read. Within one stream order is order: what must not wait for a large frame needs another stream.

mod dial;
mod door;
mod endpoint;
mod error;
mod join;
mod limits;
mod refusal;
mod token;

pub use endpoint::PeerEndpoint;
pub use error::DialError;
pub use join::dial_to_join;
pub use limits::{PeerLimits, PeerNetConfig};
pub use token::{JoinToken, JoinTokenError};

/// What a peer that is let in reads on the one-way stream that the other side opens: it leaves room for terms.
const WELCOME: u8 = 1;
