//! The frame decoder: the first byte of each piece says how long the chunk is that follows.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut chunks = Vec::new();
    let mut rest = bytes;
    while let Some((length, behind)) = rest.split_first() {
        let (chunk, behind) = behind.split_at(behind.len().min(usize::from(*length)));
        chunks.push(chunk);
        rest = behind;
    }
    tidemill_protocol::testing::frames(&chunks);
});
