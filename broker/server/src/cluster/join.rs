//! How a broker with an empty data directory becomes one of a cluster's: with a token, once.
//!
//! ```text
//!   new broker                                     any broker of the cluster
//!   dials a seed, shows no certificate,
//!   checks the authority against the token  --->   JoinRequest: the token's secret, its number, its directory's id
//!                                                  asks the controller: Join, which a token allows once
//!   keeps all of it in its data directory   <---   JoinReply: cluster, incarnation, authority and its key
//! ```
//!
//! The directory's id is on the disk before the first attempt: an answer that got lost is given again to the same directory, and to
//! no other.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use tidemill_controller::{ControllerCommand, ControllerReply, MembershipError};
use tidemill_net::{ClusterCa, JoinToken, PeerLimits, TlsError, dial_to_join};
use tidemill_protocol::messages::Error;
use tidemill_protocol::{BrokerId, ClusterId, DirectoryId, ErrorCode};
use uuid::Uuid;

use crate::config::DurabilitySetting;
use crate::context::Context;
use crate::handlers::stopped::check_working_without;
use crate::handlers::topics::control;
use crate::peers::messages::{
    JoinReply, JoinRequest, KnownBroker, PEER_PROTOCOL_MAX, PEER_PROTOCOL_MIN, PeerOpen, Purpose,
};
use crate::peers::{Peers, decode_hello, own_hello};
use crate::whole_file::write_whole;

/// Holds the new directory's id until the broker belongs to the cluster.
const JOINING: &str = "joining";
/// For one attempt at one seed.
const ATTEMPT_DEADLINE: Duration = Duration::from_secs(20);
/// Attempts at all seeds, and the pause between them: a broker that is asked may just be starting, and one whose place is taken counts as alive
/// for some seconds after its end.
const ROUNDS_MAX: usize = 20;
const ROUND_PAUSE: Duration = Duration::from_secs(1);

/// Why a broker did not become one of the cluster's.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The token.
    #[error("the join token can't be used: {0}")]
    Token(String),
    /// A token without anybody to show it to.
    #[error("a join token needs a broker to show it to: name one with --seed HOST:PORT (its peers.listen)")]
    NoSeed,
    /// The data directory.
    #[error("{path}: {source}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The authority that came can't be kept.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The cluster said no.
    #[error("the cluster does not take this broker in: {0}")]
    Refused(String),
    /// The cluster does not say yes yet.
    #[error("the cluster does not take this broker in yet: {0}")]
    NotYet(String),
    /// No seed answered.
    #[error("no broker of the cluster was reached: {0}")]
    Unreachable(String),
}

/// What a new broker was told.
#[derive(Debug, Clone)]
pub(crate) struct Joined {
    pub(crate) cluster: ClusterId,
    pub(crate) incarnation: u32,
    pub(crate) directory: Uuid,
    pub(crate) shards: u16,
    pub(crate) durability: DurabilitySetting,
    /// Whom to find the others by.
    pub(crate) known: Vec<KnownBroker>,
}

/// Shows the token to the seeds, and keeps the authority that comes back.
pub(crate) async fn join(
    data_dir: &Path,
    broker: BrokerId,
    rack: &str,
    token: &str,
    seeds: &[String],
) -> Result<Joined, JoinError> {
    let token: JoinToken = token.parse().map_err(|error| JoinError::Token(format!("{error}")))?;
    if seeds.is_empty() {
        return Err(JoinError::NoSeed);
    }
    let directory = directory_id(data_dir)?;
    let request = JoinRequest {
        protocol_min: PEER_PROTOCOL_MIN,
        protocol_max: PEER_PROTOCOL_MAX,
        secret: Bytes::copy_from_slice(&token.secret),
        broker_id: broker.get(),
        directory: Bytes::copy_from_slice(directory.as_bytes()),
        rack: rack.to_owned(),
        software: concat!("tidemill/", env!("CARGO_PKG_VERSION")).to_owned(),
    };
    let (mut troubles, mut answered) = (String::new(), false);
    for round in 0..ROUNDS_MAX {
        if round > 0 {
            tokio::time::sleep(ROUND_PAUSE).await;
        }
        let mut said = Vec::new();
        answered = false;
        for seed in seeds {
            let asked = tokio::time::timeout(ATTEMPT_DEADLINE, ask(seed, &token, request.clone())).await;
            let reply = match asked.unwrap_or_else(|_| Err("no answer in time".to_owned())) {
                Ok(reply) => reply,
                Err(reason) => {
                    said.push(format!("{seed}: {reason}"));
                    continue;
                }
            };
            match reply.error.clone().filter(|error| !error.is_none()) {
                Some(error) if error.retriable => {
                    answered = true;
                    said.push(format!("{seed}: {error}"));
                }
                Some(error) => return Err(JoinError::Refused(error.message)),
                None => return accept(data_dir, directory, &token, reply),
            }
        }
        troubles = said.join("; ");
        tracing::info!(troubles, "joining is tried again");
    }
    Err(if answered { JoinError::NotYet(troubles) } else { JoinError::Unreachable(troubles) })
}

