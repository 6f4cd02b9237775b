use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tidemill_protocol::messages::{
    self, ClientControl, ClientHello, Interest, Ping, ServerControl, ServerHello, StreamOpen, client_control,
    server_control, stream_open,
};
use tidemill_protocol::{BrokerId, ErrorCode};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::health::{Health, Verdict};
use super::interest::InterestList;
use super::pool::Cluster;
use crate::error::server_error;
use crate::timer::sleep_until;
use crate::transport::{FrameReader, FrameWriter, ReadError, SendOrder, Wire, WriteError, decode};
use crate::{ClientConfig, ConnectError, ServerError};

/// The protocol versions that this client speaks.
const PROTOCOL_MIN: u32 = 1;
const PROTOCOL_MAX: u32 = 1;
/// Control frames go before data.
const CONTROL_PRIORITY: i32 = 10;

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
    /// Somebody waits here for longer than usual.
    doubted: Notify,
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
            doubted: Notify::new(),
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

    /// Somebody waits here for longer than usual: the broker should show that it lives.
    pub(crate) fn doubt(&self) {
        self.doubted.notify_one();
    }

    /// Whether the connection is over, whatever ended it.
    pub(crate) fn is_over(&self) -> bool {
        self.quinn.close_reason().is_some()
    }

    /// Runs the control stream until the connection ends, and leaves the cluster's list then.
    async fn control(
        self: Arc<Self>,
        wire: Wire,
        cluster: std::sync::Weak<Cluster>,
        interest: watch::Receiver<InterestList>,
    ) {
        self.listen(wire, &cluster, interest).await;
        // Without its control stream a connection cannot tell when it is no longer wanted.
        self.going_away.store(true, Ordering::Relaxed);
        if let Some(cluster) = cluster.upgrade() {
            cluster.lost(&self);
        }
    }

    /// Tells the broker what the client is interested in, takes what it pushes, and looks whether it lives.
    async fn listen(
        self: &Arc<Self>,
        wire: Wire,
        cluster: &std::sync::Weak<Cluster>,
        mut interest: watch::Receiver<InterestList>,
    ) {
        let Wire { mut reader, mut writer } = wire;
        let mut health = Health::new(Instant::now());
        let mut pings = 0;
        interest.mark_changed();
        loop {
            let is_writing = writer.has_queued();
            let look_at = health.next_look(!interest.borrow().is_empty());
            tokio::select! {
                written = writer.flush(), if is_writing => if written.is_err() { break },
                changed = interest.changed() => {
                    if changed.is_err() {
                        break;
                    }
                    let topics = interest.borrow_and_update().iter().map(ToString::to_string).collect();
                    if say(&mut writer, client_control::Kind::Interest(Interest { topics })).is_err() {
                        break;
                    }
                }
                news = next_news(&mut reader) => match news {
                    Ok(message) => {
                        let Some(cluster) = cluster.upgrade() else { break };
                        self.hear(message, &cluster);
                    }
                    Err(error) => {
                        if error.is_nonsense() {
                            tracing::warn!(broker = %self.broker, %error, "the broker's control stream makes no sense");
                            self.quinn.close(100u32.into(), b"a control frame makes no sense");
                        }
                        break;
                    }
                },
                () = self.doubted.notified() => health.hurry(),
                () = sleep_until(look_at) => {
                    let Some(cluster) = cluster.upgrade() else { break };
                    match health.look(Instant::now(), self.quinn.stats().udp_rx.datagrams) {
                        Verdict::Nothing => {}
                        // One that waits to be written is as good as another.
                        Verdict::Ask if writer.has_queued() => {}
                        Verdict::Ask => {
                            pings += 1;
                            if say(&mut writer, client_control::Kind::Ping(Ping { nonce: pings })).is_err() {
                                break;
                            }
                        }
                        Verdict::Unwell => {
                            if cluster.unwell(self.broker) {
                                tracing::info!(broker = %self.broker, "the broker does not answer");
                            }
                        }
                        Verdict::Well => cluster.well(self.broker),
                        // Where there is nobody else, there is nothing to be won by giving up before QUIC does.
                        Verdict::Dead if !cluster.known().has_well_beside(self.broker) => {}
                        Verdict::Dead => {
                            tracing::info!(broker = %self.broker, "the broker has not answered for long: giving the connection up");
                            self.quinn.close(0u32.into(), b"no sign of life");
                            break;
                        }
                    }
                }
            }
        }
    }

    fn hear(self: &Arc<Self>, message: ServerControl, cluster: &Cluster) {
        match message.kind {
            Some(server_control::Kind::Metadata(metadata)) => cluster.learn(metadata),
            Some(server_control::Kind::GoingAway(notice)) => {
                tracing::info!(broker = %self.broker, reason = notice.reason, "the broker is going away");
                self.going_away.store(true, Ordering::Relaxed);
                cluster.is_going_away(self, Duration::from_millis(notice.grace_ms.into()));
            }
            // A pong has done its duty by arriving.
            _ => {}
        }
    }
}

/// A broker that stops closes every connection with it.
const STOPPING: u64 = 0;

/// A broker that closes the connection instead of answering says why in the close: what is no use to try again is final.
fn not_greeted(quinn: &quinn::Connection, address: &str, error: &ReadError) -> ConnectError {
    let address = address.to_owned();
    if let Some(quinn::ConnectionError::ApplicationClosed(close)) = quinn.close_reason()
        && close.error_code.into_inner() == STOPPING
    {
        return ConnectError::Busy { address };
    }
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
    let lost = |error: WriteError| ReadError::Connection(error.to_string());
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

/// Queues a control message. Writing is for the loop: it must go on where a silent broker takes nothing any more.
fn say(writer: &mut FrameWriter, kind: client_control::Kind) -> Result<(), WriteError> {
    writer.feed(&ClientControl { kind: Some(kind) }, &[])
}

async fn next_news(reader: &mut FrameReader) -> Result<ServerControl, ReadError> {
    let frame = reader.next().await?.ok_or(ReadError::Ended)?;
    decode(&frame)
}
