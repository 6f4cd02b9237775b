//! What one call did so far: kept apart until it is committed, seen by the call's own reads.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use tidemill_protocol::Timestamp;
use tidemill_wasm::{Blobs, EmitAnswer, HostError, Records, StatePage, TaskHost, WriteAnswer};

use crate::plan::TargetPlan;
use crate::port::{PortError, StateChange, TaskKey, TaskPort, TimerChange};

/// Values that one `state.get-many` answers: a key that is asked for a thousand times counts a thousand times.
const READ_BYTES_MAX: usize = 32 << 20;
/// Keys that the port is asked for at a time, so that the bound above holds before everything is read.
const READ_KEYS_MAX: usize = 256;
/// Keys and values after which a `state.scan` answers a page that is not full.
const SCAN_BYTES_MAX: usize = 4 << 20;

/// The effects of one call.
#[derive(Debug, Default)]
pub(crate) struct Effects {
    /// Records by target, in the order of the calls.
    pub(crate) emitted: Vec<(u32, Records)>,
    /// The last value of each key, and when it expires.
    pub(crate) state: BTreeMap<Bytes, (Option<Bytes>, Option<Timestamp>)>,
    /// The last setting of each timer.
    pub(crate) timers: BTreeMap<Bytes, Option<Timestamp>>,
    /// The log's time of the call.
    pub(crate) now: Timestamp,
}

impl Effects {
    pub(crate) fn state_changes(&self) -> Vec<StateChange> {
        self.state
            .iter()
            .map(|(key, (value, expires_at))| StateChange {
                key: key.clone(),
                value: value.clone(),
                expires_at: *expires_at,
            })
            .collect()
    }

    pub(crate) fn timer_changes(&self) -> Vec<TimerChange> {
        self.timers.iter().map(|(key, at)| TimerChange { key: key.clone(), at: *at }).collect()
    }
}

/// What a task's instance reaches.
pub(crate) struct EffectsHost {
    pub(crate) task: TaskKey,
    pub(crate) port: Arc<dyn TaskPort>,
    pub(crate) targets: Arc<[TargetPlan]>,
    /// Shared with the runner, which clears it before and takes it after a call.
    pub(crate) effects: Arc<Mutex<Effects>>,
}

impl TaskHost for EffectsHost {
    fn emit(&mut self, target: u32, records: Records) -> Result<EmitAnswer, HostError> {
        let Some(plan) = usize::try_from(target).ok().and_then(|index| self.targets.get(index)) else {
            return Ok(EmitAnswer::NoSuchTarget);
        };
        let outside = records.iter().filter_map(|record| record.partition).find(|p| *p >= plan.partitions);
        if let Some(partition) = outside {
            let reason =
                format!("topic '{}' has {} partitions and no {partition}", plan.name, plan.partitions);
            return Ok(EmitAnswer::Malformed(reason));
        }
        self.effects.lock().emitted.push((target, records));
        Ok(EmitAnswer::Taken)
    }

