//! Plugins that are of their world, and do what they should not once they run.

use crate::guest::{Guest, World, after_locals};
use crate::well_behaved::relaying;

const SPIN: &str = "(loop $again (br $again)) (unreachable)";
const RECURSE: &str = "(func $down (param i32) (result i32)
    (i32.add (call $down (i32.add (local.get 0) (i32.const 1))) (i32.const 1)))";

/// Traps in its main function.
pub fn traps(world: World) -> Vec<u8> {
    Guest::new(world).main("unreachable").build()
}

/// Traps while it is instantiated.
pub fn traps_in_start(world: World) -> Vec<u8> {
    Guest::new(world).extra("(func $begin unreachable) (start $begin)").build()
}

/// Never ends being instantiated.
pub fn loops_in_start(world: World) -> Vec<u8> {
    Guest::new(world).extra("(func $begin (loop $again (br $again))) (start $begin)").build()
}

/// Never says what it is.
pub fn loops_in_describe(world: World) -> Vec<u8> {
    let mut guest = Guest::new(world);
    SPIN.clone_into(&mut guest.describe);
    guest.build()
}

/// Never ends `init`.
pub fn loops_in_init(world: World) -> Vec<u8> {
    let mut guest = Guest::new(world);
    SPIN.clone_into(&mut guest.init);
    guest.build()
}

/// Never ends its main function.
pub fn loops(world: World) -> Vec<u8> {
    Guest::new(world).main(SPIN).build()
}

/// Never ends its main function, and spends its time in host functions.
pub fn loops_in_host_calls(world: World) -> Vec<u8> {
    Guest::new(world)
        .import("log", "enabled", "$enabled (param i32) (result i32)")
        .main("(loop $again (drop (call $enabled (i32.const 0))) (br $again)) (unreachable)")
        .build()
}

/// Fills all the memory it can get, again and again: each fill can't be interrupted.
pub fn fills_memory_for_ever(world: World) -> Vec<u8> {
    Guest::new(world)
        .main(
            "(loop $more (br_if $more (i32.ne (i32.const -1) (memory.grow (i32.const 16)))))
             (loop $again
                 (memory.fill (i32.const 4096) (i32.const 1)
                     (i32.sub (i32.shl (memory.size) (i32.const 16)) (i32.const 4096)))
                 (br $again))
             (unreachable)",
        )
        .build()
}

/// Takes memory until it gets no more, and traps then.
pub fn grows(world: World) -> Vec<u8> {
    Guest::new(world)
        .main(
            "(loop $again (br_if $again (i32.ne (i32.const -1) (memory.grow (i32.const 16))))) (unreachable)",
        )
        .build()
}

/// Wants this many pages of 64 KiB to begin with.
pub fn large_from_the_start(world: World, pages: u32) -> Vec<u8> {
    let mut guest = Guest::new(world);
    guest.memory = pages;
    guest.build()
}

/// Keeps 1 MiB of each call and never gives it back.
pub fn leaks(world: World) -> Vec<u8> {
    let mut guest = Guest::new(world);
    guest.after_main = String::new();
    let main = format!(
        "(drop (call $leak)) {}",
        world.good_body().replacen("(local $bytes i32) (local $at i32)", "", 1)
    );
    let locals = if world == World::Partitioner { "(local $bytes i32) (local $at i32)" } else { "" };
    guest
        .extra(
            "(func $leak (result i32)
                (call $realloc (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 1048576)))",
        )
        .main(&format!("{locals} {main}"))
        .build()
}

/// Calls itself until the stack ends.
pub fn recurses(world: World) -> Vec<u8> {
    Guest::new(world).extra(RECURSE).main("(call $down (i32.const 0))").build()
}

/// Its allocator hands out what is not there.
pub fn realloc_outside_memory(world: World) -> Vec<u8> {
    let mut guest = Guest::new(world);
    guest.realloc = Some("(i32.const 0x7ffffff0)".to_owned());
    guest.build()
}

