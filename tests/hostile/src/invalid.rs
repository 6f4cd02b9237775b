//! Uploads that are no plugins.

use crate::assemble::{CONTRACT, component, core_module};
use crate::guest::{Guest, World};
use crate::well_behaved::baseline;

/// Bytes that are no WebAssembly at all.
pub fn not_wasm() -> Vec<u8> {
    b"#!/bin/sh\necho this is not what you think it is\n".to_vec()
}

/// A core module, with all that a plugin needs, that was not made a component.
pub fn core_module_only() -> Vec<u8> {
    core_module(&Guest::new(World::Filter).text())
}

/// A good component, cut after this many thousandths of its length.
pub fn truncated(thousandths: usize) -> Vec<u8> {
    let mut component = baseline(World::Filter);
    component.truncate(component.len() * thousandths / 1000);
    component
}

/// A good component, but for one constant that is of the wrong type: found only when function bodies are looked at.
pub fn does_not_validate() -> Vec<u8> {
    const I32_CONST: [u8; 6] = [0x41, 0xf1, 0xbd, 0xf3, 0xd5, 0x00];
    const I64_CONST: u8 = 0x42;
    let mut guest = Guest::new(World::Filter);
    guest.init = format!("(i32.store (i32.const 700) (i32.const 0x0abcdef1)) {}", guest.init);
    let mut component = guest.build();
    let at = component.windows(I32_CONST.len()).position(|window| window == I32_CONST);
    component[at.expect("the constant is in the code")] = I64_CONST;
    component
}

/// A component of a world that has nothing to do with us.
pub fn wrong_world() -> Vec<u8> {
    let package = "package other:thing; world runner { export run: func(); }";
    component(&[package], "runner", r#"(module (func (export "run")))"#)
}

/// Both a filter and a consumer.
pub fn two_worlds() -> Vec<u8> {
    let both = "package other:thing; world both { include tidemill:plugin/filter-plugin@0.1.0;
        include tidemill:plugin/consumer-plugin@0.1.0; }";
    Guest::new(World::Consumer)
        .extra(
            r#"(func (export "tidemill:plugin/filter@0.1.0#apply")
                (param i32 i32 i64 i64 i64 i32 i32 i32 i32) (result i32) (i32.const 128))"#,
        )
        .build_with(&[CONTRACT, both], "both")
}

/// A filter of a contract to come, 0.2.0.
pub fn other_version() -> Vec<u8> {
    let contract = CONTRACT.replacen("tidemill:plugin@0.1.0", "tidemill:plugin@0.2.0", 1);
    let text = Guest::new(World::Filter).text().replace("@0.1.0", "@0.2.0");
    component(&[&contract], World::Filter.name(), &text)
}

/// Exports under the contract's names, but `apply` answers with something else.
pub fn other_types() -> Vec<u8> {
    let contract = CONTRACT.replacen(
        "apply: func(input: batch) -> result<verdict, failure>;",
        "apply: func(input: batch) -> result<verdict, string>;",
        1,
    );
    assert_ne!(contract, CONTRACT, "the contract has another `apply` now");
    Guest::new(World::Filter).build_with(&[&contract], World::Filter.name())
}

/// A plugin that wants to open files.
pub fn forbidden_import(world: World) -> Vec<u8> {
    let files = "package wasi:filesystem@0.2.0; interface preopens { get-directories: func() -> u32; }";
    let with_files = format!(
        "package other:thing; world curious {{ include tidemill:plugin/{}@0.1.0;
            import wasi:filesystem/preopens@0.2.0; }}",
        world.name()
    );
    let mut guest = Guest::new(world);
    guest.imports =
        r#"(import "wasi:filesystem/preopens@0.2.0" "get-directories" (func $open (result i32)))"#.to_owned();
    guest.init = format!("(drop (call $open)) {}", guest.init);
    guest.build_with(&[CONTRACT, files, &with_files], "curious")
}

/// A filter that wants to emit, which only consumers may.
pub fn filter_that_emits() -> Vec<u8> {
    let world = "package other:thing; world greedy { include tidemill:plugin/filter-plugin@0.1.0;
        import tidemill:plugin/emit@0.1.0; }";
    let guest = Guest::new(World::Filter).import("emit", "send", "$send (param i32 i32 i32 i32 i32 i32)");
    let main = format!(
        "(call $send (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 512)) {}",
        World::Filter.good_body()
    );
    guest.main(&main).build_with(&[CONTRACT, world], "greedy")
}
