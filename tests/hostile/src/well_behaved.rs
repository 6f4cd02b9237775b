//! Plugins that do as they should: what stands beside the hostile ones in a test.

use crate::guest::{Guest, World, after_locals};

/// The plainest plugin of a world: keeps all records; places all in partition 0; counts all in its metric `records`.
pub fn baseline(world: World) -> Vec<u8> {
    Guest::new(world).build()
}

/// The baseline, and each call writes a warning to the log: `not this one`.
pub fn logs_each_call(world: World) -> Vec<u8> {
    Guest::new(world)
        .import("log", "write", "$write (param i32 i32 i32)")
        .main(&after_locals(world.good_body(), "(call $write (i32.const 2) (i32.const 288) (i32.const 12))"))
        .build()
}

/// A filter that keeps all records.
pub fn keep_all() -> Vec<u8> {
    baseline(World::Filter)
}

/// A filter that keeps the records with an even ordinal, by bitmap.
pub fn keep_even() -> Vec<u8> {
    Guest::new(World::Filter)
        .main(
            "(local $bytes i32) (local $at i32)
             (local.set $bytes (i32.shr_u (i32.add (call $records (local.get $index_len)) (i32.const 7)) (i32.const 3)))
             (local.set $at (call $realloc (i32.const 0) (i32.const 0) (i32.const 1) (local.get $bytes)))
             (memory.fill (local.get $at) (i32.const 0x55) (local.get $bytes))
             (i32.store8 (i32.const 132) (i32.const 2))
             (i32.store (i32.const 136) (local.get $at))
             (i32.store (i32.const 140) (local.get $bytes))
             (i32.const 128)",
        )
        .build()
}

/// A filter that keeps the records that have a key, by bitmap.
pub fn keep_with_key() -> Vec<u8> {
    Guest::new(World::Filter)
        .main(
            "(local $n i32) (local $at i32) (local $i i32) (local $byte i32)
             (local.set $n (call $records (local.get $index_len)))
             (local.set $at (call $realloc (i32.const 0) (i32.const 0) (i32.const 1)
                 (i32.shr_u (i32.add (local.get $n) (i32.const 7)) (i32.const 3))))
             (memory.fill (local.get $at) (i32.const 0)
                 (i32.shr_u (i32.add (local.get $n) (i32.const 7)) (i32.const 3)))
             (block $done (loop $next
                 (br_if $done (i32.ge_u (local.get $i) (local.get $n)))
                 (if (i32.ne (i32.const -1)
                         (i32.load offset=4 (i32.add (local.get $index) (i32.shl (local.get $i) (i32.const 5)))))
                     (then
                         (local.set $byte (i32.add (local.get $at) (i32.shr_u (local.get $i) (i32.const 3))))
                         (i32.store8 (local.get $byte) (i32.or (i32.load8_u (local.get $byte))
                             (i32.shl (i32.const 1) (i32.and (local.get $i) (i32.const 7)))))))
                 (local.set $i (i32.add (local.get $i) (i32.const 1)))
                 (br $next)))
             (i32.store8 (i32.const 132) (i32.const 2))
             (i32.store (i32.const 136) (local.get $at))
             (i32.store (i32.const 140) (i32.shr_u (i32.add (local.get $n) (i32.const 7)) (i32.const 3)))
             (i32.const 128)",
        )
        .build()
}

/// A filter that puts a null value into the first record, keeps its key and headers, and drops the others.
pub fn redact_first() -> Vec<u8> {
    Guest::new(World::Filter)
        .main(
            "(local $at i32)
             (local.set $at (call $realloc (i32.const 0) (i32.const 0) (i32.const 4) (i32.const 40)))
             (memory.fill (local.get $at) (i32.const 0xff) (i32.const 40))
             (i32.store offset=4 (local.get $at) (i32.const -2))
             (i32.store offset=20 (local.get $at) (i32.const -2))
             (i32.store offset=24 (local.get $at) (i32.const 0))
             (i32.store8 (i32.const 132) (i32.const 3))
             (i32.store (i32.const 136) (i32.const 0))
             (i32.store (i32.const 140) (i32.const 0))
             (i32.store (i32.const 144) (local.get $at))
             (i32.store (i32.const 148) (i32.const 40))
             (i32.const 128)",
        )
        .build()
}

