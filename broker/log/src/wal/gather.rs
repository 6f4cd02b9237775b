//! The gather buffer: frames laid into blocks, ready for one write.
//!
//! The copy into the aligned buffer, with each piece hashed while it is in the processor's cache, is the only pass
//! that the log makes over an entry's bytes. What is known only when the write begins (sequence, salt, how far the
//! log is flushed) is in the blocks' trailers and filled in by [`Gather::seal`].

use super::block::{self, BLOCK_BYTES, NO_FRAME, PAYLOAD_BYTES, Role, Trailer};
use super::crc;
use super::frame::{CRC_BYTES, FrameHeader};
use crate::fs::AlignedBuffer;

/// A growing run of blocks.
pub(super) struct Gather {
    buffer: AlignedBuffer,
    finished: Vec<FinishedBlock>,
    /// Bytes in use of the current block's payload, their crc, and where its first frame begins.
    used: usize,
    block_crc: u32,
    first_frame: u16,
    frame_crc: u32,
    capacity_bytes: usize,
}

struct FinishedBlock {
    crc: u32,
    used: u16,
    first_frame: u16,
}

/// Where in a gather buffer a frame lies: block from its start, and offset in that block's payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) block: u32,
    pub(super) offset: u16,
}

/// What all blocks of a write have in common.
pub(super) struct SealAs {
    pub(super) first_sequence: u64,
    pub(super) flushed: u64,
    pub(super) salt: u32,
}

impl Gather {
    /// Room for `capacity_bytes` of frames; a single larger frame makes it grow until it is cleared.
    pub(super) fn new(capacity_bytes: usize) -> Self {
        Self {
            buffer: AlignedBuffer::zeroed(Self::buffer_bytes(capacity_bytes)),
            finished: Vec::new(),
            used: 0,
            block_crc: 0,
            first_frame: NO_FRAME,
            frame_crc: 0,
            capacity_bytes,
        }
    }

    fn buffer_bytes(payload_bytes: usize) -> usize {
        payload_bytes.div_ceil(PAYLOAD_BYTES).max(1) * BLOCK_BYTES
    }

    pub(super) fn is_empty(&self) -> bool {
        self.used == 0 && self.finished.is_empty()
    }

    /// Bytes of frames in it.
    pub(super) fn payload_bytes(&self) -> usize {
        self.finished.len() * PAYLOAD_BYTES + self.used
    }

    /// Blocks that a write of it takes.
    pub(super) fn blocks(&self) -> usize {
        self.finished.len() + usize::from(self.used > 0)
    }

    /// Just after the last frame: as a place in the last block.
    pub(super) fn end(&self) -> Place {
        self.place()
    }

