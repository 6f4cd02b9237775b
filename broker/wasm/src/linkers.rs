//! What a component of each world may import. The component gets nothing else: there is no file, clock, socket or randomness here.

use wasmtime::component::{HasSelf, Linker};

use crate::bindings::tidemill::plugin::{emit, log, metrics, output, state, timers, types};
use crate::guest_state::GuestState;
use crate::inspect::ComponentKind;

/// One linker per set of imports.
pub(crate) struct Linkers {
    stateless: Linker<GuestState>,
    task: Linker<GuestState>,
}

impl Linkers {
    pub(crate) fn new(engine: &wasmtime::Engine) -> wasmtime::Result<Self> {
        let mut stateless = Linker::new(engine);
        link_stateless(&mut stateless)?;
        let mut task = Linker::new(engine);
        link_stateless(&mut task)?;
        link_task(&mut task)?;
        Ok(Self { stateless, task })
    }

    pub(crate) fn of(&self, kind: ComponentKind) -> &Linker<GuestState> {
        match kind {
            ComponentKind::Partitioner | ComponentKind::Filter => &self.stateless,
            ComponentKind::Consumer => &self.task,
        }
    }
}

type Host = HasSelf<GuestState>;

fn link_stateless(linker: &mut Linker<GuestState>) -> wasmtime::Result<()> {
    types::add_to_linker::<_, Host>(linker, |state| state)?;
    output::add_to_linker::<_, Host>(linker, |state| state)?;
    log::add_to_linker::<_, Host>(linker, |state| state)?;
    metrics::add_to_linker::<_, Host>(linker, |state| state)
}

fn link_task(linker: &mut Linker<GuestState>) -> wasmtime::Result<()> {
    emit::add_to_linker::<_, Host>(linker, |state| state)?;
    state::add_to_linker::<_, Host>(linker, |state| state)?;
    timers::add_to_linker::<_, Host>(linker, |state| state)
}
