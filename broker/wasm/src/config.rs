//! How the engine is set up: what changes the code that is made, and what does not.

use std::time::Duration;

use wasmtime::{Enabled, InstanceAllocationStrategy, PoolingAllocationConfig};

/// Core instances of one component: a Python component has more than 32.
const CORE_INSTANCES_PER_COMPONENT_MAX: u32 = 64;
const TABLES_PER_COMPONENT_MAX: u32 = 64;
pub(crate) const TABLES_PER_COMPONENT_MEAN: u32 = 4;
const MEMORIES_PER_COMPONENT_MAX: u32 = 4;
pub(crate) const TABLE_ELEMENTS_MAX: usize = 20_000;
/// Memory that a slot of the pool keeps between two lives instead of giving it back to the system: page faults cost more
/// than clearing it.
const KEPT_RESIDENT_BYTES: usize = 256 << 10;

/// Settings of the engine that do not change compiled code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineConfig {
    /// Instances alive at one time, over all pools and tasks; one with several memories counts as several. Each reserves 4 GiB of
    /// address space and no memory. An eighth is kept for what producers wait for.
    pub instances_max: u32,
    /// What the memory caps of all instances may add up to. An eighth is kept for what producers wait for.
    pub instances_memory_bytes_max: usize,
    /// The highest `PluginLimits::memory_bytes_max` that a deployment can have.
    pub memory_bytes_max: usize,
    /// How often a running plugin is interrupted to look at its budget.
    pub tick: Duration,
    /// Stack of a plugin's own calls.
    pub wasm_stack_bytes: usize,
    /// The whole stack of a call: the plugin's own and the host functions' above it.
    pub call_stack_bytes: usize,
    /// Frames of a trap's backtrace.
    pub backtrace_frames_max: usize,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            instances_max: 512,
            instances_memory_bytes_max: 16 << 30,
            memory_bytes_max: 256 << 20,
            tick: Duration::from_millis(1),
            wasm_stack_bytes: 512 << 10,
            call_stack_bytes: 1 << 20,
            backtrace_frames_max: 16,
        }
    }
}

impl EngineConfig {
    pub(crate) fn to_wasmtime(&self) -> wasmtime::Config {
        let mut config = code_config();
        config.max_wasm_stack(self.wasm_stack_bytes);
        config.async_stack_size(self.call_stack_bytes);
        config.wasm_backtrace_max_frames(std::num::NonZeroUsize::new(self.backtrace_frames_max));
        let instances = self.instances_max;
        let mut pool = PoolingAllocationConfig::new();
        pool.total_component_instances(instances)
            .total_stacks(instances)
            .total_memories(instances)
            // A count and no more: what it would bound is bounded per component.
            .total_core_instances(instances.saturating_mul(CORE_INSTANCES_PER_COMPONENT_MAX))
            .total_tables(instances.saturating_mul(TABLES_PER_COMPONENT_MEAN))
            .max_core_instances_per_component(CORE_INSTANCES_PER_COMPONENT_MAX)
            .max_memories_per_component(MEMORIES_PER_COMPONENT_MAX)
            .max_tables_per_component(TABLES_PER_COMPONENT_MAX)
            .max_tables_per_module(4)
            .table_elements(TABLE_ELEMENTS_MAX)
            .max_memory_size(self.memory_bytes_max)
            .linear_memory_keep_resident(KEPT_RESIDENT_BYTES)
            .table_keep_resident(TABLE_ELEMENTS_MAX * 8)
            .pagemap_scan(Enabled::Auto);
        config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
        config
    }
}

/// What decides which code is made of a component: the same for the compiler's process and for every broker of a release,
/// whatever its configuration, so that an artifact made by one loads in the other.
pub(crate) fn code_config() -> wasmtime::Config {
    let mut config = wasmtime::Config::new();
    // Component-model async costs 300 ns per call and nothing in the contract needs it.
    config.concurrency_support(false);
    config.epoch_interruption(true);
    config.memory_init_cow(true);
    // A partitioner must answer the same on every machine, so nothing may depend on the processor.
    config.cranelift_nan_canonicalization(true);
    config.relaxed_simd_deterministic(true);
    // One 32-bit memory per module: bounds checks by guard pages, and the pool's slots fit.
    config.wasm_memory64(false);
    config.wasm_multi_memory(false);
    config
}
