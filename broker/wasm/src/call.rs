//! The frame around each call into a guest.

use std::time::Duration;

use wasmtime::Store;

use crate::engine::Engine;
use crate::guest_state::GuestState;
use crate::ticker::Running;

/// A call under way: the epoch advances, and the guest's budgets are those of this call. Ends when dropped, which may be in the
/// middle of the guest's code when the caller gives up.
pub(crate) struct Call<'a> {
    store: &'a mut Store<GuestState>,
    _running: Running<'a>,
}

impl<'a> Call<'a> {
    /// The guest first gives way after at most one tick: whoever polls the call learns whether it is a short one.
    pub(crate) fn begin(
        engine: &'a Engine,
        store: &'a mut Store<GuestState>,
        time: Duration,
        input_records: u32,
    ) -> Self {
        let running = engine.running();
        store.set_epoch_deadline(1);
        store.data_mut().begin_call(time, engine.tick(), input_records);
        Self { store, _running: running }
    }

    pub(crate) fn store(&mut self) -> &mut Store<GuestState> {
        self.store
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        self.store.data_mut().end_call();
    }
}
