use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tidemill_protocol::messages::{
    self, ClientControl, ClientHello, Interest, ServerControl, ServerHello, StreamOpen, client_control,
    server_control, stream_open,
};
use tidemill_protocol::{BrokerId, ErrorCode};
use tokio::sync::watch;

use super::pool::Cluster;
use crate::error::server_error;
use crate::transport::{FrameReader, FrameWriter, ReadError, SendOrder, Wire, decode};
use crate::{ClientConfig, ConnectError, ServerError};

/// The protocol versions that this client speaks.
const PROTOCOL_MIN: u32 = 1;
const PROTOCOL_MAX: u32 = 1;
/// Control frames go before data.
const CONTROL_PRIORITY: i32 = 10;

/// The names of the topics whose metadata the brokers push.
pub(super) type InterestList = Arc<BTreeSet<Arc<str>>>;

/// What the broker allows, with sensible numbers where it says none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ServerLimits {
    pub(crate) batch_bytes_max: usize,
    pub(crate) frame_bytes_max: usize,
    pub(crate) produce_window_bytes: usize,
    pub(crate) produce_in_flight_max: usize,
    pub(crate) subscription_partitions_max: usize,
}

impl ServerLimits {
    fn new(limits: &messages::Limits) -> Self {
        let or = |value: u32, default: usize| match usize::try_from(value) {
            Ok(0) | Err(_) => default,
            Ok(value) => value,
        };
        Self {
            batch_bytes_max: or(limits.batch_bytes_max, 1 << 20),
            frame_bytes_max: or(limits.frame_bytes_max, 16 << 20),
            produce_window_bytes: or(limits.produce_window_bytes, 8 << 20),
            produce_in_flight_max: or(limits.produce_in_flight_max, 5),
            subscription_partitions_max: or(limits.subscription_partitions_max, 1024),
        }
    }
}

/// A connection whose hello was answered.
#[derive(Debug)]
pub(crate) struct BrokerConnection {
    pub(crate) quinn: quinn::Connection,
    pub(crate) broker: BrokerId,
    pub(crate) limits: ServerLimits,
    pub(crate) software: String,
    /// Of the batches on all its streams.
    pub(crate) order: SendOrder,
    going_away: AtomicBool,
}

impl BrokerConnection {
    /// Says hello on a fresh connection and keeps the control stream going in a task of its own.
    pub(super) async fn greet(
        quinn: quinn::Connection,
        address: &str,
        config: &ClientConfig,
        cluster: &Arc<Cluster>,
        interest: watch::Receiver<InterestList>,
    ) -> Result<Arc<Self>, ConnectError> {
        let hello = tokio::time::timeout(config.connect_timeout, hello(&quinn, config)).await;
        let (answer, wire) = match hello {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) if error.is_nonsense() => {
                return Err(ConnectError::BadAnswer {
                    address: address.to_owned(),
                    reason: error.to_string(),
                });
            }
            Ok(Err(error)) => return Err(not_greeted(&quinn, address, &error)),
            Err(_) => {
                let after = config.connect_timeout;
                return Err(ConnectError::TimedOut { address: address.to_owned(), after });
            }
        };
        server_error(answer.error)
            .map_err(|error| ConnectError::Refused { address: address.to_owned(), error })?;
        if !(PROTOCOL_MIN..=PROTOCOL_MAX).contains(&answer.protocol) {
            let reason = format!("it chose protocol version {}", answer.protocol);
            return Err(ConnectError::BadAnswer { address: address.to_owned(), reason });
        }
        let this = Arc::new(Self {
            quinn,
            broker: BrokerId::new(answer.broker_id),
            limits: ServerLimits::new(&answer.limits.unwrap_or_default()),
            software: answer.software,
            order: SendOrder::default(),
            going_away: AtomicBool::new(false),
        });
        if let Some(metadata) = answer.metadata {
            cluster.learn(metadata);
        }
        tokio::spawn(Arc::clone(&this).control(wire, Arc::downgrade(cluster), interest));
        Ok(this)
    }

    /// Whether new streams should be opened here.
    pub(crate) fn is_usable(&self) -> bool {
        self.quinn.close_reason().is_none() && !self.going_away.load(Ordering::Relaxed)
    }

    /// Tells the broker what the client is interested in, and takes what it pushes, until the connection ends.
    async fn control(
        self: Arc<Self>,
        wire: Wire,
        cluster: std::sync::Weak<Cluster>,
        mut interest: watch::Receiver<InterestList>,
    ) {
        let Wire { mut reader, mut writer } = wire;
        interest.mark_changed();
        loop {
            tokio::select! {
                changed = interest.changed() => {
                    if changed.is_err() {
                        break;
                    }
                    let topics = interest.borrow_and_update().iter().map(ToString::to_string).collect();
                    let message = ClientControl { kind: Some(client_control::Kind::Interest(Interest { topics })) };
                    if send_control(&mut writer, &message).await.is_err() {
                        break;
                    }
                }
                news = next_news(&mut reader) => match news {
                    Ok(ServerControl { kind: Some(server_control::Kind::Metadata(metadata)) }) => {
                        let Some(cluster) = cluster.upgrade() else { break };
                        cluster.learn(metadata);
                    }
                    Ok(ServerControl { kind: Some(server_control::Kind::GoingAway(notice)) }) => {
                        tracing::info!(broker = %self.broker, reason = notice.reason, "the broker is going away");
                        self.going_away.store(true, Ordering::Relaxed);
                    }
                    Ok(_) => {}
                    Err(error) => {
                        if error.is_nonsense() {
                            tracing::warn!(broker = %self.broker, %error, "the broker's control stream makes no sense");
                            self.quinn.close(100u32.into(), b"a control frame makes no sense");
                        }
                        break;
                    }
                }
            }
        }
        // Without its control stream a connection cannot tell when it is no longer wanted.
        self.going_away.store(true, Ordering::Relaxed);
    }
}

