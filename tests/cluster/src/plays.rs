//! Events of the worked example: somebody plays a song.

use crate::fixtures::Random;

/// What a user can play on.
pub const DEVICES: [&str; 5] = ["phone", "desktop", "tablet", "speaker", "car"];
/// Of the first device, the second, and so on, in percent.
const DEVICE_SHARES: [u64; 5] = [55, 24, 10, 9, 2];

/// Somebody played a song.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Play {
    /// Who.
    pub user_id: String,
    /// What.
    pub song_id: String,
    /// When, in milliseconds since 1970.
    pub ts: i64,
    /// On what.
    pub device: String,
}

impl Play {
    /// One of `users` users plays one of `songs` songs. A few songs make most of the plays.
    pub fn random(random: &mut Random, users: u64, songs: u64, ts: i64) -> Self {
        let share = random.below(100);
        let mut below = 0;
        let device = DEVICES.iter().zip(DEVICE_SHARES).find(|(_, percent)| {
            below += percent;
            share < below
        });
        Self {
            user_id: format!("user-{}", random.below(users)),
            song_id: format!("song-{}", random.skewed(songs)),
            ts,
            device: device.map_or(DEVICES[0], |(device, _)| device).to_owned(),
        }
    }

    /// As JSON.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        // A struct of texts and a number always serialises.
        serde_json::to_vec(self).unwrap_or_default()
    }
}