    /// Adds a frame; its place and its crc.
    pub(super) fn frame<'a>(
        &mut self,
        header: &FrameHeader,
        payload: impl IntoIterator<Item = &'a [u8]>,
    ) -> (Place, u32) {
        if self.used == PAYLOAD_BYTES {
            self.finish_block();
        }
        self.reserve(super::frame::FRAME_OVERHEAD_BYTES + header.payload_bytes as usize);
        let place = self.place();
        if self.first_frame == NO_FRAME {
            self.first_frame = place.offset;
        }
        self.frame_crc = 0;
        self.put(&header.encode());
        let before = self.payload_bytes();
        for piece in payload {
            self.put(piece);
        }
        assert_eq!(
            self.payload_bytes() - before,
            header.payload_bytes as usize,
            "a frame is as long as it says"
        );
        let crc = self.frame_crc;
        self.put(&crc.to_le_bytes());
        (place, crc)
    }

    /// Adds a block of its own that holds no frame: a segment's header.
    pub(super) fn lone_block(&mut self, payload: &[u8]) {
        assert!(self.is_empty() && payload.len() <= PAYLOAD_BYTES, "a header comes first and fits a block");
        self.put(payload);
        self.finish_block();
    }

    /// Fills in the trailers and gives the bytes to write. `role` tells each block's, by its number.
    pub(super) fn seal(&mut self, seal_as: &SealAs, role: impl Fn(usize) -> Role) -> &[u8] {
        if self.used > 0 {
            // Padding is not checked, but what another write left must not reach the disk.
            let (start, end) = (self.finished.len() * BLOCK_BYTES + self.used, PAYLOAD_BYTES);
            let end = self.finished.len() * BLOCK_BYTES + end;
            if let Some(padding) = self.buffer.get_mut(start..end) {
                padding.fill(0);
            }
            self.finish_block();
        }
        let blocks = self.buffer.chunks_exact_mut(BLOCK_BYTES);
        for ((number, finished), block) in self.finished.iter().enumerate().zip(blocks) {
            let trailer = Trailer {
                sequence: seal_as.first_sequence + number as u64,
                flushed: seal_as.flushed,
                salt: seal_as.salt,
                used: finished.used,
                first_frame: finished.first_frame,
                starts_write: number == 0,
                role: role(number),
            };
            block::seal(block, &trailer, finished.crc);
        }
        self.buffer.get(..self.finished.len() * BLOCK_BYTES).unwrap_or_default()
    }

    /// Empties it for the next write.
    pub(super) fn clear(&mut self) {
        self.finished.clear();
        self.used = 0;
        self.block_crc = 0;
        self.first_frame = NO_FRAME;
        let usual = Self::buffer_bytes(self.capacity_bytes);
        if self.buffer.len() > 2 * usual {
            self.buffer = AlignedBuffer::zeroed(usual);
        }
    }

    fn place(&self) -> Place {
        // A buffer holds far fewer than 2^32 blocks, and an offset is below 4096.
        Place {
            block: u32::try_from(self.finished.len()).unwrap_or(u32::MAX),
            offset: u16::try_from(self.used).unwrap_or(u16::MAX),
        }
    }

    fn reserve(&mut self, payload_bytes: usize) {
        let needed = Self::buffer_bytes(self.payload_bytes() + payload_bytes);
        if needed > self.buffer.len() {
            let mut grown = AlignedBuffer::zeroed(needed.max(self.buffer.len() * 2));
            for (target, source) in
                grown.chunks_exact_mut(BLOCK_BYTES).zip(self.buffer.chunks_exact(BLOCK_BYTES))
            {
                target.copy_from_slice(source);
            }
            self.buffer = grown;
        }
    }

    fn put(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            if self.used == PAYLOAD_BYTES {
                self.finish_block();
            }
            let (piece, after) = rest.split_at(rest.len().min(PAYLOAD_BYTES - self.used));
            let start = self.finished.len() * BLOCK_BYTES + self.used;
            let Some(target) = self.buffer.get_mut(start..start + piece.len()) else {
                unreachable!("room is reserved before a frame is put");
            };
            target.copy_from_slice(piece);
            if piece.len() == PAYLOAD_BYTES {
                self.block_crc = crc::extend(0, piece);
                self.frame_crc = crc::append_full_payload(self.frame_crc, self.block_crc);
            } else {
                self.block_crc = crc::extend(self.block_crc, piece);
                self.frame_crc = crc::extend(self.frame_crc, piece);
            }
            self.used += piece.len();
            rest = after;
        }
    }

    fn finish_block(&mut self) {
        let used = u16::try_from(self.used).unwrap_or(u16::MAX);
        self.finished.push(FinishedBlock { crc: self.block_crc, used, first_frame: self.first_frame });
        self.used = 0;
        self.block_crc = 0;
        self.first_frame = NO_FRAME;
    }
}

