//! The cluster's brokers: taken in, drained, removed.

use std::sync::Arc;

use tidemill_controller::{ControllerCommand, ControllerReply, SettingsChange};
use tidemill_net::JoinToken;
use tidemill_protocol::messages::{
    self, AlterClusterRequest, CreateJoinTokenRequest, DrainBrokerRequest, Error, RemoveBrokerRequest,
};
use tidemill_protocol::{BrokerId, ErrorCode};

use crate::context::Context;
use crate::errors;
use crate::handlers::stopped::check_working_without;
use crate::handlers::topics::control;

/// How long a token may be used where nothing is said, and at the longest.
const TOKEN_VALID_MS_DEFAULT: u64 = 60 * 60 * 1000;
const TOKEN_VALID_MS_MAX: u64 = 7 * 24 * 60 * 60 * 1000;

/// Makes a token with which one broker may join, once.
pub(crate) async fn create_join_token(
    context: &Arc<Context>,
    request: &CreateJoinTokenRequest,
) -> Result<messages::JoinToken, Error> {
    if context.peers.is_none() {
        return Err(Error::new(
            ErrorCode::ClusterChangeRefused,
            "this broker has no port for other brokers: set peers.listen and start it again, then ask again",
        ));
    }
    let authority = context.authority()?;
    let valid_ms = match request.valid_ms {
        0 => TOKEN_VALID_MS_DEFAULT,
        asked if asked > TOKEN_VALID_MS_MAX => {
            return Err(Error::new(
                ErrorCode::ClusterChangeRefused,
                format!("a token is valid for 7 days at the most, and {asked} ms are more; ask for less"),
            ));
        }
        asked => asked,
    };
    let expires_at = (context.clock)().plus_ms(i64::try_from(valid_ms).unwrap_or(i64::MAX));
    // From the system's random source, 122 bits of each half.
    let (one, other) = (uuid::Uuid::new_v4(), uuid::Uuid::new_v4());
    let mut secret = [0; 32];
    secret[..16].copy_from_slice(one.as_bytes());
    secret[16..].copy_from_slice(other.as_bytes());
    let token =
        JoinToken { cluster: context.meta.cluster, fingerprint: authority.fingerprint(), secret, expires_at };
    let command = ControllerCommand::CreateJoinToken {
        hash: *blake3::hash(&token.secret).as_bytes(),
        broker: (request.broker_id != 0).then(|| BrokerId::new(request.broker_id)),
        expires_at,
    };
    done(control(context, command).await?)?;
    Ok(messages::JoinToken { token: token.to_string(), expires_at: expires_at.get() })
}

pub(crate) async fn drain(context: &Arc<Context>, request: &DrainBrokerRequest) -> Result<(), Error> {
    let broker = BrokerId::new(request.broker_id);
    let command = match request.undo {
        false => ControllerCommand::Drain { broker },
        true => ControllerCommand::Undrain { broker },
    };
    done(control(context, command).await?)
}

pub(crate) async fn remove(context: &Arc<Context>, request: &RemoveBrokerRequest) -> Result<(), Error> {
    let broker = BrokerId::new(request.broker_id);
    check_working_without(context, broker, &format!("removing broker {broker}")).await?;
    done(control(context, ControllerCommand::Remove { broker }).await?)
}

pub(crate) async fn alter(context: &Arc<Context>, request: &AlterClusterRequest) -> Result<(), Error> {
    let change = SettingsChange {
        rebuild_delay_ms: request.rebuild_delay_ms,
        snapshot_bytes_per_second: request.snapshot_bytes_per_second,
    };
    done(control(context, ControllerCommand::AlterSettings(change)).await?)
}

fn done(reply: ControllerReply) -> Result<(), Error> {
    match reply {
        ControllerReply::Done | ControllerReply::Broker(_) => Ok(()),
        other => Err(errors::another_reply(&other)),
    }
}
