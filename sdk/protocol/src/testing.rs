//! Entry points for fuzzing: each feeds arbitrary bytes to one decoder and checks what must hold whatever they are.
//! The fuzz targets and this crate's property tests share them.

use bytes::Bytes;

use crate::frame::{FrameDecoder, FrameLimits};

/// Feeds chunks to the frame decoder.
pub fn frames(chunks: &[&[u8]]) {
    let limits = FrameLimits { frame_bytes_max: 1 << 16, header_bytes_max: 1 << 12 };
    let mut decoder = FrameDecoder::new(limits);
    let mut pushed = 0;
    let mut taken = 0;
    for chunk in chunks {
        pushed += chunk.len();
        decoder.push(Bytes::copy_from_slice(chunk));
        loop {
            match decoder.next() {
                Ok(Some(frame)) => {
                    taken += frame.header.len() + frame.payload.len() + 8;
                    assert!(frame.header.len() <= limits.header_bytes_max, "a header over the limit");
                }
                Ok(None) => break,
                Err(_) => return,
            }
        }
        assert_eq!(decoder.buffered(), pushed - taken, "bytes lost or made up");
        assert!(decoder.buffered() < limits.frame_bytes_max + 8, "more buffered than a frame");
    }
}
