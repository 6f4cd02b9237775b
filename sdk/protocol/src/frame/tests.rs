use proptest::prelude::*;

use super::*;
use crate::messages::ProduceBatch;

fn frame(request_id: u64, payload: &[u8]) -> Vec<u8> {
    let mut bytes = encode_head(&ProduceBatch { request_id }, payload.len()).to_vec();
    bytes.extend_from_slice(payload);
    bytes
}

fn decoder() -> FrameDecoder {
    FrameDecoder::new(FrameLimits { frame_bytes_max: 1 << 16, header_bytes_max: 1 << 10 })
}

#[test]
fn a_frame_keeps_nothing_of_the_chunks_that_it_came_in() {
    let chunk = Bytes::from(frame(9, b"payload"));
    let mut decoder = decoder();
    decoder.push(chunk.clone());
    let frame = decoder.next().unwrap().unwrap();
    assert_eq!(frame.message::<ProduceBatch>().unwrap().request_id, 9);
    assert_eq!(frame.payload, b"payload"[..]);
    assert!(chunk.is_unique(), "a packet lives as long as a payload");
    assert_eq!(decoder.next(), Ok(None));
    assert_eq!(decoder.finish(), Ok(()));
    // Nor does the beginning of a frame.
    decoder.push(chunk.slice(..3));
    assert_eq!(decoder.next(), Ok(None));
    assert!(chunk.is_unique());
    assert_eq!(decoder.finish(), Err(FrameError::Truncated { received: 3 }));
}

/// Counts like a budget, and remembers.
struct Counted {
    most: usize,
    asked: Vec<usize>,
}

impl FrameMemory for Counted {
    fn raise_to(&mut self, bytes: usize) -> bool {
        self.asked.push(bytes);
        bytes <= self.most
    }
}

#[test]
fn memory_is_asked_for_as_it_comes_and_not_as_it_is_promised() {
    let limits = FrameLimits { frame_bytes_max: 64 << 20, header_bytes_max: 1 << 10 };
    let payload = vec![5; 5 << 20];
    let bytes = Bytes::from(frame(1, &payload));
    let mut decoder = FrameDecoder::new(limits);
    let mut memory = Counted { most: usize::MAX, asked: Vec::new() };
    decoder.push(bytes.slice(..100));
    assert_eq!(decoder.next_within(&mut memory), Ok(Next::More));
    assert!(decoder.is_inside());
    assert!(memory.asked.iter().all(|bytes| *bytes < 2 << 20), "{:?}", memory.asked);
    let mut rest = bytes.slice(100..);
    while rest.len() > 1 << 20 {
        decoder.push(rest.split_to(1 << 20));
        assert_eq!(decoder.next_within(&mut memory), Ok(Next::More));
    }
    assert!(memory.asked.is_sorted() && memory.asked.len() < 6, "{:?}", memory.asked);
    decoder.push(rest);
    let Next::Frame(whole) = decoder.next_within(&mut memory).unwrap() else { panic!("it is all there") };
    assert_eq!(whole.payload, payload);
    // Somebody who is believed gets it at once.
    let mut trusting = FrameDecoder::trusting(limits);
    let mut memory = Counted { most: 2 << 20, asked: Vec::new() };
    trusting.push(bytes.slice(..8));
    assert_eq!(trusting.next_within(&mut memory), Ok(Next::NoMemory));
    assert_eq!(memory.asked, [bytes.len() - FRAME_PREFIX_BYTES]);
}

#[test]
fn what_is_fed_is_what_is_read_and_large_payloads_are_not_copied() {
    let large = Bytes::from(vec![3; 40_000]);
    let mut encoder = FrameEncoder::new();
    for request_id in 0..3 {
        encoder.feed(&ProduceBatch { request_id }, &[Bytes::from_static(b"small"), large.clone()]).unwrap();
    }
    let all = encoder.queued_bytes();
    let mut decoder = decoder();
    let mut seen = 0;
    // One whole chunk and a part of the next at a time, as a stream whose window is small takes them.
    while let Some(chunk) = encoder.chunks().first().cloned() {
        let part = encoder.chunks().get_mut(1).map_or(Bytes::new(), |next| next.split_to(1));
        encoder.wrote(1, chunk.len() + part.len());
        seen += chunk.len() + part.len();
        assert_eq!(encoder.queued_bytes(), all - seen);
        decoder.push(chunk);
        decoder.push(part);
        let rest = encoder.chunks().first().cloned().unwrap();
        assert_eq!(rest.as_ptr(), large.as_ptr().wrapping_add(1), "a payload was copied");
        encoder.wrote(1, rest.len());
        seen += rest.len();
        decoder.push(rest);
    }
    assert_eq!((seen, encoder.queued_bytes()), (all, 0));
    for request_id in 0..3 {
        let frame = decoder.next().unwrap().unwrap();
        assert_eq!(frame.message::<ProduceBatch>().unwrap().request_id, request_id);
        assert_eq!(frame.payload, [b"small", &large[..]].concat());
    }
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
    assert_eq!(error.to_string(), format!("a frame of {} bytes is over the limit of 65536", u32::MAX));
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
    assert_eq!(decoder.next().unwrap().unwrap().payload, payload);
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

    #[test]
    fn garbage_after_frames_never_panics(
        payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 1..5),
        garbage in prop::collection::vec(any::<u8>(), 0..64),
        cut in 1_usize..64,
    ) {
        let mut stream: Vec<u8> = payloads.iter().flat_map(|payload| frame(5, payload)).collect();
        stream.extend(garbage);
        crate::testing::frames(&stream.chunks(cut).collect::<Vec<_>>());
    }
}
