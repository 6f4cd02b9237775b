//! Where a record goes by default: Kafka's own hash of the key, so that keys stay where they are when topics move
//! over from Kafka.

use crate::PartitionId;

const SEED: u32 = 0x9747_b28c;
const MULTIPLIER: u32 = 0x5bd1_e995;
const SHIFT: u32 = 24;

/// Murmur2 with Kafka's seed (`org.apache.kafka.common.utils.Utils.murmur2`), as unsigned.
#[must_use]
pub fn murmur2(key: &[u8]) -> u32 {
    // Kafka's lengths are i32; a longer key wraps as Java's would.
    let mut hash = SEED ^ key.len() as u32;
    let (words, tail) = key.as_chunks::<4>();
    for word in words {
        let mut mixed = u32::from_le_bytes(*word).wrapping_mul(MULTIPLIER);
        mixed = (mixed ^ mixed >> SHIFT).wrapping_mul(MULTIPLIER);
        hash = hash.wrapping_mul(MULTIPLIER) ^ mixed;
    }
    if !tail.is_empty() {
        let last = tail.iter().rev().fold(0, |word, byte| word << 8 | u32::from(*byte));
        hash = (hash ^ last).wrapping_mul(MULTIPLIER);
    }
    hash = (hash ^ hash >> 13).wrapping_mul(MULTIPLIER);
    hash ^ hash >> 15
}

/// The partition of a key among `count` partitions, as Kafka's default partitioner has it. With no partitions at
/// all the answer is partition 0, which does not exist either.
#[must_use]
pub fn partition_for_key(key: &[u8], count: u32) -> PartitionId {
    PartitionId::new((murmur2(key) & 0x7fff_ffff).checked_rem(count).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From Kafka's own `UtilsTest.testMurmur2`.
    #[test]
    fn hashes_as_kafka_does() {
        for (key, hash) in [
            (&b"21"[..], -973_932_308),
            (b"foobar", -790_332_482),
            (b"a-little-bit-long-string", -985_981_536),
            (b"a-little-bit-longer-string", -1_486_304_829),
            (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            (b"abc", 479_470_107),
        ] {
            assert_eq!(murmur2(key).cast_signed(), hash, "{}", key.escape_ascii());
        }
    }

    #[test]
    fn places_below_the_count() {
        assert_eq!(partition_for_key(b"foobar", 7).get(), (-790_332_482_i32 & i32::MAX).cast_unsigned() % 7);
        for count in 1..50_u32 {
            assert!(partition_for_key(&count.to_le_bytes(), count).get() < count);
        }
        assert_eq!(partition_for_key(b"foobar", 0).get(), 0);
    }
}
