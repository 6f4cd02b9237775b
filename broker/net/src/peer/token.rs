//! What a broker is given to join a cluster with, as text that fits one line.
//!
//! ```text
//!   tmj1. base64url, without padding, of:
//!    0       16          48       80           88         92
//!   +---------+-----------+--------+------------+----------+
//!   | cluster |fingerprint| secret | expires_at | checksum |
//!   |   id    |           |        |  ms, BE    |          |
//!   +---------+-----------+--------+------------+----------+
//! ```
//!
//! The checksum is the beginning of the BLAKE3 hash of the bytes before it: it finds what was mistyped or cut off, and proves nothing.
//! The number in the prefix is the version. Whether a token has expired, and whether its secret is right, the cluster says.

use std::fmt;
use std::str::FromStr;

use data_encoding::BASE64URL_NOPAD;
use thiserror::Error;
use tidemill_protocol::{ClusterId, Timestamp};

const PREFIX: &str = "tmj1.";
/// What every version begins with.
const FAMILY: &str = "tmj";
const SAID_BYTES: usize = 88;
const CHECKSUM_BYTES: usize = 4;
const TOKEN_BYTES: usize = SAID_BYTES + CHECKSUM_BYTES;

/// Lets one broker join a cluster.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct JoinToken {
    /// The cluster.
    pub cluster: ClusterId,
    /// SHA-256 of its authority's certificate: whom to tell the secret.
    pub fingerprint: [u8; 32],
    /// Known to who joins; the cluster keeps a hash of it.
    pub secret: [u8; 32],
    /// After this it is worth nothing.
    pub expires_at: Timestamp,
}

/// Why a text is no join token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum JoinTokenError {
    /// Something else altogether.
    #[error("this is no join token: one begins with {PREFIX}; `tidemill cluster add` prints one")]
    NoToken,
    /// Of another release.
    #[error(
        "this join token is of a version that this release does not know; join with the release that the cluster runs"
    )]
    Version,
    /// A part of it is missing, or something was added to it.
    #[error("this join token has {length} characters behind {PREFIX} instead of {expected}; copy the whole of it, and nothing more", expected = encoded_length())]
    Length {
        /// Behind the prefix.
        length: usize,
    },
    /// It was changed on its way.
    #[error("this join token was changed on its way: its checksum does not hold; copy it once more")]
    Damaged,
}

fn encoded_length() -> usize {
    BASE64URL_NOPAD.encode_len(TOKEN_BYTES)
}

fn checksum(said: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let [a, b, c, d, ..] = *blake3::hash(said).as_bytes();
    [a, b, c, d]
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = Vec::with_capacity(TOKEN_BYTES);
        bytes.extend(self.cluster.bytes());
        bytes.extend(self.fingerprint);
        bytes.extend(self.secret);
        bytes.extend(self.expires_at.get().to_be_bytes());
        debug_assert_eq!(bytes.len(), SAID_BYTES);
        bytes.extend(checksum(&bytes));
        write!(f, "{PREFIX}{}", BASE64URL_NOPAD.encode(&bytes))
    }
}

impl fmt::Debug for JoinToken {
    /// Without the secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken")
            .field("cluster", &self.cluster)
            .field("expires_at", &self.expires_at)
            .finish_non_exhaustive()
    }
}

impl FromStr for JoinToken {
    type Err = JoinTokenError;

    /// White space around it is no part of it.
    fn from_str(text: &str) -> Result<Self, JoinTokenError> {
        let text = text.trim();
        let Some(encoded) = text.strip_prefix(PREFIX) else {
            let version = text.strip_prefix(FAMILY).and_then(|rest| rest.split_once('.'));
            let is_version = version.is_some_and(|(digits, _)| {
                !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit())
            });
            return Err(if is_version { JoinTokenError::Version } else { JoinTokenError::NoToken });
        };
        if encoded.len() != encoded_length() {
            return Err(JoinTokenError::Length { length: encoded.chars().count() });
        }
        let bytes = BASE64URL_NOPAD.decode(encoded.as_bytes()).map_err(|_| JoinTokenError::Damaged)?;
        let (said, sum) = bytes.split_last_chunk::<CHECKSUM_BYTES>().ok_or(JoinTokenError::Damaged)?;
        if checksum(said) != *sum {
            return Err(JoinTokenError::Damaged);
        }
        Self::from_bytes(said).ok_or(JoinTokenError::Damaged)
    }
}

impl JoinToken {
    fn from_bytes(said: &[u8]) -> Option<Self> {
        let (cluster, rest) = said.split_first_chunk::<16>()?;
        let (fingerprint, rest) = rest.split_first_chunk::<32>()?;
        let (secret, rest) = rest.split_first_chunk::<32>()?;
        Some(Self {
            cluster: ClusterId::from_slice(cluster)?,
            fingerprint: *fingerprint,
            secret: *secret,
            expires_at: Timestamp::new(i64::from_be_bytes(rest.try_into().ok()?)),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    fn token() -> JoinToken {
        JoinToken {
            cluster: ClusterId::new(Uuid::from_u128(7)),
            fingerprint: [0xf1; 32],
            secret: [0x5e; 32],
            expires_at: Timestamp::new(1_800_000_000_000),
        }
    }

    proptest! {
        #[test]
        fn a_token_survives_as_text(cluster: u128, fingerprint: [u8; 32], secret: [u8; 32], expires_at: i64) {
            let cluster = ClusterId::new(Uuid::from_u128(cluster));
            let token = JoinToken { cluster, fingerprint, secret, expires_at: Timestamp::new(expires_at) };
            prop_assert_eq!(token.to_string().parse(), Ok(token));
            prop_assert_eq!(format!("  {token}\n").parse(), Ok(token));
        }

        #[test]
        fn a_changed_character_is_found(at in 5_usize..128, to in "[A-Za-z0-9_-]") {
            let text = token().to_string();
            let mut changed = text.clone();
            changed.replace_range(at..=at, &to);
            prop_assume!(changed != text);
            prop_assert_eq!(changed.parse::<JoinToken>(), Err(JoinTokenError::Damaged));
        }

        #[test]
        fn garbage_is_refused(text in ".*", behind in ".{0,200}") {
            prop_assert!(text.parse::<JoinToken>().is_err());
            let text = format!("{PREFIX}{behind}");
            prop_assert!(text.parse::<JoinToken>().is_err());
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        let text = token().to_string();
        assert_eq!(text.len(), 128);
        let refused = |text: &str| text.parse::<JoinToken>().expect_err("no token");
        assert_eq!(refused(&text[..100]), JoinTokenError::Length { length: 95 });
        assert_eq!(refused(&format!("{text}{text}")), JoinTokenError::Length { length: 251 });
        assert_eq!(refused(&text.replacen("tmj1", "tmj2", 1)), JoinTokenError::Version);
        assert_eq!(refused("tmjx.abc"), JoinTokenError::NoToken);
        assert_eq!(refused(""), JoinTokenError::NoToken);
        assert!(refused(&text[..100]).to_string().contains("95 characters behind tmj1. instead of 123"));
        assert!(refused("secret").to_string().contains("cluster add"));
    }

    #[test]
    fn a_log_never_has_the_secret() {
        let shown = format!("{:?} {:#?}", token(), token());
        assert!(!shown.contains("94") && !shown.contains("5e"), "{shown}");
    }
}
