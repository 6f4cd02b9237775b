//! Entry points for fuzzing: each feeds arbitrary bytes to one decoder and checks what must hold whatever they are.
//! The fuzz targets and this crate's property tests share them.

use bytes::Bytes;
use prost::Message;

use crate::frame::{FrameDecoder, FrameLimits};
use crate::record_batch::{BatchLimits, Compression, ProducerFields, RecordBatch};

/// Cuts bytes into chunks, each as long as the byte before it says, and feeds them to the frame decoder.
pub fn frame_chunks(bytes: &[u8]) {
    let mut chunks = Vec::new();
    let mut rest = bytes;
    while let Some((length, behind)) = rest.split_first() {
        let (chunk, behind) = behind.split_at(behind.len().min(usize::from(*length)));
        chunks.push(chunk);
        rest = behind;
    }
    frames(&chunks);
}

/// Feeds chunks to the frame decoder, the one that broker and client have. It finds what is found by reading all of them at once.
pub fn frames(chunks: &[&[u8]]) {
    let limits = FrameLimits { frame_bytes_max: 1 << 16, header_bytes_max: 1 << 12 };
    let whole = chunks.concat();
    let mut expected = whole.as_slice();
    let mut decoder = FrameDecoder::new(limits);
    let mut pushed = 0;
    for chunk in chunks {
        pushed += chunk.len();
        decoder.push(Bytes::copy_from_slice(chunk));
        loop {
            match decoder.next() {
                Ok(Some(frame)) => {
                    let (header, payload) = one_frame(&mut expected).expect("a frame made up");
                    assert!(frame.header == header && frame.payload == payload, "another frame");
                    assert!(header.len() <= limits.header_bytes_max, "a header over the limit");
                }
                Ok(None) => break,
                Err(_) => {
                    let fits = one_frame(&mut expected).is_some_and(|(header, payload)| {
                        header.len() <= limits.header_bytes_max
                            && header.len() + payload.len() + 4 <= limits.frame_bytes_max
                    });
                    return assert!(!fits, "a frame refused that is one");
                }
            }
        }
        let taken = whole.len() - expected.len();
        assert_eq!(decoder.buffered(), pushed - taken, "bytes lost or made up");
        assert!(decoder.buffered() < limits.frame_bytes_max + 8, "more buffered than a frame");
        let mut here = expected.get(..pushed - taken).unwrap_or_default();
        assert!(one_frame(&mut here).is_none(), "a frame overlooked");
    }
}

/// The frame at the start of `bytes`, as the format says it.
fn one_frame<'a>(bytes: &mut &'a [u8]) -> Option<(&'a [u8], &'a [u8])> {
    let (length, rest) = bytes.split_first_chunk()?;
    let (frame, behind) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
    let (header, rest) = frame.split_first_chunk()?;
    let parts = rest.split_at_checked(u32::from_be_bytes(*header) as usize)?;
    *bytes = behind;
    Some(parts)
}

/// Decodes a record batch, walks it, and makes others of it; once as it is and once with a checksum that fits.
pub fn record_batch(bytes: &[u8]) {
    decode_batch(Bytes::copy_from_slice(bytes));
    let mut forged = bytes.to_vec();
    if let Some((head, covered)) = forged.split_at_mut_checked(21) {
        let crc = crc32c::crc32c(covered);
        if let Some(field) = head.last_chunk_mut() {
            *field = crc.to_be_bytes();
        }
        if let Ok(length) = u32::try_from(bytes.len() - 12)
            && let Some(field) = head.get_mut(8..12).and_then(|rest| rest.first_chunk_mut())
        {
            *field = length.to_be_bytes();
        }
        decode_batch(Bytes::from(forged));
    }
}

fn decode_batch(bytes: Bytes) {
    let limits = BatchLimits {
        batch_bytes_max: 1 << 16,
        record_bytes_max: 1 << 14,
        decompressed_bytes_max: 1 << 18,
        records_max: 1 << 12,
        allow_gaps: false,
    };
    for limits in [limits, limits.allowing_gaps()] {
        let mut rest = bytes.clone();
        while let Ok(Some(batch)) = RecordBatch::split_first(&mut rest, &limits) {
            walk(&batch, &limits);
        }
        if let Ok(batch) = RecordBatch::decode(bytes.clone(), &limits) {
            walk(&batch, &limits);
        }
    }
}

fn walk(batch: &RecordBatch, limits: &BatchLimits) {
    let Ok(records) = batch.records(limits) else { return };
    assert!(records.data().len() <= limits.decompressed_bytes_max, "over the limit");
    let valid = records.validate().is_ok();
    let mut seen = 0;
    for record in &records {
        let Ok(record) = record else {
            assert!(!valid, "valid, and not readable");
            break;
        };
        assert_eq!(record.headers.iter().count(), record.headers.len(), "headers lost");
        seen += 1;
    }
    let count = records.len();
    assert!(!valid || seen == count, "valid, and records missing");
    let kept: Vec<u8> = (0..count.div_ceil(8)).map(|byte| 0b0110_1011 ^ byte as u8).collect();
    if let Ok(Some(filtered)) = records.filter(&kept, Compression::Lz4)
        && valid
    {
        assert!(filtered.validate_records(&limits.allowing_gaps()).is_ok(), "a filter broke the batch");
    }
    let placement: Vec<u32> = (0..count as u32).map(|ordinal| ordinal % 3).collect();
    let split = records.split(&placement, 3, Compression::None, |_, _| ProducerFields::NONE);
    if valid && let Ok(parts) = split {
        for (_, part) in parts {
            assert!(part.validate_records(&limits.allowing_gaps()).is_ok(), "a split broke the batch");
        }
    }
}

/// Decodes a message, and what it encodes to again.
pub fn message<M: Message + Default + PartialEq>(bytes: &[u8]) {
    let Ok(message) = M::decode(bytes) else { return };
    let again = M::decode(&*message.encode_to_vec());
    // Not compared as values: a NaN would not equal itself.
    assert!(again.is_ok_and(|again| again.encode_to_vec() == message.encode_to_vec()), "not stable");
}

/// Decodes every message that a peer may send first on a stream or in an answer, from the same bytes.
pub fn messages(bytes: &[u8]) {
    use crate::messages::*;
    message::<StreamOpen>(bytes);
    message::<ServerHello>(bytes);
    message::<ClientControl>(bytes);
    message::<ServerControl>(bytes);
    message::<ProduceOpened>(bytes);
    message::<ProduceBatch>(bytes);
    message::<ProduceAcks>(bytes);
    message::<RoutedOpened>(bytes);
    message::<RoutedBatch>(bytes);
    message::<RoutedAcks>(bytes);
    message::<SubscribeOpened>(bytes);
    message::<SubscribeControl>(bytes);
    message::<SubscribeEvent>(bytes);
    message::<Reply>(bytes);
    message::<PayloadChunk>(bytes);
}