async fn ask(seed: &str, token: &JoinToken, request: JoinRequest) -> Result<JoinReply, String> {
    let limits = PeerLimits::default();
    let connection =
        dial_to_join(seed, token.fingerprint, &limits).await.map_err(|error| error.to_string())?;
    let mut stream = connection.open_stream().await.map_err(|error| error.to_string())?;
    let open = PeerOpen::from(Purpose::Join(request));
    stream.writer.send(&open, &[]).await.map_err(|error| error.to_string())?;
    stream.writer.finish().await.map_err(|error| error.to_string())?;
    let answer = stream.reader.next().await.map_err(|error| error.to_string())?;
    let answer = answer.ok_or_else(|| "it ended the stream without an answer".to_owned())?;
    let reply = answer.message().map_err(|_| "its answer does not read".to_owned());
    connection.close(0, "thanks");
    reply
}

fn accept(
    data_dir: &Path,
    directory: Uuid,
    token: &JoinToken,
    reply: JoinReply,
) -> Result<Joined, JoinError> {
    let refused = |reason: &str| JoinError::Refused(reason.to_owned());
    let hello = reply.hello.ok_or_else(|| refused("its answer says no cluster"))?;
    let hello = decode_hello(hello).map_err(|error| JoinError::Refused(error.message))?;
    if hello.cluster != token.cluster {
        return Err(refused("it belongs to another cluster than the token"));
    }
    let durability = match &*reply.durability {
        "fsync" => DurabilitySetting::Fsync,
        "replicated" => DurabilitySetting::Replicated,
        _ => return Err(refused("its durability is none that this release knows")),
    };
    let shards = u16::try_from(reply.shards).map_err(|_| refused("it has more shards than there may be"))?;
    ClusterCa::from_pem(data_dir.join("tls"), &reply.authority, &reply.authority_key)?;
    let mut known = hello.known;
    known.push(hello.broker);
    Ok(Joined {
        cluster: hello.cluster,
        incarnation: reply.incarnation,
        directory,
        shards,
        durability,
        known,
    })
}

/// The new directory's id: the same at every attempt.
fn directory_id(data_dir: &Path) -> Result<Uuid, JoinError> {
    let path = data_dir.join(JOINING);
    let io = |source| JoinError::Io { path: path.clone(), source };
    match std::fs::read_to_string(&path) {
        Ok(text) => {
            return text
                .trim()
                .parse()
                .map_err(|error| io(io::Error::new(io::ErrorKind::InvalidData, error)));
        }
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io(error)),
        Err(_) => {}
    }
    let id = Uuid::new_v4();
    std::fs::create_dir_all(data_dir).map_err(io)?;
    write_whole(data_dir, JOINING, &id.to_string()).map_err(io)?;
    Ok(id)
}

