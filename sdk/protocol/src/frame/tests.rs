use proptest::prelude::*;

use super::*;
use crate::messages::{ProduceBatch, Request};

fn frame(request_id: u64, payload: &[u8]) -> Vec<u8> {
    let mut bytes = encode_head(&ProduceBatch { request_id }, payload.len()).to_vec();
    bytes.extend_from_slice(payload);
    bytes
}

fn decoder() -> FrameDecoder {
    FrameDecoder::new(FrameLimits { frame_bytes_max: 1 << 16, header_bytes_max: 1 << 10 })
}

#[test]
fn a_frame_in_one_chunk_is_not_copied() {
    let chunk = Bytes::from(frame(9, b"payload"));
    let range = chunk.as_ptr_range();
    let mut decoder = decoder();
    decoder.push(chunk);
    let frame = decoder.next().unwrap().unwrap();
    assert_eq!(frame.message::<ProduceBatch>().unwrap().request_id, 9);
    assert_eq!(frame.payload, b"payload"[..]);
    assert!(range.contains(&frame.payload.as_ptr()));
    assert!(range.contains(&frame.header.as_ptr()));
    assert_eq!(decoder.next(), Ok(None));
    assert_eq!(decoder.finish(), Ok(()));
}

#[test]
fn empty_header_and_payload_are_a_frame() {
    let head = encode_head(&ProduceBatch::default(), 0);
    assert_eq!(head, [0, 0, 0, 4, 0, 0, 0, 0][..]);
    let mut decoder = decoder();
    decoder.push(head);
    assert_eq!(decoder.next(), Ok(Some(RawFrame { header: Bytes::new(), payload: Bytes::new() })));
}

#[test]
fn a_length_over_the_limit_is_refused_at_the_length() {
    let mut decoder = decoder();
    decoder.push(Bytes::from_static(&[0xff; 4]));
    let error = decoder.next().unwrap_err();
    assert_eq!(error, FrameError::TooLarge { length: u32::MAX as usize, limit: 1 << 16 });
    assert_eq!(rest_length([0xff; 4], &FrameLimits::default()).unwrap_err().to_string(), {
        let limit = FrameLimits::default().frame_bytes_max;
        format!("a frame of {} bytes is over the limit of {limit}", u32::MAX)
    });
}

#[test]
fn a_header_length_that_lies_is_refused() {
    for (bytes, error) in [
        ([0, 0, 0, 9, 0, 0, 0, 6], FrameError::HeaderOutside { header: 6, length: 9 }),
        ([0, 0, 9, 0, 0, 0, 5, 0], FrameError::HeaderTooLarge { length: 0x500, limit: 1 << 10 }),
        ([0, 0, 0, 3, 0, 0, 0, 0], FrameError::TooShort { length: 3 }),
    ] {
        let mut decoder = decoder();
        decoder.push(Bytes::copy_from_slice(&bytes));
        assert_eq!(decoder.next(), Err(error));
    }
    let rest = Bytes::from_static(&[0, 0, 0, 6, 1, 2, 3]);
    let error = RawFrame::split(rest, &FrameLimits::default()).unwrap_err();
    assert_eq!(error, FrameError::HeaderOutside { header: 6, length: 7 });
}

#[test]
fn an_end_inside_a_frame_is_an_error() {
    let mut decoder = decoder();
    decoder.push(Bytes::from(frame(1, b"abc")).slice(..9));
    assert_eq!(decoder.next(), Ok(None));
    assert_eq!(decoder.finish(), Err(FrameError::Truncated { received: 9 }));
}

#[test]
fn single_bytes_are_gathered() {
    let mut decoder = decoder();
    let payload = vec![7; 20_000];
    for byte in frame(1, &payload) {
        assert_eq!(decoder.next(), Ok(None));
        decoder.push(Bytes::copy_from_slice(&[byte]));
    }
    assert!(decoder.chunks.len() <= 2, "{} chunks", decoder.chunks.len());
    assert_eq!(decoder.next().unwrap().unwrap().payload, payload);
}

#[test]
fn exact_reads_need_no_decoder() {
    let bytes = Bytes::from(frame(3, b"xyz"));
    let limits = FrameLimits::default();
    let length = rest_length(*bytes.first_chunk().unwrap(), &limits).unwrap();
    assert_eq!(length, bytes.len() - FRAME_LENGTH_BYTES);
    let frame = RawFrame::split(bytes.slice(FRAME_LENGTH_BYTES..), &limits).unwrap();
    assert_eq!(frame.payload, b"xyz"[..]);
    assert!(frame.message::<Request>().is_ok() || frame.message::<ProduceBatch>().is_ok());
}

proptest! {
    #[test]
    fn frames_survive_any_cut(
        payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..6000), 1..8),
        cuts in prop::collection::vec(1_usize..6000, 1..40),
    ) {
        let stream: Vec<u8> = payloads.iter().zip(0..).flat_map(|(payload, id)| frame(id, payload)).collect();
        let mut rest = Bytes::from(stream);
        let mut cuts = cuts.into_iter().cycle();
        let mut decoder = decoder();
        let mut seen = Vec::new();
        while !rest.is_empty() {
            decoder.push(rest.split_to(cuts.next().unwrap().min(rest.len())));
            while let Some(frame) = decoder.next().unwrap() {
                prop_assert_eq!(frame.message::<ProduceBatch>().unwrap().request_id, seen.len() as u64);
                seen.push(frame.payload.to_vec());
            }
        }
        prop_assert_eq!(decoder.finish(), Ok(()));
        prop_assert_eq!(seen, payloads);
    }

    #[test]
    fn garbage_never_panics(chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..64), 0..16)) {
        crate::testing::frames(&chunks.iter().map(Vec::as_slice).collect::<Vec<_>>());
    }
}