/// Bytes that a frame with this payload takes in the payloads of blocks.
pub(super) const fn frame_bytes(payload_bytes: usize) -> usize {
    super::frame::HEADER_BYTES + payload_bytes + CRC_BYTES
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tidemill_protocol::ShardId;

    use super::super::frame::{FrameAssembler, FrameKind, NO_ENTRY};
    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn frames_survive_the_blocks(
            lengths in proptest::collection::vec(
                prop_oneof![0_usize..100, 4000_usize..4100, 0_usize..20_000],
                1..12,
            ),
            capacity in 1_usize..50_000,
        ) {
            let mut gather = Gather::new(capacity);
            for round in 0..2_u32 {
                let mut chain = round;
                let mut places = Vec::new();
                for (number, length) in lengths.iter().enumerate() {
                    let payload = vec![u8::try_from(number).unwrap(); *length];
                    let header = FrameHeader {
                        payload_bytes: u32::try_from(*length).unwrap(),
                        kind: FrameKind::Entry,
                        shard: ShardId::new(3),
                        id: NO_ENTRY,
                        previous_crc: chain,
                    };
                    let (front, back) = payload.split_at(length / 3);
                    let (place, crc) = gather.frame(&header, [front, back]);
                    chain = crc;
                    places.push((place, crc));
                }
                let blocks = gather.blocks();
                let seal_as = SealAs { first_sequence: 10, flushed: 9, salt: 77 };
                let bytes = gather.seal(&seal_as, |_| Role::Data).to_vec();
                prop_assert_eq!(bytes.len(), blocks * BLOCK_BYTES);
                let mut assembler = FrameAssembler::new(1 << 20);
                let mut got = Vec::new();
                for (number, bytes) in bytes.chunks(BLOCK_BYTES).enumerate() {
                    let (trailer, payload) = block::open(bytes).unwrap();
                    prop_assert_eq!((trailer.sequence, trailer.starts_write), (10 + number as u64, number == 0));
                    let first = got.len();
                    let carries = assembler.is_within_frame();
                    assembler.push(trailer.sequence, 0, payload);
                    let mut begins = (!carries && !payload.is_empty()).then_some(0);
                    while let Some(frame) = assembler.next().unwrap() {
                        let end = (frame.end.sequence, frame.end.offset);
                        if begins.is_none() && usize::from(end.1) < payload.len() {
                            begins = Some(end.1);
                        }
                        got.push(frame);
                    }
                    prop_assert_eq!(trailer.first_frame, begins.unwrap_or(NO_FRAME), "after {}", first);
                }
                prop_assert!(!assembler.is_within_frame());
                prop_assert_eq!(got.len(), lengths.len());
                for ((number, frame), (place, crc)) in got.iter().enumerate().zip(places) {
                    prop_assert_eq!(frame.position.sequence, 10 + u64::from(place.block));
                    prop_assert_eq!(frame.position.offset, place.offset);
                    prop_assert_eq!(frame.crc, crc);
                    prop_assert!(frame.payload.iter().all(|byte| usize::from(*byte) == number));
                    prop_assert_eq!(frame.payload.len(), lengths[number]);
                }
                gather.clear();
            }
        }
    }

    /// `cargo test --release -p tidemill-log gather::tests::speed -- --ignored --nocapture`
    #[test]
    #[ignore = "a measurement: what laying frames into blocks costs, beside a plain copy"]
    fn speed() {
        for payload_bytes in [1 << 10, 64 << 10, 1 << 20] {
            let payload = vec![7; payload_bytes];
            let header = FrameHeader {
                payload_bytes: u32::try_from(payload_bytes).unwrap(),
                kind: FrameKind::Entry,
                shard: ShardId::new(1),
                id: NO_ENTRY,
                previous_crc: 0,
            };
            let mut gather = Gather::new(1 << 20);
            let mut target = vec![0_u8; 2 << 20];
            let mut best = [f64::MAX; 2];
            for _ in 0..500 {
                let begin = std::time::Instant::now();
                while gather.payload_bytes() < 1 << 20 {
                    gather.frame(&header, [&payload[..]]);
                }
                let bytes = gather.payload_bytes() as f64;
                let seal_as = SealAs { first_sequence: 1, flushed: 0, salt: 0 };
                std::hint::black_box(gather.seal(&seal_as, |_| Role::Data));
                best[0] = best[0].min(begin.elapsed().as_secs_f64() / bytes);
                let begin = std::time::Instant::now();
                for target in target[..1 << 20].chunks_mut(payload_bytes) {
                    target.copy_from_slice(std::hint::black_box(&payload[..target.len()]));
                }
                best[1] = best[1].min(begin.elapsed().as_secs_f64() / f64::from(1 << 20));
                gather.clear();
            }
            let [gathered, copied] = best.map(|seconds| 1e-9 / seconds);
            println!("{payload_bytes:>8} B payloads: {gathered:5.1} GB/s gathered, {copied:5.1} GB/s copied");
        }
    }
}