/// Its allocator hands out what is not aligned.
pub fn realloc_misaligned(world: World) -> Vec<u8> {
    let mut guest = Guest::new(world);
    guest.realloc = Some("(i32.const 4097)".to_owned());
    guest.build()
}

/// Its allocator never ends.
pub fn realloc_loops(world: World) -> Vec<u8> {
    let mut guest = Guest::new(world);
    guest.realloc = Some(SPIN.to_owned());
    guest.build()
}

/// Never ends giving its answer back.
pub fn loops_after_the_answer(world: World) -> Vec<u8> {
    let mut guest = Guest::new(world);
    guest.after_main = "(loop $again (br $again))".to_owned();
    guest.build()
}

/// Its answer is said to lie outside of its memory.
pub fn answers_outside_memory(world: World) -> Vec<u8> {
    Guest::new(world).main("(i32.const 0x7ffffff0)").build()
}

/// Its answer's case does not exist.
pub fn answers_no_known_case(world: World) -> Vec<u8> {
    Guest::new(world).main("(i32.store8 (i32.const 128) (i32.const 9)) (i32.const 128)").build()
}

/// Writes a hundred thousand long log lines per call.
pub fn spams_the_log(world: World) -> Vec<u8> {
    let good = world.good_body();
    Guest::new(world)
        .import("log", "write", "$write (param i32 i32 i32)")
        .extra(
            "(func $spam (local $i i32)
                (loop $again
                    (call $write (i32.const 3) (i32.const 256) (i32.const 9))
                    (call $write (i32.const 3) (i32.const 4096) (i32.const 16384))
                    (local.set $i (i32.add (local.get $i) (i32.const 1)))
                    (br_if $again (i32.lt_u (local.get $i) (i32.const 50000)))))",
        )
        .main(&after_locals(good, "(call $spam)"))
        .build()
}

