//! Subscriptions: a set of partitions on one stream, pushed as far as their credit goes.
//!
//! One task owns the set. It serves partitions that have records, credit and no pause in turn, one frame each; those at
//! their end wait for their high watermark, all at once. None holds the replica that it is read from: where that ends, its
//! partitions end with it, also those that may not send. Where a partition begins is looked up beside that task: one that
//! waits for a majority of its replicas holds up no other. A slow reader of one partition runs out of that partition's
//! credit and holds up nobody else.

mod branches;
mod filtering;
mod finder;
mod gathering;
mod lookups;
mod partition;
mod places;
mod set;

use std::sync::Arc;

use tidemill_net::FrameReader;
use tidemill_protocol::messages::{
    Error, SubscribeControl, SubscribeOpen, SubscribeOpened, subscribe_control,
};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::connection::{Caller, Opened, next_frame};
use crate::context::Context;
use crate::errors;
use crate::refusals;
use crate::unpacking::Unpacker;
use branches::Branches;
use filtering::Filtering;
pub(crate) use places::Places;
use set::SubscriptionSet;

/// Control messages read ahead of the task that owns the set.
const CONTROLS_MAX: usize = 256;

/// A control message, and when it came.
type Control = (subscribe_control::Kind, Instant);

/// Serves a subscription until its stream ends.
pub(crate) async fn serve(
    context: Arc<Context>,
    caller: Caller,
    unpacker: Unpacker,
    places: Places,
    opened: Opened,
    open: SubscribeOpen,
) {
    let Opened { stream, .. } = opened;
    let (reader, mut writer) = (stream.reader, stream.writer);
    let filtering = match Filtering::open(&context, unpacker, open.filter.as_ref()).await {
        Ok(filtering) => filtering,
        Err(error) => {
            refusals::opening(&caller, &error);
            let _ = writer.send(&SubscribeOpened { error: Some(error) }, &[]).await;
            let _ = writer.finish().await;
            return;
        }
    };
    if writer.send(&SubscribeOpened { error: None }, &[]).await.is_err() {
        return;
    }
    let (forward, controls) = mpsc::channel(CONTROLS_MAX);
    let reading = tokio::spawn(read_controls(reader, forward));
    let frame_bytes_max = open.frame_bytes_max;
    let branches = Branches::new(Arc::clone(&context), caller.clone(), open);
    let set =
        SubscriptionSet::new(context, caller.clone(), writer, filtering, branches, places, frame_bytes_max);
    let Some(mut writer) = set.run(controls).await else { return reading.abort() };
    match reading.await {
        Ok(Err(error)) => {
            refusals::stream(&caller, &error);
            writer.reset(error.code);
        }
        _ => drop(writer.finish().await),
    }
}

/// Ends where the stream ends, or must be reset for the reason given; the closed channel tells the set.
async fn read_controls(mut reader: FrameReader, forward: mpsc::Sender<Control>) -> Result<(), Error> {
    let read = forward_controls(&mut reader, &forward).await;
    if let Err(error) = &read {
        reader.stop(error.code);
    }
    read
}

async fn forward_controls(reader: &mut FrameReader, forward: &mpsc::Sender<Control>) -> Result<(), Error> {
    while let Some(frame) = next_frame(reader).await? {
        let control = frame.message::<SubscribeControl>().ok().and_then(|control| control.kind);
        let control = control.ok_or_else(|| errors::bad_message("a subscription's message does not read"))?;
        if forward.send((control, Instant::now())).await.is_err() {
            break;
        }
    }
    Ok(())
}
