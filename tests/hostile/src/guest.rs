//! The frame of a plugin written as text: everything that the canonical ABI asks of a core module, and well-behaved bodies that a
//! test replaces one at a time.
//!
//! ```text
//! memory   16   what describe answers        (16 bytes)
//!          64   what init answers            (12 bytes)
//!          128  what the main function answers (32 bytes)
//!          256  strings: summary at 256, the metric's name at 272, a reason at 288
//!          512  scratch for host functions' answers
//!          4096 the heap: handed out by cabi_realloc from low to high, all given back after each main call
//! ```

use std::fmt::Write;

use crate::assemble::{CONTRACT, component};

/// One of the contract's worlds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum World {
    /// `partitioner-plugin`
    Partitioner,
    /// `filter-plugin`
    Filter,
    /// `consumer-plugin`
    Consumer,
}

impl World {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Partitioner, Self::Filter, Self::Consumer];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Partitioner => "partitioner-plugin",
            Self::Filter => "filter-plugin",
            Self::Consumer => "consumer-plugin",
        }
    }

    fn main(self) -> &'static str {
        match self {
            Self::Partitioner => "partitioner@0.1.0#partition",
            Self::Filter => "filter@0.1.0#apply",
            Self::Consumer => "consumer@0.1.0#handle",
        }
    }

    /// Answers: every record to partition 0; keep all; all processed.
    pub(crate) fn good_body(self) -> &'static str {
        match self {
            Self::Partitioner => {
                "(local $bytes i32) (local $at i32)
                 (local.set $bytes (i32.shr_u (local.get $index_len) (i32.const 3)))
                 (local.set $at (call $realloc (i32.const 0) (i32.const 0) (i32.const 4) (local.get $bytes)))
                 (memory.fill (local.get $at) (i32.const 0) (local.get $bytes))
                 (i32.store (i32.const 132) (local.get $at))
                 (i32.store (i32.const 136) (i32.shr_u (local.get $bytes) (i32.const 2)))
                 (i32.const 128)"
            }
            Self::Filter => "(i32.const 128)",
            Self::Consumer => {
                "(call $metric (i32.const 272) (i32.const 7) (i64.extend_i32_u (call $records (local.get $index_len))))
                 (i32.store (i32.const 132) (call $records (local.get $index_len)))
                 (i32.const 128)"
            }
        }
    }
}

/// A plugin in the making.
pub(crate) struct Guest {
    world: World,
    pub(crate) imports: String,
    pub(crate) memory: u32,
    pub(crate) describe: String,
    pub(crate) init: String,
    pub(crate) main: String,
    pub(crate) on_timers: String,
    pub(crate) realloc: Option<String>,
    pub(crate) after_main: String,
    pub(crate) extra: String,
}

/// Hands out memory from low to high and grows it as needed; traps when it can't.
const REALLOC: &str = "
    (local $at i32) (local $end i32) (local $have i32)
    (local.set $at (i32.and (i32.add (global.get $heap) (i32.sub (local.get $align) (i32.const 1)))
                            (i32.sub (i32.const 0) (local.get $align))))
    (local.set $end (i32.add (local.get $at) (local.get $size)))
    (local.set $have (i32.shl (memory.size) (i32.const 16)))
    (if (i32.gt_u (local.get $end) (local.get $have)) (then
        (if (i32.eq (i32.const -1)
                (memory.grow (i32.add (i32.const 1)
                    (i32.shr_u (i32.sub (local.get $end) (local.get $have)) (i32.const 16)))))
            (then unreachable))))
    (global.set $heap (local.get $end))
    (memory.copy (local.get $at) (local.get $old) (local.get $old_size))
    (local.get $at)";

const BATCH: &str =
    "(param $topic i32) (param $partition i32) (param $base_offset i64) (param $base_timestamp i64)
    (param $now i64) (param $data i32) (param $data_len i32) (param $index i32) (param $index_len i32)";

impl Guest {
    pub(crate) fn new(world: World) -> Self {
        Self {
            world,
            imports: String::new(),
            memory: 1,
            describe: "(i32.const 16)".to_owned(),
            init: "(i32.store8 (i32.const 68) (i32.const 7)) (i32.const 64)".to_owned(),
            main: world.good_body().to_owned(),
            on_timers: "(i32.const 128)".to_owned(),
            realloc: None,
            after_main: "(global.set $heap (i32.const 4096))".to_owned(),
            extra: String::new(),
        }
    }

    pub(crate) fn main(mut self, body: &str) -> Self {
        body.clone_into(&mut self.main);
        self
    }

    pub(crate) fn import(mut self, interface: &str, function: &str, rest: &str) -> Self {
        let name = format!("tidemill:plugin/{interface}@0.1.0");
        // Writing to a String does not fail.
        let _ = writeln!(self.imports, "(import \"{name}\" \"{function}\" (func {rest}))");
        self
    }

    pub(crate) fn extra(mut self, text: &str) -> Self {
        self.extra.push_str(text);
        self
    }

    pub(crate) fn build(&self) -> Vec<u8> {
        self.build_with(&[CONTRACT], self.world.name())
    }

    pub(crate) fn build_with(&self, packages: &[&str], world: &str) -> Vec<u8> {
        component(packages, world, &self.text())
    }

    pub(crate) fn text(&self) -> String {
        let Self { imports, memory, describe, init, main, on_timers, after_main, extra, .. } = self;
        let realloc = self.realloc.as_deref().unwrap_or(REALLOC);
        let name = self.world.main();
        let partitions = if self.world == World::Partitioner { "(param $partitions i32)" } else { "" };
        let (metric, timers) = match self.world {
            World::Consumer => (
                r#"(import "tidemill:plugin/metrics@0.1.0" "add" (func $metric (param i32 i32 i64)))"#,
                format!(
                    r#"(func (export "tidemill:plugin/consumer@0.1.0#on-timers")
                        (param $due i32) (param $due_len i32) (param $now i64) (result i32)
                        {on_timers})"#
                ),
            ),
            _ => ("", String::new()),
        };
        format!(
            r#"(module
    {metric}
    {imports}
    (memory (export "memory") {memory})
    (global $heap (mut i32) (i32.const 4096))
    (data (i32.const 16) "\00\01\00\00\09\00\00\00\00\00\00\00\00\00\00\00")
    (data (i32.const 256) "for tests")
    (data (i32.const 272) "records")
    (data (i32.const 288) "not this one")
    (func $records (param $index_len i32) (result i32) (i32.shr_u (local.get $index_len) (i32.const 5)))
    (func $realloc (export "cabi_realloc")
        (param $old i32) (param $old_size i32) (param $align i32) (param $size i32) (result i32)
        {realloc})
    (func (export "tidemill:plugin/lifecycle@0.1.0#describe") (result i32)
        {describe})
    (func (export "tidemill:plugin/lifecycle@0.1.0#init")
        (param i32 i32 i32 i32 i32 i32 i32 i32) (result i32)
        {init})
    (func $main (export "tidemill:plugin/{name}") {BATCH} {partitions} (result i32)
        {main})
    (func (export "cabi_post_tidemill:plugin/{name}") (param i32)
        {after_main})
    {timers}
    {extra}
)"#
        )
    }
}

/// A body that declares locals, with code put after them.
pub(crate) fn after_locals(body: &str, code: &str) -> String {
    let mut split = 0;
    while let Some(local) = body[split..].trim_start().strip_prefix("(local ") {
        split = body.len() - local.len() + local.find(')').map_or(0, |at| at + 1);
    }
    format!("{}\n{code}\n{}", &body[..split], &body[split..])
}