/// Rejects with a reason that is not UTF-8.
pub fn rejects_with_broken_text() -> Vec<u8> {
    Guest::new(World::Filter)
        .extra(r#"(data (i32.const 400) "\ff\fe")"#)
        .main(
            "(i32.store (i32.const 700) (i32.const 0))
             (i32.store (i32.const 704) (i32.const 400))
             (i32.store (i32.const 708) (i32.const 2))
             (i32.store (i32.const 152) (i32.const 700))
             (i32.store (i32.const 156) (i32.const 1))
             (i32.const 128)",
        )
        .build()
}

/// Places all records in this partition.
pub fn places_in(partition: u32) -> Vec<u8> {
    let body = format!(
        "(local $n i32) (local $at i32) (local $i i32)
         (local.set $n (call $records (local.get $index_len)))
         (local.set $at (call $realloc (i32.const 0) (i32.const 0) (i32.const 4)
             (i32.shl (local.get $n) (i32.const 2))))
         (i32.store (i32.const 132) (local.get $at))
         (i32.store (i32.const 136) (local.get $n))
         (block $done (loop $next
             (br_if $done (i32.ge_u (local.get $i) (local.get $n)))
             (i32.store (i32.add (local.get $at) (i32.shl (local.get $i) (i32.const 2))) (i32.const {partition}))
             (local.set $i (i32.add (local.get $i) (i32.const 1)))
             (br $next)))
         (i32.const 128)"
    );
    Guest::new(World::Partitioner).main(&body).build()
}

/// Names this many partitions, however many records there are.
pub fn places(records: u32) -> Vec<u8> {
    let body = format!(
        "(i32.store (i32.const 132) (i32.const 4096)) (i32.store (i32.const 136) (i32.const {records})) (i32.const 128)"
    );
    Guest::new(World::Partitioner).main(&body).build()
}

/// Places by how often it was called before, which it remembers in a global and in its memory.
pub fn places_by_memory() -> Vec<u8> {
    Guest::new(World::Partitioner)
        .extra("(global $calls (mut i32) (i32.const 0))")
        .main(
            "(global.set $calls (i32.add (global.get $calls) (i32.const 1)))
             (i32.store (i32.const 800) (i32.add (i32.load (i32.const 800)) (i32.const 1)))
             (i32.store (i32.const 804) (i32.add (global.get $calls) (i32.load (i32.const 800))))
             (i32.store (i32.const 132) (i32.const 804))
             (i32.store (i32.const 136) (i32.const 1))
             (i32.const 128)",
        )
        .build()
}

/// A filter whose bitmap has this many bytes. They need not be within its memory.
pub fn bitmap_of(bytes: u32) -> Vec<u8> {
    filter_answer(2, &[4096, bytes, 0, 0])
}

/// A filter whose bitmap is large and well within its memory.
pub fn large_bitmap(pages: u32) -> Vec<u8> {
    let body = format!(
        "(drop (memory.grow (i32.const {pages})))
         (i32.store8 (i32.const 132) (i32.const 2))
         (i32.store (i32.const 136) (i32.const 65536))
         (i32.store (i32.const 140) (i32.const {}))
         (i32.const 128)",
        pages << 16
    );
    Guest::new(World::Filter).main(&body).build()
}

/// A filter that replaces the first record by one whose value lies outside of its data.
pub fn replaces_outside_data() -> Vec<u8> {
    replaces(&[[0, 4, 2, 3, 0, u32::MAX, 0, u32::MAX, u32::MAX, u32::MAX]])
}

/// A filter that replaces records out of order.
pub fn replaces_out_of_order() -> Vec<u8> {
    let of = |ordinal| [0, 4, 0, 4, 0, u32::MAX, ordinal, u32::MAX, u32::MAX, u32::MAX];
    replaces(&[of(1), of(0)])
}

/// A filter that replaces a record that it was not given.
pub fn replaces_what_is_not_there() -> Vec<u8> {
    replaces(&[[0, 4, 0, 4, 0, u32::MAX, 1_000_000, u32::MAX, u32::MAX, u32::MAX]])
}

/// A filter that puts what are no headers into a record.
pub fn replaces_with_bad_headers() -> Vec<u8> {
    replaces(&[[0, 4, 0, 4, 0, 4, 0, u32::MAX, u32::MAX, u32::MAX]])
}

/// A filter that answers with this many records that all point to the same 64 KiB.
pub fn replaces_with_much_of_little(records: u32) -> Vec<u8> {
    let bytes = records * 40;
    let body = format!(
        "(local $at i32) (local $i i32)
         (local.set $at (call $realloc (i32.const 0) (i32.const 0) (i32.const 4) (i32.const {bytes})))
         (memory.fill (local.get $at) (i32.const 0xff) (i32.const {bytes}))
         (block $done (loop $next
             (br_if $done (i32.ge_u (local.get $i) (i32.const {records})))
             (i32.store offset=8 (local.get $at) (i32.const 0))
             (i32.store offset=12 (local.get $at) (i32.const 65536))
             (i32.store offset=24 (local.get $at) (local.get $i))
             (local.set $at (i32.add (local.get $at) (i32.const 40)))
             (local.set $i (i32.add (local.get $i) (i32.const 1)))
             (br $next)))
         (i32.store8 (i32.const 132) (i32.const 3))
         (i32.store (i32.const 136) (i32.const 0))
         (i32.store (i32.const 140) (i32.const 65536))
         (i32.store (i32.const 144) (i32.sub (local.get $at) (i32.const {bytes})))
         (i32.store (i32.const 148) (i32.const {bytes}))
         (i32.const 128)"
    );
    Guest::new(World::Filter).main(&body).build()
}

fn replaces(entries: &[[u32; 10]]) -> Vec<u8> {
    let index: String = entries
        .iter()
        .flatten()
        .flat_map(|word| word.to_le_bytes())
        .map(|byte| format!("\\{byte:02x}"))
        .collect();
    let bytes = u32::try_from(entries.len() * 40).expect("a few entries");
    let data = r#"(data (i32.const 1200) "abcd")"#;
    Guest::new(World::Filter)
        .extra(&format!(r#"{data} (data (i32.const 1024) "{index}")"#))
        .main(&answer_text(3, &[1200, 4, 1024, bytes]))
        .build()
}

fn filter_answer(case: u32, words: &[u32]) -> Vec<u8> {
    Guest::new(World::Filter).main(&answer_text(case, words)).build()
}

fn answer_text(case: u32, words: &[u32]) -> String {
    let mut text = format!("(i32.store8 (i32.const 132) (i32.const {case}))");
    for (at, word) in words.iter().enumerate() {
        text.push_str(&format!(" (i32.store (i32.const {}) (i32.const {word}))", 136 + 4 * at));
    }
    text.push_str(" (i32.const 128)");
    text
}

/// A consumer that says it processed more than it was given.
pub fn processes_too_many() -> Vec<u8> {
    Guest::new(World::Consumer)
        .main("(i32.store (i32.const 132) (i32.const 1000000)) (i32.const 128)")
        .build()
}

/// A consumer that emits 1 KiB to target 0 until it is told to stop, and then answers well.
pub fn emits_until_refused() -> Vec<u8> {
    emits(
        "(loop $again
             (call $send (i32.const 0) (i32.const 4096) (i32.const 1024) (i32.const 600) (i32.const 40) (i32.const 512))
             (br_if $again (i32.eqz (i32.load8_u (i32.const 512)))))",
        0,
        1024,
    )
}

/// A consumer that emits a record whose value lies outside of its data, and traps unless that is refused as malformed.
pub fn emits_outside_data() -> Vec<u8> {
    emits(
        "(call $send (i32.const 0) (i32.const 4096) (i32.const 10) (i32.const 600) (i32.const 40) (i32.const 512))
         (if (i32.or (i32.eqz (i32.load8_u (i32.const 512))) (i32.ne (i32.load8_u (i32.const 516)) (i32.const 2)))
             (then unreachable))",
        5,
        6,
    )
}

fn emits(code: &str, offset: u32, length: u32) -> Vec<u8> {
    let main = format!(
        "(memory.fill (i32.const 600) (i32.const 0xff) (i32.const 40))
         (i32.store (i32.const 608) (i32.const {offset}))
         (i32.store (i32.const 612) (i32.const {length}))
         {code}
         (i32.const 128)"
    );
    Guest::new(World::Consumer)
        .import("emit", "send", "$send (param i32 i32 i32 i32 i32 i32)")
        .main(&main)
        .build()
}

/// A consumer that asks for keys that lie outside of its data.
pub fn reads_malformed_keys() -> Vec<u8> {
    Guest::new(World::Consumer)
        .import("state", "get-many", "$get (param i32 i32 i32 i32 i32)")
        .extra(r#"(data (i32.const 320) "\09\00\00\00")"#)
        .main(
            "(call $get (i32.const 256) (i32.const 4) (i32.const 320) (i32.const 4) (i32.const 512))
             (i32.const 128)",
        )
        .build()
}

/// What a consumer does that comes to something bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Misdeed {
    /// Traps.
    Trap,
    /// Never ends.
    Loop,
    /// Takes memory until it gets no more, and traps then.
    Grow,
    /// Emits records whose index lies outside of their data, which it is told, and goes on.
    BadIndex,
    /// Answers `failure.retry("not this one")`.
    Retry,
    /// Answers `failure.reject("not this one")`.
    Reject,
}

impl Misdeed {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Trap, Self::Loop, Self::Grow, Self::BadIndex, Self::Retry, Self::Reject];

    fn code(self) -> String {
        match self {
            Self::Trap => "unreachable".to_owned(),
            Self::Loop => SPIN.to_owned(),
            Self::Grow => {
                "(loop $again (br_if $again (i32.ne (i32.const -1) (memory.grow (i32.const 16))))) (unreachable)"
                    .to_owned()
            }
            Self::BadIndex => {
                "(memory.fill (i32.const 700) (i32.const 0xff) (i32.const 40))
                 (i32.store (i32.const 708) (i32.const 1000))
                 (i32.store (i32.const 712) (i32.const 1000))
                 (call $send (i32.const 0) (i32.const 320) (i32.const 4) (i32.const 700) (i32.const 40) (i32.const 512))
                 (if (i32.or (i32.eqz (i32.load8_u (i32.const 512))) (i32.ne (i32.load8_u (i32.const 516)) (i32.const 2)))
                     (then unreachable))"
                    .to_owned()
            }
            Self::Retry => failure(0),
            Self::Reject => failure(1),
        }
    }
}

fn failure(case: u32) -> String {
    format!(
        "(i32.store8 (i32.const 128) (i32.const 1))
         (i32.store8 (i32.const 132) (i32.const {case}))
         (i32.store (i32.const 136) (i32.const 288))
         (i32.store (i32.const 140) (i32.const 12))
         (return (i32.const 128))"
    )
}

/// [`relay`](crate::relay), but for a call with a record whose key is null, where it first does this.
pub fn misbehaves_at_a_null_key(misdeed: Misdeed) -> Vec<u8> {
    let (code, relay) = (misdeed.code(), relaying(0));
    let check = format!(
        "(block $fine (loop $look
             (br_if $fine (i32.ge_u (local.get $k) (call $records (local.get $index_len))))
             (if (i32.eq (i32.const -1)
                     (i32.load offset=4 (i32.add (local.get $index) (i32.shl (local.get $k) (i32.const 5)))))
                 (then {code}))
             (local.set $k (i32.add (local.get $k) (i32.const 1)))
             (br $look)))"
    );
    let main = format!("(local $k i32) {}", relay.main);
    relay.main(&after_locals(&main, &check)).build()
}