    fn read_state(&mut self, keys: Blobs) -> BoxFuture<'_, Result<Blobs, HostError>> {
        async move {
            let (mut found, unknown) = self.own_writes(&keys);
            let mut bytes: usize = found.iter().flatten().map(Bytes::len).sum();
            let mut unknown = unknown.into_iter();
            while bytes <= READ_BYTES_MAX {
                let (wanted, places): (Vec<Bytes>, Vec<Vec<usize>>) =
                    unknown.by_ref().take(READ_KEYS_MAX).unzip();
                if wanted.is_empty() {
                    return blobs(found.iter().map(Option::as_deref));
                }
                let stored = self.port.state_get(self.task, wanted).await.map_err(broker)?;
                for (places, value) in places.into_iter().zip(stored) {
                    bytes += value.as_ref().map_or(0, Bytes::len).saturating_mul(places.len());
                    for place in places {
                        if let Some(slot) = found.get_mut(place) {
                            slot.clone_from(&value);
                        }
                    }
                }
            }
            let most = READ_BYTES_MAX;
            Err(HostError::Plugin(format!("one state.get-many asks for more than {most} bytes of values")))
        }
        .boxed()
    }

    fn write_state(&mut self, keys: Blobs, values: Blobs, ttl_ms: u64) -> Result<WriteAnswer, HostError> {
        let mut effects = self.effects.lock();
        let expires_at = match i64::try_from(ttl_ms) {
            Ok(0) => None,
            Ok(ttl_ms) => Some(effects.now.plus_ms(ttl_ms)),
            Err(_) => None,
        };
        for (key, value) in keys.iter().zip(values.iter()) {
            let Some(key) = key else {
                return Ok(WriteAnswer::Malformed("a key is absent".to_owned()));
            };
            let value = value.map(Bytes::copy_from_slice);
            let expires_at = expires_at.filter(|_| value.is_some());
            effects.state.insert(Bytes::copy_from_slice(key), (value, expires_at));
        }
        Ok(WriteAnswer::Taken)
    }

    fn scan_state(
        &mut self,
        start: Vec<u8>,
        end: Option<Vec<u8>>,
        limit: u32,
    ) -> BoxFuture<'_, Result<StatePage, HostError>> {
        async move { self.scan(start.into(), end.map(Bytes::from), limit as usize).await }.boxed()
    }

    fn set_timer(&mut self, key: Vec<u8>, at: i64) -> Result<(), HostError> {
        self.effects.lock().timers.insert(key.into(), Some(Timestamp::new(at)));
        Ok(())
    }

    fn cancel_timer(&mut self, key: Vec<u8>) -> Result<(), HostError> {
        self.effects.lock().timers.insert(key.into(), None);
        Ok(())
    }
}

impl EffectsHost {
    /// Values that this call wrote, and the keys that it did not, each once, with the places where it is asked for.
    fn own_writes(&self, keys: &Blobs) -> (Vec<Option<Bytes>>, BTreeMap<Bytes, Vec<usize>>) {
        let effects = self.effects.lock();
        let mut unknown: BTreeMap<Bytes, Vec<usize>> = BTreeMap::new();
        let found = keys
            .iter()
            .enumerate()
            .map(|(place, key)| {
                let key = key?;
                if let Some((value, _)) = effects.state.get(key) {
                    return value.clone();
                }
                match unknown.get_mut(key) {
                    Some(places) => places.push(place),
                    None => _ = unknown.insert(Bytes::copy_from_slice(key), vec![place]),
                }
                None
            })
            .collect();
        (found, unknown)
    }

    /// Stored entries and the call's own, merged by key.
    async fn scan(&self, start: Bytes, end: Option<Bytes>, limit: usize) -> Result<StatePage, HostError> {
        let mut merged: BTreeMap<Bytes, Bytes> = BTreeMap::new();
        let mut bytes = 0;
        // The call may have deleted entries that are stored: then one page of them is not enough.
        let mut next = Some(start.clone());
        while let Some(from) = next.take_if(|_| merged.len() <= limit && bytes < SCAN_BYTES_MAX) {
            let page = self.port.state_scan(self.task, from, end.clone(), limit.saturating_add(1));
            let page = page.await.map_err(broker)?;
            next = page.next;
            let effects = self.effects.lock();
            for (key, value) in page.entries {
                if !effects.state.contains_key(&key) {
                    bytes += key.len() + value.len();
                    merged.insert(key, value);
                }
            }
        }
        // Of what lies behind the last page nothing is known.
        let within = |key: &Bytes| {
            *key >= start
                && end.as_ref().is_none_or(|end| key < end)
                && next.as_ref().is_none_or(|next| key < next)
        };
        for (key, (value, _)) in &self.effects.lock().state {
            if let Some(value) = value.as_ref().filter(|_| within(key)) {
                merged.insert(key.clone(), value.clone());
            }
        }
        let more = merged.len() > limit || next.is_some();
        let keys = blobs(merged.keys().take(limit).map(|key| Some(&key[..])))?;
        let values = blobs(merged.values().take(limit).map(|value| Some(&value[..])))?;
        Ok(StatePage { keys, values, more })
    }
}

fn broker(error: PortError) -> HostError {
    HostError::Broker(error.0)
}

fn blobs<'a>(list: impl Iterator<Item = Option<&'a [u8]>>) -> Result<Blobs, HostError> {
    let mut blobs = Blobs::new();
    for blob in list {
        if !blobs.push(blob) {
            return Err(HostError::Plugin("the state asked for is larger than a plugin's memory".to_owned()));
        }
    }
    Ok(blobs)
}
