//! Which engines can run each other's compiled code.

use std::hash::{Hash, Hasher};

/// Equal for two engines exactly if code compiled by one runs on the other: it covers wasmtime's version, the target, the
/// compiler's flags and everything that changes code.
pub(crate) fn compatibility_digest(engine: &wasmtime::Engine) -> [u8; 32] {
    let mut hasher = Blake3Hasher(blake3::Hasher::new());
    engine.precompile_compatibility_hash().hash(&mut hasher);
    *hasher.0.finalize().as_bytes()
}

/// `std::hash` ends in 64 bits, which is too few for a key that decides which code runs: this one keeps everything written to it.
struct Blake3Hasher(blake3::Hasher);

impl Hasher for Blake3Hasher {
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn finish(&self) -> u64 {
        let mut word = [0; 8];
        word.copy_from_slice(&self.0.finalize().as_bytes()[..8]);
        u64::from_le_bytes(word)
    }
}