/// A filter that puts `now`, as 8 little-endian bytes, into the first record's value, and drops the others.
pub fn tell_now() -> Vec<u8> {
    Guest::new(World::Filter)
        .main(
            "(local $at i32)
             (local.set $at (call $realloc (i32.const 0) (i32.const 0) (i32.const 8) (i32.const 48)))
             (memory.fill (local.get $at) (i32.const 0xff) (i32.const 48))
             (i64.store (local.get $at) (local.get $now))
             (i32.store offset=12 (local.get $at) (i32.const -2))
             (i32.store offset=16 (local.get $at) (i32.const 0))
             (i32.store offset=20 (local.get $at) (i32.const 8))
             (i32.store offset=28 (local.get $at) (i32.const -2))
             (i32.store offset=32 (local.get $at) (i32.const 0))
             (i32.store8 (i32.const 132) (i32.const 3))
             (i32.store (i32.const 136) (local.get $at))
             (i32.store (i32.const 140) (i32.const 8))
             (i32.store (i32.const 144) (i32.add (local.get $at) (i32.const 8)))
             (i32.store (i32.const 148) (i32.const 40))
             (i32.const 128)",
        )
        .build()
}

/// A filter that keeps all but rejects the record of this ordinal, with the reason `not this one`.
pub fn reject_one(ordinal: u32) -> Vec<u8> {
    let body = format!(
        "(local $at i32)
         (local.set $at (call $realloc (i32.const 0) (i32.const 0) (i32.const 4) (i32.const 12)))
         (i32.store (local.get $at) (i32.const {ordinal}))
         (i32.store offset=4 (local.get $at) (i32.const 288))
         (i32.store offset=8 (local.get $at) (i32.const 12))
         (i32.store (i32.const 152) (local.get $at))
         (i32.store (i32.const 156) (i32.const 1))
         (i32.const 128)"
    );
    Guest::new(World::Filter).main(&body).build()
}

/// A partitioner that places each record by its key's length, modulo the partition count; null keys anywhere.
pub fn by_key_length() -> Vec<u8> {
    Guest::new(World::Partitioner)
        .main(
            "(local $n i32) (local $at i32) (local $i i32) (local $length i32)
             (local.set $n (call $records (local.get $index_len)))
             (local.set $at (call $realloc (i32.const 0) (i32.const 0) (i32.const 4)
                 (i32.shl (local.get $n) (i32.const 2))))
             (i32.store (i32.const 132) (local.get $at))
             (i32.store (i32.const 136) (local.get $n))
             (block $done (loop $next
                 (br_if $done (i32.ge_u (local.get $i) (local.get $n)))
                 (local.set $length (i32.load offset=4
                     (i32.add (local.get $index) (i32.shl (local.get $i) (i32.const 5)))))
                 (i32.store (i32.add (local.get $at) (i32.shl (local.get $i) (i32.const 2)))
                     (if (result i32) (i32.eq (local.get $length) (i32.const -1))
                         (then (i32.const -1))
                         (else (i32.rem_u (local.get $length) (local.get $partitions)))))
                 (local.set $i (i32.add (local.get $i) (i32.const 1)))
                 (br $next)))
             (i32.const 128)",
        )
        .build()
}

/// A partitioner that places all records in partition `now`, modulo the partition count.
pub fn by_now() -> Vec<u8> {
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
                     (i32.wrap_i64 (i64.rem_u (local.get $now) (i64.extend_i32_u (local.get $partitions)))))
                 (local.set $i (i32.add (local.get $i) (i32.const 1)))
                 (br $next)))
             (i32.const 128)",
        )
        .build()
}