/// [`relay`](crate::relay), but when its timer fires it does this.
pub fn misbehaves_in_timers(misdeed: Misdeed) -> Vec<u8> {
    let mut guest = relaying(0);
    guest.on_timers = format!(
        "{} {}",
        misdeed.code(),
        if misdeed == Misdeed::BadIndex { "(i32.const 128)" } else { "(unreachable)" }
    );
    guest.build()
}

/// A consumer that sets timers without end.
pub fn sets_timers_for_ever() -> Vec<u8> {
    Guest::new(World::Consumer)
        .import("timers", "set", "$timer (param i32 i32 i64)")
        .main("(loop $again (call $timer (i32.const 256) (i32.const 4) (i64.const 0)) (br $again)) (unreachable)")
        .build()
}

/// A consumer that hands over 64 KiB of data and no records, as often as this.
pub fn emits_data_alone(times: u32) -> Vec<u8> {
    let send = "(call $send (i32.const 0) (i32.const 0) (i32.const 65536) (i32.const 600) (i32.const 0) (i32.const 512))";
    emits(&repeated(times, send), 0, 0)
}

/// A consumer that hands over 64 KiB of data of which a record needs one byte, until it is told to stop, and then answers well.
pub fn emits_data_beside_records() -> Vec<u8> {
    emits(
        "(loop $again
             (call $send (i32.const 0) (i32.const 0) (i32.const 65536) (i32.const 600) (i32.const 40) (i32.const 512))
             (br_if $again (i32.eqz (i32.load8_u (i32.const 512)))))",
        0,
        1,
    )
}