/// A broker that closes the connection instead of answering says why in the close: what is no use to try again is final.
fn not_greeted(quinn: &quinn::Connection, address: &str, error: &ReadError) -> ConnectError {
    let address = address.to_owned();
    if let Some(quinn::ConnectionError::ApplicationClosed(close)) = quinn.close_reason()
        && let Ok(code) = u32::try_from(close.error_code.into_inner())
        && let Some(code) = ErrorCode::from_code(code).filter(|code| !code.retriable())
    {
        let message = String::from_utf8_lossy(&close.reason).into_owned();
        return ConnectError::Refused { address, error: ServerError { message, ..ServerError::of(code) } };
    }
    ConnectError::Handshake { address, reason: error.to_string() }
}

async fn hello(quinn: &quinn::Connection, config: &ClientConfig) -> Result<(ServerHello, Wire), ReadError> {
    let lost = |error: crate::transport::WriteError| ReadError::Connection(error.to_string());
    let mut wire = Wire::open(quinn).await.map_err(lost)?;
    wire.writer.set_priority(CONTROL_PRIORITY);
    let hello = ClientHello {
        protocol_min: PROTOCOL_MIN,
        protocol_max: PROTOCOL_MAX,
        client_id: config.client_id.clone(),
        software: concat!("tidemill-client/", env!("CARGO_PKG_VERSION")).to_owned(),
    };
    let open = StreamOpen { kind: Some(stream_open::Kind::Hello(hello)) };
    wire.writer.send(&open, &[]).await.map_err(lost)?;
    let (answer, _) = wire.reader.message::<ServerHello>().await?;
    Ok((answer, wire))
}

async fn send_control(writer: &mut FrameWriter, message: &ClientControl) -> Result<(), ()> {
    /// A control frame that the broker does not take for this long means that the connection is dead.
    const PATIENCE: Duration = Duration::from_secs(30);
    match tokio::time::timeout(PATIENCE, writer.send(message, &[])).await {
        Ok(Ok(())) => Ok(()),
        _ => Err(()),
    }
}

async fn next_news(reader: &mut FrameReader) -> Result<ServerControl, ReadError> {
    let frame = reader.next().await?.ok_or(ReadError::Ended)?;
    decode(&frame)
}
