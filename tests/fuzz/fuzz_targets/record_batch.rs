//! A record batch: decode, walk, filter, split; as it is, and with lengths and checksum made to fit.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tidemill_protocol::testing::record_batch(bytes));