/// A consumer that sets a timer with a key of this many bytes, as often as this.
pub fn sets_timers_with_keys_of(bytes: u32, times: u32) -> Vec<u8> {
    timers_with_keys_of("set", "i64", &format!("(i32.const 0) (i32.const {bytes}) (i64.const 0)"), times)
}

/// A consumer that cancels a timer with a key of this many bytes.
pub fn cancels_a_timer_with_a_key_of(bytes: u32) -> Vec<u8> {
    timers_with_keys_of("cancel", "", &format!("(i32.const 0) (i32.const {bytes})"), 1)
}

fn timers_with_keys_of(function: &str, at: &str, arguments: &str, times: u32) -> Vec<u8> {
    let call = repeated(times, &format!("(call $timer {arguments})"));
    Guest::new(World::Consumer)
        .import("timers", function, &format!("$timer (param i32 i32 {at})"))
        .main(&format!("{call} (i32.const 128)"))
        .build()
}

/// A consumer that writes a key of this many bytes, and traps unless that is refused as malformed.
pub fn writes_a_key_of(bytes: u32) -> Vec<u8> {
    let main = format!(
        "(i32.store (i32.const 600) (i32.const {bytes}))
         (i32.store (i32.const 604) (i32.const 0))
         (call $put (i32.const 0) (i32.const {bytes}) (i32.const 600) (i32.const 4)
                    (i32.const 0) (i32.const 0) (i32.const 604) (i32.const 4) (i64.const 0) (i32.const 512))
         (if (i32.or (i32.eqz (i32.load8_u (i32.const 512))) (i32.ne (i32.load8_u (i32.const 516)) (i32.const 1)))
             (then unreachable))
         (i32.const 128)"
    );
    Guest::new(World::Consumer)
        .import("state", "write-many", "$put (param i32 i32 i32 i32 i32 i32 i32 i32 i64 i32)")
        .main(&main)
        .build()
}

