//! The frame decoder that broker and client have; the first byte of each piece says how long the chunk is that follows.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tidemill_protocol::testing::frame_chunks(bytes));
