//! Stateless resets that outlive the process (RFC 9000, section 10.3).
//!
//! A broker that was killed and started again gets packets of connections that it knows nothing of. It answers
//! with a stateless reset; the peer believes it only if it carries the token that the *earlier* process promised.
//! So the key behind these tokens is derived from the server's private key, which stays, and connection ids are
//! plain random numbers: quinn's own generator signs them with a key of the process and drops all others unanswered.
//! A client then notices a restart with its next packet, and not after the idle timeout.

use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::{CryptoError, HmacKey};
use quinn::{ConnectionId, ConnectionIdGenerator};
use rustls_pki_types::PrivateKeyDer;

const CONTEXT: &str = "tidemill 2026 QUIC stateless reset key";
/// Long enough that ids of different connections do not meet.
const CONNECTION_ID_BYTES: usize = size_of::<u64>();

/// Makes and checks reset tokens.
pub(crate) struct ResetKey([u8; blake3::KEY_LEN]);

impl ResetKey {
    pub(crate) fn derive(server_key: &PrivateKeyDer<'_>) -> Arc<Self> {
        Arc::new(Self(blake3::derive_key(CONTEXT, server_key.secret_der())))
    }
}

impl HmacKey for ResetKey {
    fn sign(&self, data: &[u8], signature_out: &mut [u8]) {
        signature_out.copy_from_slice(blake3::keyed_hash(&self.0, data).as_bytes());
    }

    fn signature_len(&self) -> usize {
        blake3::OUT_LEN
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        let signature = <[u8; blake3::OUT_LEN]>::try_from(signature).map_err(|_| CryptoError)?;
        // blake3 compares hashes in constant time.
        if blake3::keyed_hash(&self.0, data) == blake3::Hash::from_bytes(signature) {
            Ok(())
        } else {
            Err(CryptoError)
        }
    }
}

/// Random connection ids, none of which is refused unseen.
pub(crate) struct RandomIds;

impl ConnectionIdGenerator for RandomIds {
    fn generate_cid(&mut self) -> ConnectionId {
        // The second half of a version 4 UUID is random but for two bits.
        let (_, random) = uuid::Uuid::new_v4().as_u64_pair();
        ConnectionId::new(&random.to_be_bytes())
    }

    fn cid_len(&self) -> usize {
        CONNECTION_ID_BYTES
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}