/// A consumer that keeps, under the key `n` of its state, how many records it has seen, as 8 little-endian bytes, and writes that
/// number after each batch.
pub fn count_in_state() -> Vec<u8> {
    Guest::new(World::Consumer)
        .import("state", "get-many", "$get (param i32 i32 i32 i32 i32)")
        .import("state", "write-many", "$put (param i32 i32 i32 i32 i32 i32 i32 i32 i64 i32)")
        .extra(
            r#"(data (i32.const 320) "n") (data (i32.const 324) "\01\00\00\00") (data (i32.const 328) "\08\00\00\00")"#,
        )
        .main(
            "(call $get (i32.const 320) (i32.const 1) (i32.const 324) (i32.const 4) (i32.const 512))
             (i64.store (i32.const 336) (i64.const 0))
             (if (i32.eq (i32.load (i32.load (i32.const 520))) (i32.const 8))
                 (then (i64.store (i32.const 336) (i64.load align=1 (i32.load (i32.const 512))))))
             (i64.store (i32.const 336) (i64.add (i64.load (i32.const 336))
                 (i64.extend_i32_u (call $records (local.get $index_len)))))
             (call $put (i32.const 320) (i32.const 1) (i32.const 324) (i32.const 4)
                        (i32.const 336) (i32.const 8) (i32.const 328) (i32.const 4) (i64.const 0) (i32.const 512))
             (if (i32.load8_u (i32.const 512)) (then unreachable))
             (i32.store (i32.const 132) (call $records (local.get $index_len)))
             (i32.const 128)",
        )
        .build()
}

/// A consumer that does all that one can in each call: it sends its records on to target 0, counts them in its state under the key `n`
/// (as [`count_in_state`] does), and sets a timer `t` for one second after now.
pub fn does_everything() -> Vec<u8> {
    let relay = relaying(0);
    let count = "(call $get (i32.const 640) (i32.const 1) (i32.const 644) (i32.const 4) (i32.const 512))
         (i64.store (i32.const 656) (i64.const 0))
         (if (i32.eq (i32.load (i32.load (i32.const 520))) (i32.const 8))
             (then (i64.store (i32.const 656) (i64.load align=1 (i32.load (i32.const 512))))))
         (i64.store (i32.const 656) (i64.add (i64.load (i32.const 656))
             (i64.extend_i32_u (call $records (local.get $index_len)))))
         (call $put (i32.const 640) (i32.const 1) (i32.const 644) (i32.const 4)
                    (i32.const 656) (i32.const 8) (i32.const 648) (i32.const 4) (i64.const 0) (i32.const 512))
         (if (i32.load8_u (i32.const 512)) (then unreachable))";
    let main = after_locals(&relay.main, count);
    relay
        .import("state", "get-many", "$get (param i32 i32 i32 i32 i32)")
        .import("state", "write-many", "$put (param i32 i32 i32 i32 i32 i32 i32 i32 i64 i32)")
        .extra(
            r#"(data (i32.const 640) "n") (data (i32.const 644) "\01\00\00\00") (data (i32.const 648) "\08\00\00\00")"#,
        )
        .main(&main)
        .build()
}

/// A consumer that handles one record of each call, and rejects it, with the reason `not this one`, where its key is null.
pub fn one_at_a_time() -> Vec<u8> {
    Guest::new(World::Consumer)
        .main(
            "(i32.store (i32.const 132) (i32.const 1))
             (i32.store (i32.const 136) (i32.const 0))
             (i32.store (i32.const 140) (i32.const 0))
             (if (i32.eq (i32.const -1) (i32.load offset=4 (local.get $index))) (then
                 (i32.store (i32.const 700) (i32.const 0))
                 (i32.store (i32.const 704) (i32.const 288))
                 (i32.store (i32.const 708) (i32.const 12))
                 (i32.store (i32.const 136) (i32.const 700))
                 (i32.store (i32.const 140) (i32.const 1))))
             (i32.const 128)",
        )
        .build()
}

/// A consumer that handles all records, and rejects those whose key is null, with the reason `not this one`.
pub fn rejects_null_keys() -> Vec<u8> {
    Guest::new(World::Consumer)
        .main(
            "(local $n i32) (local $at i32) (local $i i32) (local $rejected i32) (local $to i32)
             (local.set $n (call $records (local.get $index_len)))
             (local.set $at (call $realloc (i32.const 0) (i32.const 0) (i32.const 4)
                 (i32.mul (local.get $n) (i32.const 12))))
             (block $done (loop $next
                 (br_if $done (i32.ge_u (local.get $i) (local.get $n)))
                 (if (i32.eq (i32.const -1)
                         (i32.load offset=4 (i32.add (local.get $index) (i32.shl (local.get $i) (i32.const 5)))))
                     (then
                         (local.set $to
                             (i32.add (local.get $at) (i32.mul (local.get $rejected) (i32.const 12))))
                         (i32.store (local.get $to) (local.get $i))
                         (i32.store offset=4 (local.get $to) (i32.const 288))
                         (i32.store offset=8 (local.get $to) (i32.const 12))
                         (local.set $rejected (i32.add (local.get $rejected) (i32.const 1)))))
                 (local.set $i (i32.add (local.get $i) (i32.const 1)))
                 (br $next)))
             (i32.store (i32.const 132) (local.get $n))
             (i32.store (i32.const 136) (local.get $at))
             (i32.store (i32.const 140) (local.get $rejected))
             (i32.const 128)",
        )
        .build()
}

