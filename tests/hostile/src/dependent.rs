//! Plugins that answer well, but otherwise when records are cut into other calls, or when an instance is replaced.

use crate::guest::{Guest, World};

/// A filter that keeps the first record of each call.
pub fn keeps_the_first_of_each_call() -> Vec<u8> {
    Guest::new(World::Filter)
        .main(
            "(local $bytes i32) (local $at i32)
             (local.set $bytes (i32.shr_u (i32.add (call $records (local.get $index_len)) (i32.const 7)) (i32.const 3)))
             (local.set $at (call $realloc (i32.const 0) (i32.const 0) (i32.const 1) (local.get $bytes)))
             (memory.fill (local.get $at) (i32.const 0) (local.get $bytes))
             (i32.store8 (local.get $at) (i32.const 1))
             (i32.store8 (i32.const 132) (i32.const 2))
             (i32.store (i32.const 136) (local.get $at))
             (i32.store (i32.const 140) (local.get $bytes))
             (i32.const 128)",
        )
        .build()
}

/// A filter that keeps all records of an instance's first call, and none of later ones.
pub fn keeps_its_first_call() -> Vec<u8> {
    Guest::new(World::Filter)
        .extra("(global $calls (mut i32) (i32.const 0))")
        .main(
            "(i32.store8 (i32.const 132) (i32.ne (global.get $calls) (i32.const 0)))
             (global.set $calls (i32.add (global.get $calls) (i32.const 1)))
             (i32.const 128)",
        )
        .build()
}

/// [`keeps_its_first_call`], but it traps where the first record's key is null.
pub fn keeps_its_first_call_or_traps() -> Vec<u8> {
    Guest::new(World::Filter)
        .extra("(global $calls (mut i32) (i32.const 0))")
        .main(
            "(if (i32.eq (i32.const -1) (i32.load offset=4 (local.get $index))) (then unreachable))
             (i32.store8 (i32.const 132) (i32.ne (global.get $calls) (i32.const 0)))
             (global.set $calls (i32.add (global.get $calls) (i32.const 1)))
             (i32.const 128)",
        )
        .build()
}

/// A partitioner that places records in turn, beginning anew with each call.
pub fn places_in_turn() -> Vec<u8> {
    Guest::new(World::Partitioner)
        .main(
            "(local $n i32) (local $at i32) (local $i i32)
             (local.set $n (call $records (local.get $index_len)))
             (local.set $at (call $realloc (i32.const 0) (i32.const 0) (i32.const 4)
                 (i32.shl (local.get $n) (i32.const 2))))
             (i32.store (i32.const 132) (local.get $at))
             (i32.store (i32.const 136) (local.get $n))
             (block $done (loop $next
                 (br_if $done (i32.ge_u (local.get $i) (local.get $n)))
                 (i32.store (i32.add (local.get $at) (i32.shl (local.get $i) (i32.const 2)))
                     (i32.rem_u (local.get $i) (local.get $partitions)))
                 (local.set $i (i32.add (local.get $i) (i32.const 1)))
                 (br $next)))
             (i32.const 128)",
        )
        .build()
}

/// A consumer that keeps, under the key `n` of its state, how many records its instance has seen, as 8 little-endian bytes.
pub fn counts_in_memory() -> Vec<u8> {
    Guest::new(World::Consumer)
        .import("state", "write-many", "$put (param i32 i32 i32 i32 i32 i32 i32 i32 i64 i32)")
        .extra(
            r#"(data (i32.const 320) "n") (data (i32.const 324) "\01\00\00\00") (data (i32.const 328) "\08\00\00\00")"#,
        )
        .main(
            "(i64.store (i32.const 336) (i64.add (i64.load (i32.const 336))
                 (i64.extend_i32_u (call $records (local.get $index_len)))))
             (call $put (i32.const 320) (i32.const 1) (i32.const 324) (i32.const 4)
                        (i32.const 336) (i32.const 8) (i32.const 328) (i32.const 4) (i64.const 0) (i32.const 512))
             (if (i32.load8_u (i32.const 512)) (then unreachable))
             (i32.store (i32.const 132) (call $records (local.get $index_len)))
             (i32.const 128)",
        )
        .build()
}

/// A consumer that emits, to target 0, one record per call: the call's last one.
pub fn emits_the_last_of_each_call() -> Vec<u8> {
    Guest::new(World::Consumer)
        .import("emit", "send", "$send (param i32 i32 i32 i32 i32 i32)")
        .main(
            "(local $from i32)
             (local.set $from (i32.sub (i32.add (local.get $index) (local.get $index_len)) (i32.const 32)))
             (memory.fill (i32.const 600) (i32.const 0xff) (i32.const 40))
             (memory.copy (i32.const 600) (local.get $from) (i32.const 16))
             (call $send (i32.const 0) (local.get $data) (local.get $data_len)
                 (i32.const 600) (i32.const 40) (i32.const 512))
             (if (i32.load8_u (i32.const 512)) (then unreachable))
             (i32.store (i32.const 132) (call $records (local.get $index_len)))
             (i32.const 128)",
        )
        .build()
}
