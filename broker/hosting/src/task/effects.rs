//! What one call did so far: kept apart until it is committed, seen by the call's own reads.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use tidemill_protocol::Timestamp;
use tidemill_wasm::{
    Blobs, EmitAnswer, HostError, ReadAnswer, Records, ScanAnswer, ScanBounds, StatePage, TaskHost,
    WriteAnswer,
};

use crate::plan::TargetPlan;
use crate::port::{PortError, StateChange, TaskKey, TaskPort, TimerChange};

/// What asking a shard for a page counts as, beside what it brings.
const PAGE_COST_BYTES: usize = 4096;
/// What going past an own write counts as.
const OWN_WRITE_COST_BYTES: usize = 64;

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

    fn read_state(&mut self, keys: Blobs, bytes_max: usize) -> BoxFuture<'_, Result<ReadAnswer, HostError>> {
        async move {
            let (mut found, unknown) = self.own_writes(&keys);
            let own_bytes = found.iter().flatten().map(Bytes::len).fold(0_usize, usize::saturating_add);
            let Some(bytes_max) = bytes_max.checked_sub(own_bytes) else { return Ok(ReadAnswer::TooLarge) };
            let wanted: Vec<Bytes> =
                unknown.iter().flat_map(|(key, places)| places.iter().map(|_| key.clone())).collect();
            if !wanted.is_empty() {
                let stored = self.port.state_get(self.task, wanted, bytes_max).await.map_err(broker)?;
                let Some(stored) = stored else { return Ok(ReadAnswer::TooLarge) };
                for (place, value) in unknown.into_values().flatten().zip(stored) {
                    if let Some(slot) = found.get_mut(place) {
                        *slot = value;
                    }
                }
            }
            blobs(found.iter().map(Option::as_deref)).map(ReadAnswer::Values)
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
        bounds: ScanBounds,
    ) -> BoxFuture<'_, Result<ScanAnswer, HostError>> {
        async move { self.scan(start.into(), end.map(Bytes::from), bounds).await }.boxed()
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
    async fn scan(
        &self,
        start: Bytes,
        end: Option<Bytes>,
        bounds: ScanBounds,
    ) -> Result<ScanAnswer, HostError> {
        let (limit, bytes_max) = (bounds.entries_max as usize, bounds.bytes_max);
        let mut merged: BTreeMap<Bytes, Bytes> = BTreeMap::new();
        let mut next = Some(start.clone());
        let (mut held_bytes, mut read_bytes) = (0, 0);
        // The call may have deleted entries that are stored: then one page of them is not enough.
        while let Some(from) = next.take_if(|_| merged.len() <= limit && held_bytes < bytes_max) {
            if read_bytes > bounds.read_bytes_max {
                return Ok(ScanAnswer::TooLarge);
            }
            let (entries_max, left) = (limit.saturating_add(1), bytes_max - held_bytes);
            let page = self.port.state_scan(self.task, from, end.clone(), entries_max, left);
            let page = page.await.map_err(broker)?;
            read_bytes += PAGE_COST_BYTES;
            next = page.next;
            let effects = self.effects.lock();
            for (key, value) in page.entries {
                read_bytes += key.len() + value.len();
                if !effects.state.contains_key(&key) {
                    held_bytes += key.len() + value.len();
                    merged.insert(key, value);
                }
            }
        }
        // Of what lies behind the last page nothing is known.
        let within = |key: &Bytes| {
            end.as_ref().is_none_or(|end| key < end) && next.as_ref().is_none_or(|next| key < next)
        };
        let (mut own, mut own_bytes, mut own_more) = (0, 0, false);
        for (key, (value, _)) in self.effects.lock().state.range(start..).take_while(|(key, _)| within(key)) {
            read_bytes += OWN_WRITE_COST_BYTES;
            let Some(value) = value else { continue };
            // Those behind what fills a page can't be in it.
            if own > limit || own_bytes >= bytes_max {
                own_more = true;
                break;
            }
            own += 1;
            own_bytes += key.len() + value.len();
            merged.insert(key.clone(), value.clone());
        }
        let (taken, mut taken_bytes) = (merged.len().min(limit), 0);
        let fit = merged.iter().take(taken).take_while(|(key, value)| {
            let fits = taken_bytes < bytes_max;
            taken_bytes += key.len() + value.len();
            fits
        });
        let fit: Vec<_> = fit.collect();
        let more = merged.len() > fit.len() || own_more || next.is_some();
        let keys = blobs(fit.iter().map(|(key, _)| Some(&key[..])))?;
        let values = blobs(fit.iter().map(|(_, value)| Some(&value[..])))?;
        Ok(ScanAnswer::Page(StatePage { keys, values, more, read_bytes }))
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

#[cfg(test)]
#[path = "effects_tests.rs"]
mod tests;