/// A consumer that sends each record's key and value on to target 0, and sets a timer `t` for one second after now; when that fires
/// it emits a record with the value `tick`.
pub fn relay() -> Vec<u8> {
    relay_to(0)
}

/// As [`relay`], to any target.
pub fn relay_to(target: u32) -> Vec<u8> {
    relaying(target).build()
}

pub(crate) fn relaying(target: u32) -> Guest {
    let main = format!(
        "(local $n i32) (local $at i32) (local $i i32) (local $from i32) (local $to i32)
         (local.set $n (call $records (local.get $index_len)))
         (local.set $at (call $realloc (i32.const 0) (i32.const 0) (i32.const 4)
             (i32.mul (local.get $n) (i32.const 40))))
         (memory.fill (local.get $at) (i32.const 0xff) (i32.mul (local.get $n) (i32.const 40)))
         (block $done (loop $next
             (br_if $done (i32.ge_u (local.get $i) (local.get $n)))
             (local.set $from (i32.add (local.get $index) (i32.shl (local.get $i) (i32.const 5))))
             (local.set $to (i32.add (local.get $at) (i32.mul (local.get $i) (i32.const 40))))
             (memory.copy (local.get $to) (local.get $from) (i32.const 16))
             (i32.store offset=24 (local.get $to) (local.get $i))
             (local.set $i (i32.add (local.get $i) (i32.const 1)))
             (br $next)))
         (call $send (i32.const {target}) (local.get $data) (local.get $data_len)
             (local.get $at) (i32.mul (local.get $n) (i32.const 40)) (i32.const 512))
         (if (i32.load8_u (i32.const 512)) (then unreachable))
         (call $timer (i32.const 321) (i32.const 1) (i64.add (local.get $now) (i64.const 1000)))
         (i32.store (i32.const 132) (local.get $n))
         (i32.const 128)"
    );
    let mut guest = Guest::new(World::Consumer)
        .import("emit", "send", "$send (param i32 i32 i32 i32 i32 i32)")
        .import("timers", "set", "$timer (param i32 i32 i64)")
        .extra(r#"(data (i32.const 320) "tick")"#)
        .main(&main);
    guest.on_timers = format!(
        "(memory.fill (i32.const 600) (i32.const 0xff) (i32.const 40))
         (i32.store (i32.const 608) (i32.const 0))
         (i32.store (i32.const 612) (i32.const 4))
         (call $send (i32.const {target}) (i32.const 320) (i32.const 4) (i32.const 600) (i32.const 40) (i32.const 512))
         (if (i32.load8_u (i32.const 512)) (then unreachable))
         (i32.const 128)"
    );
    guest
}

/// A plugin that answers each main call with `failure.retry(\"not this one\")`.
pub fn asks_to_retry(world: World) -> Vec<u8> {
    fails(world, 0)
}

/// A plugin that answers each main call with `failure.reject(\"not this one\")`.
pub fn refuses_the_batch(world: World) -> Vec<u8> {
    fails(world, 1)
}

fn fails(world: World, case: u32) -> Vec<u8> {
    let body = format!(
        "(i32.store8 (i32.const 128) (i32.const 1))
         (i32.store8 (i32.const 132) (i32.const {case}))
         (i32.store (i32.const 136) (i32.const 288))
         (i32.store (i32.const 140) (i32.const 12))
         (i32.const 128)"
    );
    Guest::new(world).main(&body).build()
}

/// A plugin that refuses every configuration with `not this one`.
pub fn refuses_its_config(world: World) -> Vec<u8> {
    let mut guest = Guest::new(world);
    guest.init = "(i32.store8 (i32.const 64) (i32.const 1))
        (i32.store (i32.const 68) (i32.const 288)) (i32.store (i32.const 72) (i32.const 12)) (i32.const 64)"
        .to_owned();
    guest.build()
}
