//! Every message of the protocol, from the same bytes.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tidemill_protocol::testing::messages(bytes));
