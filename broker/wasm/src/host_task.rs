//! The contract's `emit`, `state` and `timers`: for tasks. Checks and bounds stand here, the work is the [`TaskHost`]'s.

use wasmtime::Result;

use crate::bindings::tidemill::plugin::output::Records;
use crate::bindings::tidemill::plugin::{emit, output, state, timers, types};
use crate::blobs::{Absent, Blobs};
use crate::check::{self, BadAnswer};
use crate::error::HostFailed;
use crate::guest_state::GuestState;
use crate::limits::TASK_KEY_BYTES_MAX;
use crate::task_host::{EmitAnswer, HostError, ReadAnswer, ScanAnswer, ScanBounds, TaskHost, WriteAnswer};
use crate::task_use::{TaskUse, read_too_much};

impl types::Host for GuestState {}
impl output::Host for GuestState {}

impl emit::Host for GuestState {
    fn send(&mut self, target: u32, output: Records) -> Result<Result<(), emit::EmitError>> {
        if output.index.is_empty() {
            // No records: nothing to keep, however many bytes came along.
            return Ok(Ok(()));
        }
        let (data_bytes, index_bytes) = (output.data.len(), output.index.len());
        let records = match check::emitted(output, self.used.input_records, self.limits()) {
            Ok(records) => records,
            Err(bad) => return Ok(Err(emit::EmitError::Malformed(bad.0))),
        };
        let (used, limits) = self.task_use();
        if used.send(data_bytes, index_bytes, records.referenced_bytes(), limits).is_err() {
            return Ok(Err(emit::EmitError::OverBudget));
        }
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
        let malformed = |reason| bad(format!("the keys of state.get-many are malformed: {reason}"));
        let keys = Blobs::from_guest(keys, Absent::Refused).map_err(malformed)?;
        check_keys(&keys).map_err(malformed)?;
        let (count, count_max) = (keys.len(), self.limits().read_keys_max);
        if count > count_max as usize {
            return Err(bad(format!("state.get-many asks for {count} keys; at most {count_max} at a time")));
        }
        let (used, limits) = self.task_use();
        let left = used.begin_read(count, limits).map_err(bad)?;
        let bytes_max = limits.read_bytes_max.min(left);
        let paused = self.budget.pause();
        let answer = self.host()?.read_state(keys, bytes_max).await.map_err(failed)?;
        self.budget.resume(&paused);
        let ReadAnswer::Values(values) = answer else {
            return Err(bad(if bytes_max < self.limits().read_bytes_max {
                read_too_much(self.limits())
            } else {
                format!(
                    "the values of state.get-many's {count} keys are above {bytes_max} bytes; ask for fewer"
                )
            }));
        };
        if values.len() != count {
            return Err(failed(HostError::Broker(format!("{} values for {count} keys", values.len()))));
        }
        let (used, limits) = self.task_use();
        used.found(values.data_bytes(), limits).map_err(bad)?;
        Ok(values.into_guest())
    }

    fn write_many(
        &mut self,
        keys: state::Blobs,
        values: state::Blobs,
        ttl_ms: u64,
    ) -> Result<Result<(), state::StateError>> {
        let malformed = |reason| Ok(Err(state::StateError::Malformed(reason)));
        let keys = Blobs::from_guest(keys, Absent::Refused);
        let keys = match keys.and_then(|keys| check_keys(&keys).map(|()| keys)) {
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
        let (used, limits) = self.task_use();
        if used.write(keys.len(), keys.data_bytes() + values.data_bytes(), limits).is_err() {
            return Ok(Err(state::StateError::OverBudget));
        }
        Ok(match self.host()?.write_state(keys, values, ttl_ms).map_err(failed)? {
            WriteAnswer::Taken => Ok(()),
            WriteAnswer::OverBudget => Err(state::StateError::OverBudget),
            WriteAnswer::Malformed(reason) => Err(state::StateError::Malformed(reason)),
        })
    }

    async fn scan(&mut self, start: Vec<u8>, end: Option<Vec<u8>>, limit: u32) -> Result<state::Page> {
        for (name, key) in [("start", Some(&start)), ("end", end.as_ref())] {
            // Right behind the longest key is a bound that pages need.
            let bytes = key.map_or(0, Vec::len);
            if bytes > TASK_KEY_BYTES_MAX + 1 {
                return Err(bad(format!("the {name} of state.scan has {bytes} bytes: longer than any key")));
            }
        }
        let (used, limits) = self.task_use();
        let read_bytes_max = used.begin_read(0, limits).map_err(bad)?;
        let bounds = ScanBounds {
            entries_max: limit.min(limits.scan_entries_max),
            bytes_max: limits.scan_bytes_max,
            read_bytes_max,
        };
        let paused = self.budget.pause();
        let answer = self.host()?.scan_state(start, end, bounds).await.map_err(failed)?;
        self.budget.resume(&paused);
        let (used, limits) = self.task_use();
        let ScanAnswer::Page(page) = answer else { return Err(bad(read_too_much(limits))) };
        let bytes = page.read_bytes.max(page.keys.data_bytes() + page.values.data_bytes());
        used.found(bytes.saturating_add(TaskUse::entries(page.keys.len())), limits).map_err(bad)?;
        Ok(state::Page { keys: page.keys.into_guest(), values: page.values.into_guest(), more: page.more })
    }
}

impl timers::Host for GuestState {
    fn set(&mut self, key: Vec<u8>, at: i64) -> Result<()> {
        self.charge_timer(&key)?;
        self.host()?.set_timer(key, at).map_err(failed)
    }

    fn cancel(&mut self, key: Vec<u8>) -> Result<()> {
        self.charge_timer(&key)?;
        self.host()?.cancel_timer(key).map_err(failed)
    }
}

impl GuestState {
    fn host(&mut self) -> Result<&mut Box<dyn TaskHost>> {
        self.task.as_mut().ok_or_else(|| failed(HostError::Broker("this instance is no task".to_owned())))
    }

    fn charge_timer(&mut self, key: &[u8]) -> Result<()> {
        check_key(key).map_err(|reason| bad(format!("a timer's key {reason}")))?;
        let (used, limits) = self.task_use();
        used.timer(key.len(), limits).map_err(bad)
    }
}

/// A longer key would fail when the call is committed; until then the host would have to keep it.
fn check_key(key: &[u8]) -> std::result::Result<(), String> {
    match key.len() {
        bytes if bytes > TASK_KEY_BYTES_MAX => {
            Err(format!("has {bytes} bytes; at most {TASK_KEY_BYTES_MAX} are allowed"))
        }
        _ => Ok(()),
    }
}

fn check_keys(keys: &Blobs) -> std::result::Result<(), String> {
    keys.iter()
        .flatten()
        .enumerate()
        .try_for_each(|(at, key)| check_key(key).map_err(|reason| format!("key {at} {reason}")))
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
