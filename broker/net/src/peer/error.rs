use std::time::Duration;

use thiserror::Error;
use tidemill_protocol::ErrorCode;

use super::refusal::Fault;
use crate::PeerIdentity;

/// Why a peer was not reached, or is none.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DialError {
    /// What was given is no address.
    #[error("{address} is no address of a broker: {reason}; give HOST:PORT of its peers' port")]
    Address {
        /// As given.
        address: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The host has no address that could be used.
    #[error(
        "the host of {address} cannot be found: {reason}; is its name right, and does this machine resolve it?"
    )]
    Host {
        /// As given.
        address: String,
        /// What the resolver said.
        reason: String,
    },
    /// Nothing came back.
    #[error(
        "no answer from {address} within {waited:.1?}; is the broker running, is this its peers' port, and do UDP packets pass between here and there?"
    )]
    NoAnswer {
        /// As given.
        address: String,
        /// Until it was given up.
        waited: Duration,
    },
    /// The other side is no broker of this cluster, as far as its certificate says.
    #[error(
        "the broker at {address} is not of this cluster: {reason}; is the address right, and do both brokers have the same ca.pem?"
    )]
    Stranger {
        /// As given.
        address: String,
        /// What its certificate lacks.
        reason: String,
    },
    /// The other side does not take this broker's certificate.
    #[error(
        "the broker at {address} does not accept this broker's certificate: {reason}; do both have the same ca.pem, and are their clocks right?"
    )]
    NotAccepted {
        /// As given.
        address: String,
        /// What TLS said there.
        reason: String,
    },
    /// The authority of the other side is not the one that a join token names.
    #[error(
        "the broker at {address} is not of the cluster that made the join token: none of the certificates that it shows has the token's fingerprint. Is the address right, and the token this cluster's? Nothing was sent"
    )]
    Fingerprint {
        /// As given.
        address: String,
    },
    /// Somebody answers, but not as a peer.
    #[error(
        "{address} does not speak the peers' protocol; it may be the clients' port of that broker, or another release of it"
    )]
    Protocol {
        /// As given.
        address: String,
    },
    /// The other side turned this broker away, and said why.
    #[error("the broker at {address} turned this one away (code {code}): {reason}")]
    Refused {
        /// As given.
        address: String,
        /// Of docs/errors.md.
        code: u64,
        /// In the other side's words.
        reason: String,
    },
    /// The other side stops, or has as many connections as it takes.
    #[error(
        "the broker at {address} takes no connections just now: it is stopping, or has as many as it takes; try again later, and if it goes on, look there for who holds so many"
    )]
    Crowded {
        /// As given.
        address: String,
    },
    /// The endpoint was closed.
    #[error("this broker's endpoint for peers was closed")]
    Closed,
    /// Anything else that QUIC or TLS found.
    #[error("could not connect to the broker at {address}: {reason}")]
    Failed {
        /// As given.
        address: String,
        /// What was found.
        reason: String,
    },
}

impl DialError {
    pub(super) fn new(address: &str, fault: Fault, waited: Duration) -> Self {
        let address = address.to_owned();
        match fault {
            Fault::TheirCertificate(said) => {
                Self::Stranger { address, reason: format!("its certificate will not do: {said}") }
            }
            Fault::OurCertificate(reason) => Self::NotAccepted { address, reason },
            Fault::Fingerprint => Self::Fingerprint { address },
            Fault::Protocol => Self::Protocol { address },
            Fault::Crowded => Self::Crowded { address },
            Fault::Refused { code, reason } => Self::Refused { address, code, reason },
            Fault::Silent => Self::NoAnswer { address, waited },
            Fault::ClosedHere => Self::Closed,
            Fault::Other(reason) => Self::Failed { address, reason },
        }
    }

    pub(super) fn stranger(address: &str, own: &PeerIdentity, theirs: Option<PeerIdentity>) -> Self {
        let reason = match theirs {
            Some(theirs) => format!("it is {theirs}, and this one is {own}"),
            None => "its certificate is not a broker's for its peers".to_owned(),
        };
        Self::Stranger { address: address.to_owned(), reason }
    }

    /// Whether the same may go well a little later, with nothing changed by anybody.
    #[must_use]
    pub const fn is_transient(&self) -> bool {
        match self {
            Self::Host { .. } | Self::NoAnswer { .. } | Self::Crowded { .. } | Self::Failed { .. } => true,
            Self::Refused { code, .. } => *code != ErrorCode::Unauthenticated.code() as u64,
            _ => false,
        }
    }

    /// For the counter.
    pub(super) const fn kind(&self) -> &'static str {
        match self {
            Self::Address { .. } => "address",
            Self::Host { .. } => "host",
            Self::NoAnswer { .. } => "no_answer",
            Self::Stranger { .. } => "stranger",
            Self::NotAccepted { .. } => "not_accepted",
            Self::Fingerprint { .. } => "fingerprint",
            Self::Protocol { .. } => "protocol",
            Self::Refused { .. } => "refused",
            Self::Crowded { .. } => "crowded",
            Self::Closed => "closed",
            Self::Failed { .. } => "failed",
        }
    }

    /// Whether somebody was there.
    pub(super) const fn is_answer(&self) -> bool {
        !matches!(self, Self::Address { .. } | Self::Host { .. } | Self::NoAnswer { .. })
    }
}