/// The directory has an identity of its own from now on: nobody needs what it was called while it joined.
pub(crate) fn forget(data_dir: &Path) -> io::Result<()> {
    match std::fs::remove_file(data_dir.join(JOINING)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Takes a new broker in, if the controller allows it.
pub(crate) async fn take_in(context: &Context, peers: &Peers, request: JoinRequest) -> JoinReply {
    match taken_in(context, peers, request).await {
        Ok(reply) => reply,
        Err(error) => JoinReply { error: Some(error), ..JoinReply::default() },
    }
}

async fn taken_in(context: &Context, peers: &Peers, request: JoinRequest) -> Result<JoinReply, Error> {
    check_protocol(&request)?;
    let bad = |reason: &str| Error::new(ErrorCode::JoinRefused, reason.to_owned());
    let directory = Uuid::from_slice(&request.directory).map_err(|_| bad("a directory's id has 16 bytes"))?;
    if request.broker_id == 0 {
        return Err(bad("brokers are numbered from 1; name one with --broker-id"));
    }
    let hash = *blake3::hash(&request.secret).as_bytes();
    // Whoever knows no token writes nothing to the controller's log.
    let controller = context.shards.controller_now().await.ok_or_else(|| {
        Error::new(ErrorCode::NoQuorum, "no majority of the cluster answers to decide on it; try again")
    })?;
    let Some(token) = controller.join_tokens().find(|token| token.hash == hash) else {
        return Err(bad(&MembershipError::UnknownToken.to_string()));
    };
    let broker = BrokerId::new(request.broker_id);
    if token.used.is_none() {
        let what = format!("a new broker {broker} in the old one's place");
        check_working_without(context, broker, &what).await?;
    }
    let command = ControllerCommand::Join(tidemill_controller::JoinRequest {
        hash,
        broker: BrokerId::new(request.broker_id),
        directory: DirectoryId::new(directory),
        // It says where it is when it has come up.
        addresses: Vec::new(),
        peer_addresses: Vec::new(),
        rack: request.rack.clone(),
    });
    let ControllerReply::Joined { incarnation } = control(context, command).await? else {
        return Err(bad("the controller answered something else than was asked"));
    };
    let authority = context.authority()?;
    tracing::info!(broker = request.broker_id, incarnation, "a broker joins the cluster");
    Ok(JoinReply {
        error: None,
        hello: Some(own_hello(peers.myself(), peers.said())),
        incarnation,
        shards: u32::from(context.meta.shards),
        durability: context.meta.durability.to_string(),
        authority: authority.certificate_pem().to_owned(),
        authority_key: authority.key_pem().to_owned(),
    })
}

/// Refuses whom nobody here could talk to once it was let in.
fn check_protocol(request: &JoinRequest) -> Result<(), Error> {
    if request.protocol_min > PEER_PROTOCOL_MAX || request.protocol_max < PEER_PROTOCOL_MIN {
        return Err(Error::new(
            ErrorCode::PeerRefused,
            format!(
                "{} speaks versions {} to {} of the brokers' protocol, and this cluster {PEER_PROTOCOL_MIN} to {PEER_PROTOCOL_MAX}",
                request.software, request.protocol_min, request.protocol_max
            ),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_speaks_only_newer_or_older_versions_does_not_join_and_is_told_which_there_are() {
        let speaking = |protocol_min, protocol_max| {
            let software = "tidemill/9.9".to_owned();
            check_protocol(&JoinRequest { protocol_min, protocol_max, software, ..JoinRequest::default() })
        };
        for (min, max) in [
            (PEER_PROTOCOL_MIN, PEER_PROTOCOL_MAX),
            (PEER_PROTOCOL_MAX, PEER_PROTOCOL_MAX + 5),
            (0, PEER_PROTOCOL_MIN),
        ] {
            assert_eq!(speaking(min, max), Ok(()), "{min} to {max}");
        }
        for (min, max) in [(PEER_PROTOCOL_MAX + 1, PEER_PROTOCOL_MAX + 5), (0, PEER_PROTOCOL_MIN - 1)] {
            let error = speaking(min, max).expect_err("no version in common");
            assert_eq!(error.error_code(), Some(ErrorCode::PeerRefused));
            let theirs = format!("tidemill/9.9 speaks versions {min} to {max} ");
            let ours = format!("this cluster {PEER_PROTOCOL_MIN} to {PEER_PROTOCOL_MAX}");
            assert!(error.message.contains(&theirs) && error.message.contains(&ours), "{error:?}");
        }
    }
}
