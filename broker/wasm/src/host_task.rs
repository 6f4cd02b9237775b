//! The contract's `emit`, `state` and `timers`: for tasks. Checks and bounds stand here, the work is the [`TaskHost`]'s.

use wasmtime::Result;

use crate::bindings::tidemill::plugin::output::Records;
use crate::bindings::tidemill::plugin::{emit, output, state, timers, types};
use crate::blobs::{Absent, Blobs};
use crate::check::{self, BadAnswer};
use crate::error::HostFailed;
use crate::guest_state::GuestState;
use crate::task_host::{EmitAnswer, HostError, TaskHost, WriteAnswer};

impl types::Host for GuestState {}
impl output::Host for GuestState {}

impl emit::Host for GuestState {
    fn send(&mut self, target: u32, output: Records) -> Result<Result<(), emit::EmitError>> {
        let records = match check::emitted(output, self.used.input_records, self.limits()) {
            Ok(records) => records,
            Err(bad) => return Ok(Err(emit::EmitError::Malformed(bad.0))),
        };
        let bytes = self.used.emitted_bytes.saturating_add(records.referenced_bytes() + records.index.len());
        if bytes > self.limits().emitted_bytes_per_call_max {
            return Ok(Err(emit::EmitError::OverBudget));
        }
        self.used.emitted_bytes = bytes;
        Ok(match self.host()?.emit(target, records).map_err(failed)? {
            EmitAnswer::Taken => Ok(()),
            EmitAnswer::NoSuchTarget => Err(emit::EmitError::NoSuchTarget),
            EmitAnswer::OverBudget => Err(emit::EmitError::OverBudget),
            EmitAnswer::Malformed(reason) => Err(emit::EmitError::Malformed(reason)),
        })
    }
}

impl state::Host for GuestState {
    async fn get_many(&mut self, keys: state::Blobs) -> Result<state::Blobs> {
        let keys = Blobs::from_guest(keys, Absent::Refused)
            .map_err(|reason| bad(format!("the keys of state.get-many are malformed: {reason}")))?;
        let count = keys.len();
        let paused = self.budget.pause();
        let values = self.host()?.read_state(keys).await.map_err(failed)?;
        self.budget.resume(&paused);
        if values.len() != count {
            return Err(failed(HostError::Broker(format!("{} values for {count} keys", values.len()))));
        }
        Ok(values.into_guest())
    }

    fn write_many(
        &mut self,
        keys: state::Blobs,
        values: state::Blobs,
        ttl_ms: u64,
    ) -> Result<Result<(), state::StateError>> {
        let malformed = |reason| Ok(Err(state::StateError::Malformed(reason)));
        let keys = match Blobs::from_guest(keys, Absent::Refused) {
            Ok(keys) => keys,
            Err(reason) => return malformed(format!("keys: {reason}")),
        };
        let values = match Blobs::from_guest(values, Absent::Allowed) {
            Ok(values) => values,
            Err(reason) => return malformed(format!("values: {reason}")),
        };
        if keys.len() != values.len() {
            return malformed(format!("{} values for {} keys", values.len(), keys.len()));
        }
        let most = self.limits().key_bytes_max;
        if let Some(bytes) = keys.iter().flatten().map(<[u8]>::len).find(|bytes| *bytes > most) {
            return malformed(format!("a key has {bytes} bytes; at most {most} are allowed"));
        }
        let bytes = keys.data_bytes() + values.data_bytes() + 8 * keys.len();
        let bytes = self.used.written_bytes.saturating_add(bytes);
        if bytes > self.limits().written_bytes_per_call_max {
            return Ok(Err(state::StateError::OverBudget));
        }
        self.used.written_bytes = bytes;
        Ok(match self.host()?.write_state(keys, values, ttl_ms).map_err(failed)? {
            WriteAnswer::Taken => Ok(()),
            WriteAnswer::OverBudget => Err(state::StateError::OverBudget),
            WriteAnswer::Malformed(reason) => Err(state::StateError::Malformed(reason)),
        })
    }

    async fn scan(&mut self, start: Vec<u8>, end: Option<Vec<u8>>, limit: u32) -> Result<state::Page> {
        let limit = limit.min(self.limits().scan_entries_max);
        let paused = self.budget.pause();
        let page = self.host()?.scan_state(start, end, limit).await.map_err(failed)?;
        self.budget.resume(&paused);
        Ok(state::Page { keys: page.keys.into_guest(), values: page.values.into_guest(), more: page.more })
    }
}

impl timers::Host for GuestState {
    fn set(&mut self, key: Vec<u8>, at: i64) -> Result<()> {
        self.count_timer(&key)?;
        self.host()?.set_timer(key, at).map_err(failed)
    }

    fn cancel(&mut self, key: Vec<u8>) -> Result<()> {
        self.count_timer(&key)?;
        self.host()?.cancel_timer(key).map_err(failed)
    }
}

impl GuestState {
    fn host(&mut self) -> Result<&mut Box<dyn TaskHost>> {
        self.task.as_mut().ok_or_else(|| failed(HostError::Broker("this instance is no task".to_owned())))
    }

    fn count_timer(&mut self, key: &[u8]) -> Result<()> {
        // Here and not where they are committed: until then they are all in the broker's memory.
        let (bytes, most) = (key.len(), self.limits().key_bytes_max);
        if bytes > most {
            return Err(bad(format!("a timer's key has {bytes} bytes; at most {most} are allowed")));
        }
        self.used.timers += 1;
        let most = self.limits().timers_per_call_max;
        if self.used.timers > most {
            return Err(bad(format!("more than {most} timers in one call")));
        }
        Ok(())
    }
}

fn bad(reason: String) -> wasmtime::Error {
    wasmtime::Error::new(BadAnswer(reason))
}

fn failed(error: HostError) -> wasmtime::Error {
    match error {
        HostError::Broker(reason) => wasmtime::Error::new(HostFailed(reason)),
        HostError::Plugin(reason) => bad(reason),
    }
}
