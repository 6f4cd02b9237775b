//! The control stream: hello, metadata pushed when it changes, pings, going away.

use std::sync::Arc;

use tidemill_net::{Connection, ReadError, Stream, WriteError};
use tidemill_protocol::ErrorCode;
use tidemill_protocol::messages::{
    ClientControl, ClientHello, Error, GoingAway, Limits, Ping, ServerControl, ServerHello, client_control,
    server_control,
};

use crate::connection::{ClientName, Opened, read_error};
use crate::context::Context;
use crate::errors;
use crate::handlers::interest::Interest;
use crate::handlers::metadata;
use crate::refusals;

/// The one version of the protocol that this release speaks.
pub(crate) const PROTOCOL_VERSION: u32 = 1;

const CLIENT_ID_CHARACTERS_MAX: usize = 128;

/// Answers the hello and leaves a task that serves the control stream for as long as the connection lives.
pub(crate) async fn start(
    context: &Arc<Context>,
    connection: &Connection,
    opened: Opened,
    hello: &ClientHello,
) -> Result<ClientName, Error> {
    let mut stream = opened.stream;
    if let Err(error) = check(hello) {
        let refusal = ServerHello { error: Some(error.clone()), ..ServerHello::default() };
        // The close that follows says the same; this only is kinder to a client that reads the stream first.
        let _ = stream.writer.send(&refusal, &[]).await;
        let _ = stream.writer.finish().await;
        return Err(error);
    }
    let answer = ServerHello {
        error: None,
        protocol: PROTOCOL_VERSION,
        cluster_id: bytes::Bytes::copy_from_slice(&context.meta.cluster.bytes()),
        broker_id: context.meta.broker_id,
        software: concat!("tidemill/", env!("CARGO_PKG_VERSION")).to_owned(),
        limits: Some(limits(context)),
        metadata: Some(metadata::brokers_only(&context.view.now())),
    };
    stream
        .writer
        .send(&answer, &[])
        .await
        .map_err(|error| Error::new(ErrorCode::BadFrame, error.to_string()))?;
    let name: String = hello.client_id.chars().take(CLIENT_ID_CHARACTERS_MAX).collect();
    let client = ClientName(Arc::from(name));
    let control = Control { context: Arc::clone(context), stream, interest: Interest::default(), sent: 0 };
    tokio::spawn(control.run(connection.clone(), client.clone()));
    Ok(client)
}

fn check(hello: &ClientHello) -> Result<(), Error> {
    if (hello.protocol_min..=hello.protocol_max).contains(&PROTOCOL_VERSION) {
        return Ok(());
    }
    Err(Error::new(
        ErrorCode::UnsupportedVersion,
        format!(
            "this broker speaks protocol {PROTOCOL_VERSION}, the client {} to {}; use a client of the broker's release",
            hello.protocol_min, hello.protocol_max
        ),
    ))
}

fn limits(context: &Context) -> Limits {
    let limits = &context.config.limits;
    Limits {
        batch_bytes_max: u32::try_from(context.batch_bytes_max).unwrap_or(u32::MAX),
        record_bytes_max: limits.record_bytes_max,
        frame_bytes_max: u32::try_from(limits.frame_bytes_max).unwrap_or(u32::MAX),
        produce_window_bytes: limits.produce_window_bytes,
        produce_in_flight_max: limits.produce_in_flight_max,
        subscription_partitions_max: limits.subscription_partitions_max,
        plugin_bytes_max: limits.plugin_bytes_max,
    }
}

/// Without its control stream a connection is of no use.
fn give_up(connection: &Connection, client: &ClientName, error: &Error) {
    refusals::stream(&client.0, error);
    connection.close(error.code, &error.message);
}

/// The same where the client takes no more of it: that is nothing to complain of.
fn broke_off(connection: &Connection, client: &ClientName, error: &WriteError) {
    tracing::debug!(client = %client.0, %error, "control stream ended");
    connection.close(ErrorCode::BadMessage.code(), "the control stream broke off");
}

struct Control {
    context: Arc<Context>,
    stream: Stream,
    interest: Interest,
    /// Version of the metadata that was pushed last.
    sent: u64,
}

impl Control {
    async fn run(mut self, connection: Connection, client: ClientName) {
        let mut view = self.context.view.clone();
        let stopping = self.context.stopping.clone();
        loop {
            tokio::select! {
                frame = self.stream.reader.next() => {
                    let message = match frame {
                        Ok(Some(frame)) => frame.message::<ClientControl>().ok().and_then(|message| message.kind),
                        // The control stream's end is the connection's.
                        Ok(None) => return connection.close(0, "bye"),
                        Err(error @ (ReadError::Reset { .. } | ReadError::Connection(_) | ReadError::Closed)) => {
                            tracing::debug!(client = %client.0, %error, "a control stream broke off");
                            return connection.close(ErrorCode::BadFrame.code(), &error.to_string());
                        }
                        Err(error) => return give_up(&connection, &client, &read_error(&error)),
                    };
                    let Some(message) = message else {
                        return give_up(&connection, &client, &errors::bad_message("a control message does not read"));
                    };
                    if let Err(error) = self.handle(message).await {
                        return broke_off(&connection, &client, &error);
                    }
                }
                Some(_) = view.changed() => {
                    if let Err(error) = self.push_metadata(&[]).await {
                        return broke_off(&connection, &client, &error);
                    }
                }
                () = stopping.cancelled() => {
                    let grace = u32::try_from(self.context.config.shutdown_grace_ms).unwrap_or(u32::MAX);
                    let going = GoingAway { reason: "the broker is shutting down".to_owned(), grace_ms: grace };
                    let _ = self.send(server_control::Kind::GoingAway(going)).await;
                    // The broker closes the connection when the grace is over.
                    connection.closed().await;
                    return;
                }
            }
        }
    }

    async fn handle(&mut self, message: client_control::Kind) -> Result<(), WriteError> {
        match message {
            client_control::Kind::Interest(interest) => {
                let (kept, refused) = Interest::of(interest.topics);
                self.interest = kept;
                self.sent = 0;
                self.push_metadata(&refused).await
            }
            client_control::Kind::Ping(Ping { nonce }) => {
                self.send(server_control::Kind::Pong(Ping { nonce })).await
            }
        }
    }

    /// The topics that the client is interested in, and names that it is told of this once because no topic can have them.
    async fn push_metadata(&mut self, refused: &[String]) -> Result<(), WriteError> {
        let view = self.context.view.now();
        if view.version() == self.sent || (self.interest.is_empty() && refused.is_empty()) {
            return Ok(());
        }
        self.sent = view.version();
        let names = self.interest.names().chain(refused.iter().map(String::as_str));
        let kind = server_control::Kind::Metadata(metadata::named(&self.context, &view, names));
        self.stream.writer.feed(&ServerControl { kind: Some(kind) }, &[])?;
        // A client that does not read holds the frame's bytes here, and neither the view nor a copy of the metadata.
        drop(view);
        self.stream.writer.flush().await
    }

    async fn send(&mut self, kind: server_control::Kind) -> Result<(), WriteError> {
        self.stream.writer.send(&ServerControl { kind: Some(kind) }, &[]).await
    }
}
