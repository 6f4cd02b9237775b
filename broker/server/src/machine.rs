//! What a broker takes from the machine that it runs on: the one place where wall time and the boot's identity enter.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use tidemill_protocol::Timestamp;

/// Tells the time; handed to everything that needs it.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// The machine under a broker. Tests have machines of their own.
#[derive(Clone)]
pub struct Machine {
    /// Its clock.
    pub clock: Clock,
    /// Identity of its current boot, where the system has one: it tells a process that was killed, whose writes the
    /// kernel still has, from a machine that lost power.
    pub boot_id: Option<[u8; 16]>,
}

impl Machine {
    /// The one that this process runs on.
    #[must_use]
    pub fn this() -> Self {
        Self { clock: system_clock(), boot_id: boot_id() }
    }
}

impl std::fmt::Debug for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Machine").field("boot_id", &self.boot_id).finish_non_exhaustive()
    }
}

/// The system's clock, in milliseconds.
#[must_use]
pub fn system_clock() -> Clock {
    Arc::new(|| {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp::new(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
    })
}

/// Linux gives each boot a random UUID.
fn boot_id() -> Option<[u8; 16]> {
    parse_boot_id(&std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?)
}

fn parse_boot_id(text: &str) -> Option<[u8; 16]> {
    uuid::Uuid::parse_str(text.trim()).ok().map(uuid::Uuid::into_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boot_id_is_a_uuid_in_a_line() {
        let id = parse_boot_id("00112233-4455-6677-8899-aabbccddeeff\n").expect("one");
        assert_eq!((id[0], id[15]), (0x00, 0xff));
        assert_eq!(parse_boot_id("unknown"), None);
        if cfg!(target_os = "linux") {
            assert_eq!(Machine::this().boot_id, Machine::this().boot_id, "the same for a whole boot");
            assert!(Machine::this().boot_id.is_some());
        }
    }
}
