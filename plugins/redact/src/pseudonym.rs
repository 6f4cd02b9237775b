//! Names that stand for values, and can't be turned back without the secret.

use tidemill_plugin::json::{Raw, Value};

/// What the key is for, so that the same secret used elsewhere makes other keys (BLAKE3's key derivation).
const PURPOSE: &str = "tidemill redact 2026-01 pseudonyms of fields";
/// How much of the hash a pseudonym shows: enough for no two values to meet.
const PSEUDONYM_BYTES: usize = 16;

/// Pseudonyms under a secret.
pub(crate) struct Pseudonyms {
    key: [u8; 32],
}

impl Pseudonyms {
    pub(crate) fn new(secret: &str) -> Self {
        Self { key: blake3::derive_key(PURPOSE, secret.as_bytes()) }
    }

    /// Appends the pseudonym of a well-formed value, as a string of JSON.
    pub(crate) fn write(&self, value: &[u8], out: &mut Vec<u8>) {
        const HEX: &[u8; 16] = b"0123456789abcdef";
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        // A byte for the type, so that the text "1" is not the number 1.
        match Raw::parse(value).map(|raw| raw.value()) {
            Ok(Value::Text(text)) => _ = hasher.update(b"t").update(&text.bytes()),
            Ok(Value::Number(number)) => {
                let mut canonical = Vec::new();
                number.write_canonical(&mut canonical);
                hasher.update(b"n").update(&canonical);
            }
            _ => _ = hasher.update(b"o").update(value),
        }
        out.push(b'"');
        for byte in &hasher.finalize().as_bytes()[..PSEUDONYM_BYTES] {
            out.extend_from_slice(&[HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
        }
        out.push(b'"');
    }
}

impl std::fmt::Debug for Pseudonyms {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Pseudonyms(..)")
    }
}
