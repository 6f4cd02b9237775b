//! Takes from a process the chance that comes from the system.
//!
//! tokio wakes those who wait for the same value in an order that it draws, and seeds that from the keys of the standard library's
//! hash maps and a count of the process's runtimes. Without tokio's unstable settings there is no other way to set it than to be what the
//! system's randomness comes from: [`getrandom`] below stands in the place of the C library's in each program that links this.
//! As long as no seed is set it is the system's.

use std::ffi::{c_uint, c_void};
use std::io::Read;
use std::sync::atomic::{AtomicU64, Ordering};

/// 0: none.
static SEED: AtomicU64 = AtomicU64::new(0);

/// From now on the system's randomness in this process is the same for the same seed, in each thread anew. A process that simulates one
/// seed and nothing else does so again.
pub(crate) fn seed_process(seed: u64) {
    SEED.store(seed | 1 << 63, Ordering::Relaxed);
}

/// Fills a buffer, whichever thread asks and however often, with the same bytes.
#[unsafe(no_mangle)]
#[allow(unsafe_code, reason = "what the C library's function is called with")]
unsafe extern "C" fn getrandom(buffer: *mut c_void, bytes: usize, _flags: c_uint) -> isize {
    if buffer.is_null() || bytes == 0 {
        return 0;
    }
    // SAFETY: whoever calls getrandom(2) hands in a buffer of that many bytes, to be written to.
    let buffer = unsafe { std::slice::from_raw_parts_mut(buffer.cast::<u8>(), bytes) };
    let seed = SEED.load(Ordering::Relaxed);
    if seed == 0 {
        let read = std::fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(buffer));
        return if read.is_ok() { isize::try_from(bytes).unwrap_or(-1) } else { -1 };
    }
    let mut state = seed;
    for chunk in buffer.chunks_mut(8) {
        // SplitMix64 (Steele, Lea, Flood 2014).
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let mixed = (mixed ^ (mixed >> 31)).to_le_bytes();
        chunk.copy_from_slice(&mixed[..chunk.len()]);
    }
    isize::try_from(bytes).unwrap_or(-1)
}

#[cfg(test)]
mod tests {
    use std::collections::hash_map::RandomState;
    use std::hash::BuildHasher;

    use super::*;

    fn hash_on_a_new_thread() -> u64 {
        std::thread::spawn(|| RandomState::new().hash_one(1)).join().unwrap()
    }

    #[test]
    fn hash_maps_have_the_keys_of_the_seed() {
        assert_ne!(
            hash_on_a_new_thread(),
            hash_on_a_new_thread(),
            "the system's, as long as there is no seed"
        );
        seed_process(7);
        let first = hash_on_a_new_thread();
        assert_eq!(hash_on_a_new_thread(), first);
        seed_process(8);
        assert_ne!(hash_on_a_new_thread(), first);
    }
}
