//! What is sent: everything follows from the seed and the record's id, so that it can be made again and compared.

use serde::{Deserialize, Serialize};

use super::history::{Logged, RecordId};
use crate::fixtures::Random;

pub(super) const DIRECT: &str = "direct";
pub(super) const DIRECT_PARTITIONS: u32 = 4;
pub(super) const ROUTED: &str = "routed";
pub(super) const ROUTED_PARTITIONS: u32 = 3;
pub(super) const TRIMMED: &str = "trimmed";
pub(super) const TRIMMED_PARTITIONS: u32 = 2;

/// What `route-by-field` tells apart.
pub(super) const DEVICES: [&str; 4] = ["phone", "tablet", "desktop", "car"];

const SONGS_PER_PARTITION: u64 = 40;
const USERS: u64 = 300;
/// Mostly small, so that batches hold many records, and sometimes of a size that fills batches.
const PADDING_BYTES: [u64; 4] = [40, 200, 400, 4_000];

/// Which of the topics that producers send to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Topic {
    Direct,
    Routed,
    /// As `Direct`, but retention lets go what is old.
    Trimmed,
}

impl Topic {
    pub(super) const ALL: [Self; 3] = [Self::Direct, Self::Routed, Self::Trimmed];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Direct => DIRECT,
            Self::Routed => ROUTED,
            Self::Trimmed => TRIMMED,
        }
    }

    pub(super) const fn partitions(self) -> u32 {
        match self {
            Self::Direct => DIRECT_PARTITIONS,
            Self::Routed => ROUTED_PARTITIONS,
            Self::Trimmed => TRIMMED_PARTITIONS,
        }
    }
}

/// A record's value.
#[derive(Debug, Serialize, Deserialize)]
struct Value {
    producer: u32,
    sequence: u32,
    user_id: String,
    song_id: String,
    device: String,
    padding: String,
}

/// A record to send, or as it must have been.
#[derive(Debug)]
pub(super) struct Made {
    /// Chosen by the producer where it is not routed.
    pub(super) partition: u32,
    pub(super) key: String,
    pub(super) value: Vec<u8>,
    song: u32,
    device: u32,
    user: u32,
}

pub(super) fn make(seed: u64, topic: Topic, id: RecordId) -> Made {
    let salt = match topic {
        Topic::Direct => 0x6469,
        Topic::Routed => 0x726f,
        Topic::Trimmed => 0x7472,
    };
    let mut random = Random::new(
        seed ^ (u64::from(id.producer) << 48)
            ^ (salt << 32)
            ^ u64::from(id.sequence).wrapping_mul(0x2545_f491_4f6c_dd1d),
    );
    let partition = random.below(topic.partitions().into()) as u32;
    // Songs of one partition only, so that one task counts each of them.
    let song = partition * 1_000 + random.skewed(SONGS_PER_PARTITION) as u32;
    let device = random.below(DEVICES.len() as u64) as u32;
    let user = random.skewed(USERS) as u32;
    let padding_bytes = random.pick(&PADDING_BYTES);
    let padding =
        (0..random.below(padding_bytes)).map(|_| char::from(b'a' + random.below(26) as u8)).collect();
    let value = Value {
        producer: id.producer,
        sequence: id.sequence,
        user_id: user_name(user),
        song_id: song_name(song),
        device: DEVICES[device as usize].to_owned(),
        padding,
    };
    // Numbers and texts always serialise.
    let value = serde_json::to_vec(&value).unwrap_or_default();
    Made { partition, key: user_name(user), value, song, device, user }
}

/// The device of a record, which a filter looks at.
pub(super) fn device_of(seed: u64, topic: Topic, id: RecordId) -> u32 {
    make(seed, topic, id).device
}

pub(super) fn user_name(user: u32) -> String {
    format!("u-{user}")
}

pub(super) fn song_name(song: u32) -> String {
    format!("s-{song}")
}

pub(super) fn song_of(name: &str) -> Option<u32> {
    name.strip_prefix("s-")?.parse().ok()
}

/// Which record this is, if it has the bytes that it must have.
pub(super) fn recognise(
    seed: u64,
    topic: Topic,
    offset: i64,
    key: Option<&[u8]>,
    value: Option<&[u8]>,
) -> Result<Logged, String> {
    let value = value.ok_or("the value is null")?;
    let read: Value =
        serde_json::from_slice(value).map_err(|error| format!("the value does not read: {error}"))?;
    let id = RecordId { producer: read.producer, sequence: read.sequence };
    let made = make(seed, topic, id);
    if made.value != value || key != Some(made.key.as_bytes()) {
        return Err(format!("{id} has other bytes than were sent"));
    }
    Ok(Logged { offset, id, song: made.song, device: made.device, user: made.user })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_made_is_recognised_and_nothing_else() {
        let id = RecordId { producer: 1, sequence: 77 };
        let made = make(5, Topic::Routed, id);
        let recognise =
            |seed, key: &[u8], value: &[u8]| recognise(seed, Topic::Routed, 9, Some(key), Some(value));
        let logged = recognise(5, made.key.as_bytes(), &made.value).unwrap();
        assert_eq!((logged.id, logged.offset, user_name(logged.user)), (id, 9, made.key.clone()));
        recognise(6, made.key.as_bytes(), &made.value).unwrap_err();
        recognise(5, b"u-x", &made.value).unwrap_err();
        let mut flipped = made.value.clone();
        *flipped.iter_mut().rev().nth(3).unwrap() ^= 1;
        recognise(5, made.key.as_bytes(), &flipped).unwrap_err();
        assert_eq!(song_of(&song_name(3_017)), Some(3_017));
    }
}