/// A consumer that asks for the empty key this many times in one call of the host's.
pub fn reads_one_key_often(count: u32) -> Vec<u8> {
    reads(&format!(
        "(local $ends i32)
         (local.set $ends (call $realloc (i32.const 0) (i32.const 0) (i32.const 4) (i32.const {bytes})))
         (call $get (i32.const 0) (i32.const 0) (local.get $ends) (i32.const {bytes}) (i32.const 512))
         (i32.const 128)",
        bytes = 4 * count
    ))
}

/// A consumer that asks for a key of this many bytes.
pub fn reads_a_key_of(bytes: u32) -> Vec<u8> {
    reads(&format!(
        "(i32.store (i32.const 600) (i32.const {bytes}))
         (call $get (i32.const 0) (i32.const {bytes}) (i32.const 600) (i32.const 4) (i32.const 512))
         (i32.const 128)"
    ))
}

/// A consumer that asks for the empty key without end.
pub fn reads_for_ever() -> Vec<u8> {
    reads(
        "(loop $again
             (global.set $heap (i32.const 4096))
             (call $get (i32.const 0) (i32.const 0) (i32.const 1000) (i32.const 4) (i32.const 512))
             (br $again))
         (unreachable)",
    )
}

fn reads(main: &str) -> Vec<u8> {
    Guest::new(World::Consumer)
        .import("state", "get-many", "$get (param i32 i32 i32 i32 i32)")
        .main(main)
        .build()
}

/// A consumer that scans its state from a key of this many zeros on, and counts the entries of the page in its metric.
pub fn scans_from_a_key_of(bytes: u32) -> Vec<u8> {
    let main = format!(
        "(call $scan (i32.const 2048) (i32.const {bytes}) (i32.const 0) (i32.const 0) (i32.const 0)
             (i32.const 1000000) (i32.const 512))
         (call $metric (i32.const 272) (i32.const 7)
             (i64.extend_i32_u (i32.shr_u (i32.load (i32.const 524)) (i32.const 2))))
         (i32.const 128)"
    );
    Guest::new(World::Consumer)
        .import("state", "scan", "$scan (param i32 i32 i32 i32 i32 i32 i32)")
        .main(&main)
        .build()
}

fn repeated(times: u32, code: &str) -> String {
    format!(
        "(i32.store (i32.const 700) (i32.const {times}))
         (loop $repeat
             {code}
             (i32.store (i32.const 700) (i32.sub (i32.load (i32.const 700)) (i32.const 1)))
             (br_if $repeat (i32.load (i32.const 700))))"
    )
}
