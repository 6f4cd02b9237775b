//! Components for tests: some that do as they should, and many that do not, written as WebAssembly text and assembled here, so that
//! the tests which need them need no other compiler. They are made from `wit/plugin.wit` itself.
//!
//! A test takes a function for what it wants to see survived:
//!
//! ```
//! let component = tidemill_hostile::loops(tidemill_hostile::World::Filter);
//! assert!(component.starts_with(b"\0asm"));
//! ```

mod assemble;
mod dependent;
mod guest;
mod invalid;
mod misbehaving;
mod well_behaved;

pub use dependent::*;
pub use guest::World;
pub use invalid::*;
pub use misbehaving::*;
pub use well_behaved::*;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_assembles() {
        for world in World::ALL {
            for make in [
                baseline,
                logs_each_call,
                asks_to_retry,
                refuses_the_batch,
                refuses_its_config,
                forbidden_import,
                traps,
                traps_in_start,
                loops_in_start,
                loops_in_describe,
                loops_in_init,
                loops,
                loops_in_host_calls,
                fills_memory_for_ever,
                grows,
                leaks,
                recurses,
                realloc_outside_memory,
                realloc_misaligned,
                realloc_loops,
                loops_after_the_answer,
                answers_outside_memory,
                answers_no_known_case,
                spams_the_log,
            ] {
                make(world);
            }
            large_from_the_start(world, 100);
        }
        for make in [
            keep_all,
            keep_even,
            keep_with_key,
            redact_first,
            by_key_length,
            count_in_state,
            relay,
            core_module_only,
            does_not_validate,
            wrong_world,
            two_worlds,
            other_version,
            other_types,
            filter_that_emits,
            rejects_with_broken_text,
            places_by_memory,
            replaces_outside_data,
            replaces_out_of_order,
            replaces_what_is_not_there,
            replaces_with_bad_headers,
            processes_too_many,
            emits_until_refused,
            emits_outside_data,
            reads_malformed_keys,
            sets_timers_for_ever,
            one_at_a_time,
            rejects_null_keys,
            keeps_the_first_of_each_call,
            keeps_its_first_call,
            keeps_its_first_call_or_traps,
            does_everything,
            places_in_turn,
            counts_in_memory,
            emits_the_last_of_each_call,
            emits_data_beside_records,
            reads_for_ever,
        ] {
            make();
        }
        for make in
            [reject_one, relay_to, places_in, places, bitmap_of, large_bitmap, replaces_with_much_of_little]
        {
            make(3);
        }
        for misdeed in Misdeed::ALL {
            misbehaves_at_a_null_key(misdeed);
            misbehaves_in_timers(misdeed);
        }
        for make in [
            emits_data_alone,
            cancels_a_timer_with_a_key_of,
            writes_a_key_of,
            reads_one_key_often,
            reads_a_key_of,
            scans_from_a_key_of,
        ] {
            make(3);
        }
        sets_timers_with_keys_of(3, 3);
    }
}
