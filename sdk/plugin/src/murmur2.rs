//! Murmur2 as Kafka's default partitioner uses it (seed 0x9747b28c): the same key goes to the same partition.

const SEED: u32 = 0x9747_b28c;
const M: u32 = 0x5bd1_e995;
const R: u32 = 24;

/// The hash of Kafka's `Utils.murmur2`, which there is a signed number of the same bits.
pub fn hash(bytes: &[u8]) -> u32 {
    let (words, rest) = bytes.as_chunks::<4>();
    let mut h = SEED ^ bytes.len() as u32;
    for word in words {
        let mut k = u32::from_le_bytes(*word).wrapping_mul(M);
        k ^= k >> R;
        h = h.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    if !rest.is_empty() {
        for (i, byte) in rest.iter().enumerate() {
            h ^= u32::from(*byte) << (8 * i);
        }
        h = h.wrapping_mul(M);
    }
    h ^= h >> 13;
    h = h.wrapping_mul(M);
    h ^ h >> 15
}

/// The partition of a key: `toPositive(murmur2(key)) % partitions`.
///
/// # Panics
/// Where `partitions` is 0.
pub fn partition(key: &[u8], partitions: u32) -> u32 {
    (hash(key) & 0x7fff_ffff) % partitions
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From Kafka's own `UtilsTest.testMurmur2`.
    #[test]
    fn hashes_as_kafka_does() {
        for (key, expected) in [
            ("21", -973932308),
            ("foobar", -790332482),
            ("a-little-bit-long-string", -985981536),
            ("a-little-bit-longer-string", -1486304829),
            ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
            ("abc", 479470107),
        ] {
            assert_eq!(hash(key.as_bytes()) as i32, expected, "{key}");
        }
    }

    #[test]
    fn places_within_the_partitions() {
        assert_eq!(partition(b"abc", 10), 479_470_107 % 10);
        assert_eq!(partition(b"foobar", 6), ((-790_332_482_i32) & 0x7fff_ffff) as u32 % 6);
        assert_eq!(partition(b"", 1), 0);
    }
}
